"""Tensors <-> bytes: CacheSnapshot -> PackedCache on the sending side, slabs of bytes -> CacheSnapshot on the other.

`CODECS` is a closed table: a codec id that is not in it is refused, never looked up elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec import raw
from splitinfer.errors import UnknownCodecError
from splitinfer.handoff import CacheLayout, PackedCache, Sink

__all__ = ["CODECS", "Codec", "pack", "sink"]


class Pack(Protocol):
    """Turns a snapshot into slabs."""

    def __call__(self, snapshot: CacheSnapshot, *, padded_tokens: int) -> PackedCache:
        """Return the packed cache."""


class MakeSink(Protocol):
    """Makes the memory that slabs arrive in."""

    def __call__(self, layout: CacheLayout, *, true_tokens: int, padded_tokens: int) -> Sink[CacheSnapshot]:
        """Return the sink."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the table: its two ends, and whether what arrives is bit for bit what was packed."""

    pack: Pack
    sink: MakeSink
    is_exact: bool


CODECS: dict[str, Codec] = {"raw": Codec(raw.pack, raw.sink, is_exact=True)}


def pack(snapshot: CacheSnapshot, *, codec: str, padded_tokens: int) -> PackedCache:
    """Pack a snapshot with a named codec; raises UnknownCodecError, and LayoutMismatchError for too small a padding."""
    return _find(codec).pack(snapshot, padded_tokens=padded_tokens)


def sink(layout: CacheLayout, *, codec: str, true_tokens: int, padded_tokens: int) -> Sink[CacheSnapshot]:
    """Make the sink of a named codec; its `finish()` returns a CacheSnapshot. Raises UnknownCodecError."""
    return _find(codec).sink(layout, true_tokens=true_tokens, padded_tokens=padded_tokens)


def _find(codec: str) -> Codec:
    if codec not in CODECS:
        raise UnknownCodecError(f"codec {codec!r} is unknown; write one of {', '.join(CODECS)}")
    return CODECS[codec]
