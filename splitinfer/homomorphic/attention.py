"""Attention with a cache at the cloud: one query -> its output, exact softmax over [cloud | tail]; on the device.

Per layer and step two rounds: encrypted query -> encrypted scores, encrypted probabilities -> encrypted outputs. The
newest tokens stay here in the clear until they fill a tile, which is then encrypted, uploaded and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import LayoutMismatchError
from splitinfer.homomorphic.keys import SessionKeys
from splitinfer.homomorphic.packing import (
    Slots,
    pack_keys,
    pack_probabilities,
    pack_query,
    pack_values,
    unpack_outputs,
    unpack_scores,
)
from splitinfer.homomorphic.parameters import Parameters
from splitinfer.homomorphic.planning import AttentionPlan
from splitinfer.homomorphic.ranges import NORM, CentredRows, centred_keys, centred_values, normalised, require_finite
from splitinfer.rounds import Channel, Operation

__all__ = ["DeviceAttention"]

Rows: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class _Tile:
    """What the device keeps of a tile: its token count and how its rows were brought into range."""

    tokens: int
    keys: CentredRows = field(repr=False)
    values: CentredRows = field(repr=False)


@dataclass(slots=True)
class _Layer:
    tiles: list[_Tile] = field(default_factory=list)
    keys: list[Rows] = field(default_factory=list, repr=False)
    values: list[Rows] = field(default_factory=list, repr=False)


class DeviceAttention:
    """All layers' caches: tiles at the cloud, and the tail here."""

    def __init__(self, plan: AttentionPlan, parameters: Parameters, keys: SessionKeys, channel: Channel) -> None:
        self._plan = plan
        self._parameters = parameters
        self._keys = keys
        self._channel = channel
        self._layers = [_Layer() for _ in range(plan.shape.layers)]
        self._product_bits = parameters.query_bits + parameters.cache_bits

    def load(self, layer: int, keys: Rows, values: Rows, *, is_public: bool = False) -> None:
        """Upload rows [tokens, kv_heads, head_dim] as tiles: encrypted, or in the clear where they are public.

        Raises LayoutMismatchError for another shape, CryptoParameterError for values that cannot be encoded.
        """
        shape = (len(keys), self._plan.shape.kv_heads, self._plan.shape.head_dim)
        if keys.shape != shape or values.shape != shape:
            raise LayoutMismatchError(f"keys and values have shapes {keys.shape} and {values.shape}, expected {shape}")
        size = self._plan.tile_tokens
        for at in range(0, len(keys), size):
            self._upload(layer, keys[at : at + size], values[at : at + size], is_public=is_public)

    def keep(self, layer: int, keys: Rows, values: Rows) -> None:
        """Keep a prefix's last rows here in the clear, as the tail begins; fewer than a tile, after what is loaded.

        Raises LayoutMismatchError for more, CryptoParameterError for values that cannot be encoded.
        """
        held = self._layers[layer]
        if len(held.keys) + len(keys) >= self._plan.tile_tokens or len(keys) != len(values):
            raise LayoutMismatchError(f"a tail has fewer than {self._plan.tile_tokens} tokens; load whole tiles")
        held.keys.extend(require_finite("keys", keys))
        held.values.extend(require_finite("values", values))

    def seal_tail(self) -> None:
        """Encrypt and upload the tokens that are here in the clear, a padded tile a layer."""
        for layer, held in enumerate(self._layers):
            if held.keys:
                self._flush(layer, held)

    def attend(self, layer: int, query: Rows, key: Rows, value: Rows) -> Rows:
        """Take one token's key and value [kv_heads, head_dim]; return [heads, head_dim] for its scaled query.

        Raises CryptoParameterError for values that cannot be encoded, and whatever the exchange and its checks raise.
        """
        held, group = self._layers[layer], self._plan.shape.group
        query = require_finite("queries", query)
        held.keys.append(require_finite("keys", key))
        held.values.append(require_finite("values", value))
        tail_keys, tail_values = (np.repeat(rows, group, axis=1) for rows in (held.keys, held.values))
        remote = self._scores(layer, held.tiles, query)
        local = np.einsum("hd,nhd->hn", query, tail_keys)
        shares = _softmax([*remote, local])
        result: Rows = np.einsum("hn,nhd->hd", shares[-1], tail_values)
        result = result + self._outputs(layer, held.tiles, shares[:-1])
        if len(held.keys) == self._plan.tile_tokens:
            self._flush(layer, held)
        return result

    # --- tiles ----------------------------------------------------------------------------------------------

    def _flush(self, layer: int, held: _Layer) -> None:
        self._upload(layer, np.array(held.keys), np.array(held.values), is_public=False)
        held.keys.clear()
        held.values.clear()

    def _upload(self, layer: int, keys: Rows, values: Rows, *, is_public: bool) -> None:
        scaled = centred_keys(keys), centred_values(values)
        if is_public:
            blobs = tuple(one.rows.astype("<f4").tobytes() for one in scaled)
            self._channel.ask(Operation.PUBLIC_TILE, blobs, layer=layer, expected=0)
        else:
            packed = [pack_keys(self._plan, scaled[0].rows), pack_values(self._plan, scaled[1].rows)]
            self._channel.ask(
                Operation.TILE, self._encrypted(packed, self._parameters.cache_bits), layer=layer, expected=0
            )
        empty = np.empty((0, *keys.shape[1:]))
        kept = [CentredRows(empty, one.scale, one.centre) for one in scaled]
        self._layers[layer].tiles.append(_Tile(len(keys), kept[0], kept[1]))

    def _encrypted(self, packed: Sequence[Slots], bits: int) -> tuple[bytes, ...]:
        flat = [slots for one in packed for slots in one.reshape(-1, self._plan.slots)]
        return tuple(self._keys.encrypt(slots, scale_bits=bits) for slots in flat)

    # --- rounds ---------------------------------------------------------------------------------------------

    def _ask(self, operation: Operation, layer: int, packed: Sequence[Slots], replies: int) -> list[Slots]:
        """One round; returns the replies' slots, [queries, slots] each."""
        blobs = self._encrypted(packed, self._parameters.query_bits)
        queries = self._plan.queries
        found = self._channel.ask(operation, blobs, layer=layer, expected=queries * replies)
        slots = [self._keys.decrypt(blob, product_bits=self._product_bits) for blob in found]
        return [np.array(slots[at : at + queries]) for at in range(0, len(slots), queries)]

    def _scores(self, layer: int, tiles: Sequence[_Tile], query: Rows) -> list[Rows]:
        """Return the scores of every tile's tokens, [heads, tokens] each."""
        if not tiles:
            return []
        rows, scale = normalised(query)
        replies = self._ask(Operation.SCORES, layer, [pack_query(self._plan, rows)], len(tiles))
        return [self._score(tile, slots, query, scale) for tile, slots in zip(tiles, replies, strict=True)]

    def _score(self, tile: _Tile, slots: Slots, query: Rows, scale: Rows) -> Rows:
        group = self._plan.shape.group
        scores = unpack_scores(self._plan, slots)[:, : tile.tokens]
        of_centre = np.einsum("hd,hd->h", query, np.repeat(tile.keys.centre, group, axis=0))
        factor = scale * np.repeat(tile.keys.scale, group)
        true: Rows = scores * factor[:, None] + of_centre[:, None]
        return true

    def _outputs(self, layer: int, tiles: Sequence[_Tile], shares: Sequence[Rows]) -> Rows:
        """Return the tiles' part of the output, [heads, head_dim]."""
        if not tiles:
            return np.zeros((self._plan.shape.heads, self._plan.shape.head_dim))
        group = self._plan.shape.group
        masses = [share.sum(axis=1) for share in shares]
        total = np.maximum(np.sum(masses, axis=0), np.finfo(np.float64).tiny)
        scales = [np.repeat(tile.values.scale, group) for tile in tiles]
        largest = np.max(scales, axis=0)
        packed = [
            pack_probabilities(self._plan, self._in_range(share, NORM * scale / (largest * total)))
            for share, scale in zip(shares, scales, strict=True)
        ]
        (slots,) = self._ask(Operation.OUTPUTS, layer, packed, 1)
        centres = [np.repeat(tile.values.centre, group, axis=0) for tile in tiles]
        of_centres = sum(mass[:, None] * centre for mass, centre in zip(masses, centres, strict=True))
        result: Rows = unpack_outputs(self._plan, slots) * (largest * total / NORM)[:, None] + of_centres
        return result

    def _in_range(self, share: Rows, factor: Rows) -> Rows:
        """Pad one tile's shares [heads, tokens] to the tile, times a factor for every head."""
        padded = np.zeros((len(share), self._plan.tile_tokens))
        padded[:, : share.shape[1]] = share * factor[:, None]
        return padded


def _softmax(scores: Sequence[Rows]) -> list[Rows]:
    """Return the joint softmax over all parts, cut as they were."""
    joined = np.concatenate(scores, axis=1)
    weights = np.exp(joined - joined.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.split(weights, np.cumsum([part.shape[1] for part in scores])[:-1], axis=1)
