"""What the device asks of the cloud, before it is known to which keys: tokens, rows or a packed cache -> Ask; device.

An ask knows its exact sizes beforehand, so that its log entry can state them before anything is sealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from splitinfer import schedule
from splitinfer.handoff import PackedCache, Route, SamplingParams
from splitinfer.placement import Step
from splitinfer.receive.tokens import TOKEN_BYTES, slab_tokens, token_slab
from splitinfer.sealing.manifest import (
    CacheWire,
    ModelWire,
    NumericsWire,
    RequestManifest,
    SamplingWire,
    SessionWire,
    TokensWire,
    manifest_region,
)
from splitinfer.sealing.stream import PROMPT_CHUNK_BYTES, TAG_BYTES, chunk_count
from splitinfer.sealing.transfer import HEAD_BOUND_BYTES
from splitinfer.sealing.wire import VERSION

__all__ = ["Ask", "Common", "Place", "close_ask", "decode_ask", "prefill_ask", "rounds_ask", "rows_ask"]

_SMALL_ROWS_BYTES = 1024 * 1024


@dataclass(slots=True)
class Ask:
    """What to send, before it is known to which keys: sealed manifest fields, pieces, and their exact sizes.

    Where records follow, `following_bytes` is the most that they take; `packing` and `bucket` are then what the log
    says instead of codec and tokens.
    """

    route: Route
    manifest: RequestManifest = field(repr=False)
    # Iterated again for a resend, and must yield the same bytes then.
    pieces: Iterable[memoryview | bytes] = field(repr=False)
    following_bytes: int
    chunk_bytes: int
    packing: str = ""
    bucket: int | None = None

    @property
    def tokens_bucket(self) -> int:
        """Return the size class of the tokens that it brings; 0 for a session's end, which brings none."""
        manifest = self.manifest
        if self.bucket is not None:
            return self.bucket
        if manifest.kind == "decode":
            return manifest.tokens.padded - manifest.session.base_tokens
        return slab_tokens(manifest) if manifest.kind in {"prefill", "rows"} else 0

    @property
    def bytes_up_bound(self) -> int:
        """Return the most bytes that this request's body can have."""
        region = len(manifest_region(self.manifest.to_bytes(), chunk_bytes=self.chunk_bytes))
        chunks = chunk_count(region + self.following_bytes, self.chunk_bytes)
        return HEAD_BOUND_BYTES + chunks * (self.chunk_bytes + TAG_BYTES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a transfer stands in its session (see `manifest.SessionWire`); by default a first turn, not kept."""

    turn: int = 0
    parent_root: str = ""
    base_tokens: int = 0
    keep: bool = False


_FIRST = Place()


@dataclass(frozen=True, slots=True)
class Common:
    """The sealed manifest's fields that every request of a run shares."""

    policy_sha256: str
    codec: str
    pad: str
    session_id: str
    model: ModelWire
    numerics: NumericsWire
    artefact_sha256: str | None = None


def prefill_ask(
    common: Common,
    token_ids: tuple[int, ...],
    steps: tuple[Step, ...],
    *,
    place: Place = _FIRST,
    is_public: bool = False,
) -> Ask:
    """Ask for the cache of these tokens, or for the rows that the device lacks; the token slab is padded to its class.

    What the cloud holds of a session is not sent again. Of public text, of which the cloud holds nothing for sure, all
    ids are sent, and the base is what the device holds.
    """
    tokens = _tokens(len(token_ids), place)
    manifest = _manifest(
        common, "prefill", tokens, _from(steps, 0 if is_public else place.base_tokens), place=place, is_public=is_public
    )
    sent = token_ids if is_public else token_ids[place.base_tokens :]
    padded = slab_tokens(manifest)
    slab = token_slab(sent, padded_tokens=padded)
    return Ask(Route.PREFILL, manifest, [slab], padded * TOKEN_BYTES, PROMPT_CHUNK_BYTES)


def rows_ask(common: Common, rows: bytes, steps: tuple[Step, ...], *, tokens: int) -> Ask:
    """Ask for the cache of a prompt that is sent as the bytes of its embedding rows, all of one length."""
    manifest = _manifest(common, "rows", _tokens(tokens, _FIRST), steps)
    total = slab_tokens(manifest) * (len(rows) // tokens)
    # A short prompt's manifest shall not fill a chunk larger than its rows.
    chunk_bytes = PROMPT_CHUNK_BYTES if total <= _SMALL_ROWS_BYTES else schedule.cache_chunk_bytes(total)
    return Ask(Route.PREFILL, manifest, [rows.ljust(total, b"\x00")], total, chunk_bytes)


def close_ask(common: Common) -> Ask:
    """Ask the cloud to erase what it holds of the session."""
    manifest = _manifest(common, "close", _tokens(1, _FIRST), ())
    return Ask(Route.PREFILL, manifest, [], 0, PROMPT_CHUNK_BYTES)


def rounds_ask(common: Common, *, protection: str, rounds_bytes: int) -> Ask:
    """Ask to begin rounds under a protection; `rounds_bytes` is the most that their records take.

    No token count is stated: what the cloud learns of it, it learns from the rounds.
    """
    manifest = _manifest(common, "rounds", _tokens(1, _FIRST), ())
    manifest = manifest.model_copy(update={"protection": protection})
    return Ask(Route.SESSION, manifest, [], rounds_bytes, PROMPT_CHUNK_BYTES)


def decode_ask(
    common: Common,
    packed: PackedCache,
    *,
    steps: tuple[Step, ...],
    last_token: int,
    params: SamplingParams,
    place: Place = _FIRST,
) -> Ask:
    """Ask for the answer to this cache, packed from the place's base on, and last token."""
    manifest = _manifest(
        common,
        "decode",
        _tokens(packed.true_tokens, place),
        _from(steps, place.base_tokens),
        place=place,
        cache=CacheWire.of(packed.layout),
        coded_bytes=packed.size_bytes if packed.is_variable else None,
        last_token=last_token,
        sampling=SamplingWire.of(params),
    )
    total = packed.size_bytes
    return Ask(
        Route.DECODE,
        manifest,
        _Slabs(packed),
        total,
        schedule.cache_chunk_bytes(total, is_small=common.artefact_sha256 is not None),
    )


@dataclass(frozen=True, slots=True)
class _Slabs:
    """A cache's slabs, from the first one on whenever they are iterated."""

    packed: PackedCache = field(repr=False)

    def __iter__(self) -> Iterator[memoryview]:
        return self.packed.slabs()


def _tokens(true: int, place: Place) -> TokensWire:
    return TokensWire(true=true, padded=schedule.pad_new_tokens(true, place.base_tokens))


def _from(steps: tuple[Step, ...], base_tokens: int) -> tuple[Step, ...]:
    return tuple(step for step in steps if step[0] >= base_tokens)


def _manifest(
    common: Common,
    kind: Literal["prefill", "rows", "decode", "close", "rounds"],
    tokens: TokensWire,
    steps: tuple[Step, ...],
    *,
    place: Place = _FIRST,
    is_public: bool = False,
    cache: CacheWire | None = None,
    coded_bytes: int | None = None,
    last_token: int | None = None,
    sampling: SamplingWire | None = None,
) -> RequestManifest:
    return RequestManifest(
        version=VERSION,
        kind=kind,
        protection="sealed",
        codec=common.codec,
        artefact_sha256=common.artefact_sha256,
        pad=common.pad,
        policy_sha256=common.policy_sha256,
        log_checkpoint="0" * 64,
        model=common.model,
        numerics=common.numerics,
        session=SessionWire(
            session_id=common.session_id,
            turn=place.turn,
            parent_root=place.parent_root,
            base_tokens=place.base_tokens,
            keep=place.keep,
        ),
        public=is_public,
        tokens=tokens,
        steps=list(steps),
        cache=cache,
        coded_bytes=coded_bytes,
        last_token=last_token,
        sampling=sampling,
    )
