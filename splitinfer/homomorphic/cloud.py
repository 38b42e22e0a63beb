"""The cloud half: records with public bytes in, records with ciphertexts out; holds no secret key, imports no torch.

Everything it knows came in a record: the opening with public keys, encrypted tiles, public tiles, queries. Weights are
its own. A fault raises a typed error; the caller closes the connection as it does at every end, and says no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from splitinfer.errors import LayoutMismatchError, LimitExceededError, ManifestError, ReplayError
from splitinfer.homomorphic import kernels
from splitinfer.homomorphic.arithmetic import Arithmetic, EncodedLinear, Operand
from splitinfer.homomorphic.bindings import sealapi
from splitinfer.homomorphic.kernels import Share
from splitinfer.homomorphic.opening import read_opening
from splitinfer.homomorphic.packing import Slots, pack_keys, pack_values
from splitinfer.homomorphic.planning import AttentionPlan
from splitinfer.homomorphic.seal import (
    Ciphertext,
    ciphertext_limit,
    encode,
    keys_limit,
    load,
    make_context,
    require_form,
    to_bytes,
)
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import Operation, Record

__all__ = ["COMPUTING", "CloudHalf"]

COMPUTING = frozenset(Operation) - {Operation.CLOSE, Operation.OPEN, Operation.TILE, Operation.PUBLIC_TILE}
Diagonals = list[list[Operand]]


@dataclass(frozen=True, slots=True)
class _Tile:
    keys: Diagonals
    values: Diagonals


@dataclass(frozen=True, slots=True)
class _Session:
    arithmetic: Arithmetic
    plan: AttentionPlan
    linears: dict[tuple[int, Operation], EncodedLinear]
    tiles: dict[int, list[_Tile]] = field(default_factory=dict)


class CloudHalf:
    """One session's cloud half. `linears` are weights that it offers, `max_cache_tokens` bounds its tiles."""

    def __init__(self, *, linears: LinearStore | None = None, max_cache_tokens: int = 1 << 17) -> None:
        self._linears = linears
        self._max_cache_tokens = max_cache_tokens
        self._opened: _Session | None = None

    def answer(self, record: Record) -> Record:
        """Answer one record; raises a VerificationError for one that cannot be, after which the session is over."""
        if record.operation in COMPUTING:
            return self.combine(record, [])
        blobs = self._store(record)
        return record.reply(blobs)

    def partial(self, record: Record, share: Share) -> tuple[bytes, ...]:
        """Compute a share of a product; a sum is empty where there is nothing to add."""
        return tuple(b"" if one is None else to_bytes(one) for one in self._compute(record, share))

    def combine(self, record: Record, others: Sequence[Callable[[], Sequence[bytes]]]) -> Record:
        """Compute the last share, the heaviest one, and add those of the other processes, which have yet to travel."""
        arithmetic = self._session.arithmetic
        sums = self._compute(record, (len(others), len(others) + 1))
        for other in others:
            loaded = [self._sum(blob) if blob else None for blob in other()]
            sums = [arithmetic.sum(pair) for pair in zip(sums, loaded, strict=True)]
        return record.reply(tuple(b"" if one is None else to_bytes(one) for one in sums))

    @property
    def _session(self) -> _Session:
        if self._opened is None:
            raise ManifestError("the session was not opened; its first record must be the opening")
        return self._opened

    # --- what is kept ---------------------------------------------------------------------------------------

    def _store(self, record: Record) -> tuple[bytes, ...]:
        if record.operation is Operation.CLOSE:
            raise ManifestError("a session's end is not for its halves")
        if record.operation is Operation.OPEN:
            return self._open(record)
        session = self._session
        self._require_room(record.layer)
        make = self._encrypted_tile if record.operation is Operation.TILE else self._public_tile
        session.tiles.setdefault(record.layer, []).append(make(record))
        return ()

    def _open(self, record: Record) -> tuple[bytes, ...]:
        if self._opened is not None:
            raise ReplayError("the session is open already")
        if len(record.blobs) != 3:
            raise ManifestError(f"an opening has 3 parts, but {len(record.blobs)} came")
        opening = read_opening(record.blobs[0])
        parameters, plan = opening.agreed()
        context = make_context(parameters)
        galois, multiply = (
            load(kind, context, blob, limit_bytes=keys_limit(parameters, count)) if blob else None
            for kind, blob, count in (
                (sealapi.GaloisKeys, record.blobs[1], opening.steps),
                (sealapi.RelinKeys, record.blobs[2], 1),
            )
        )
        arithmetic = Arithmetic(context, parameters, galois_keys=galois, relinearisation_keys=multiply)
        linears = self._offered(arithmetic) if opening.uses_linears else {}
        self._opened = _Session(arithmetic, plan, linears)
        return tuple(linear.scale.astype("<f4").tobytes() for linear in linears.values())

    def _offered(self, arithmetic: Arithmetic) -> dict[tuple[int, Operation], EncodedLinear]:
        if self._linears is None:
            raise ManifestError("linear layers were asked for, which this cloud does not offer")
        return self._linears.encoded(arithmetic)

    def _require_room(self, layer: int) -> None:
        plan, held = self._session.plan, len(self._session.tiles.get(layer, []))
        if layer >= plan.shape.layers:
            raise LayoutMismatchError(f"layer {layer} is above the session's {plan.shape.layers} layers")
        if (held + 1) * plan.tile_tokens > self._max_cache_tokens:
            raise LimitExceededError(f"the cache is above the limit of {self._max_cache_tokens} tokens")

    def _encrypted_tile(self, record: Record) -> _Tile:
        plan, parameters = self._session.plan, self._session.arithmetic.parameters
        count = plan.cache_blocks * plan.dims
        if len(record.blobs) != 2 * count:
            raise LayoutMismatchError(f"a tile has {len(record.blobs)} ciphertexts, expected {2 * count}")
        operands = [Operand(self._ciphertext(blob, parameters.cache_bits), True) for blob in record.blobs]
        cut = [operands[at : at + plan.dims] for at in range(0, 2 * count, plan.dims)]
        return _Tile(cut[: plan.cache_blocks], cut[plan.cache_blocks :])

    def _public_tile(self, record: Record) -> _Tile:
        plan, shape = self._session.plan, self._session.plan.shape
        row_bytes = 4 * shape.kv_heads * shape.head_dim
        sizes = {len(blob) for blob in record.blobs}
        if (
            len(record.blobs) != 2
            or len(sizes) != 1
            or min(sizes) % row_bytes
            or min(sizes) > row_bytes * plan.tile_tokens
        ):
            raise LayoutMismatchError(f"a public tile is not keys and values of up to {plan.tile_tokens} tokens")
        keys, values = (
            np.frombuffer(blob, "<f4").reshape(-1, shape.kv_heads, shape.head_dim).astype(np.float64)
            for blob in record.blobs
        )
        return _Tile(self._encoded(pack_keys(plan, keys)), self._encoded(pack_values(plan, values)))

    def _encoded(self, diagonals: Slots) -> Diagonals:
        arithmetic = self._session.arithmetic
        bits = arithmetic.parameters.cache_bits
        # SEAL refuses products with a plaintext of zeros, which would show what they are.
        return [
            [Operand(encode(arithmetic.encoder, one, bits) if np.any(one) else None, False) for one in block]
            for block in diagonals
        ]

    # --- what is computed -----------------------------------------------------------------------------------

    def _compute(self, record: Record, share: Share) -> list[Ciphertext | None]:
        if record.operation is Operation.SCORES:
            return self._scores(record, share)
        if record.operation is Operation.OUTPUTS:
            return self._outputs(record, share)
        return self._linear(record, share)

    def _tiles(self, record: Record) -> list[_Tile]:
        tiles = self._session.tiles.get(record.layer)
        if not tiles:
            raise LayoutMismatchError(f"layer {record.layer} has no cache here")
        return tiles

    def _scores(self, record: Record, share: Share) -> list[Ciphertext | None]:
        session, tiles = self._session, self._tiles(record)
        query = self._inputs(record, session.plan.queries, session.arithmetic.parameters.query_bits)
        return kernels.scores(session.arithmetic, session.plan, query, [tile.keys for tile in tiles], share)

    def _outputs(self, record: Record, share: Share) -> list[Ciphertext | None]:
        session, tiles = self._session, self._tiles(record)
        count = session.plan.queries * len(tiles)
        probabilities = self._inputs(record, count, session.arithmetic.parameters.query_bits)
        values = [tile.values for tile in tiles]
        return kernels.outputs(session.arithmetic, session.plan, probabilities, values, share)

    def _linear(self, record: Record, share: Share) -> list[Ciphertext | None]:
        session = self._session
        linear = session.linears.get((record.layer, record.operation))
        if linear is None:
            raise LayoutMismatchError(f"layer {record.layer} has no {record.operation.name.lower()} matrix here")
        inputs = self._inputs(record, linear.plan.chunks, session.arithmetic.parameters.input_bits)
        return kernels.linear(session.arithmetic, linear.plan, inputs, linear.diagonals, share)

    def _inputs(self, record: Record, count: int, bits: int) -> list[Ciphertext]:
        if len(record.blobs) != count:
            raise LayoutMismatchError(f"a record has {len(record.blobs)} ciphertexts, expected {count}")
        return [self._ciphertext(blob, bits) for blob in record.blobs]

    def _ciphertext(self, blob: bytes, bits: int) -> Ciphertext:
        arithmetic = self._session.arithmetic
        limit = ciphertext_limit(arithmetic.parameters)
        ciphertext = load(sealapi.Ciphertext, arithmetic.context, blob, limit_bytes=limit)
        require_form(ciphertext, parms_id=arithmetic.context.first_parms_id(), scale=2.0**bits)
        return ciphertext

    def _sum(self, blob: bytes) -> Ciphertext:
        arithmetic = self._session.arithmetic
        limit = ciphertext_limit(arithmetic.parameters)
        return load(sealapi.Ciphertext, arithmetic.context, blob, limit_bytes=limit)
