"""The pure functions that both ends of a stream compute for themselves: padding, slab order and lengths, chunk sizes.

Nothing on the wire names a layer or a range: they follow from the authenticated manifest by these rules
(docs/format.md section 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from splitinfer.errors import LayoutMismatchError, ManifestError
from splitinfer.handoff import CacheLayout, LayerLayout

__all__ = [
    "LENGTH_BYTES",
    "RANGE_TOKENS",
    "SlabSpec",
    "cache_chunk_bytes",
    "item_bytes",
    "pad_tokens",
    "padme",
    "require_coded_bytes",
    "slabs",
]

RANGE_TOKENS = 512
GROUP_TOKENS = 64
LENGTH_BYTES = 4
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KIB, _MIB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True)
class SlabSpec:
    """One slab: rows `start:stop` (of the padded token axis) of one layer's keys or values, `size_bytes` long.

    For a sliding layer the rows are those of its window, oldest first, and `stop - start` is W - 1 or less.
    """

    layer: int
    part: Literal["keys", "values"]
    start: int
    stop: int
    size_bytes: int


def item_bytes(dtype: str) -> int:
    """Return the bytes of one element; raises ManifestError for a dtype outside the closed table."""
    if dtype not in _ITEM_BYTES:
        raise ManifestError(f"dtype {dtype!r} is not one of {', '.join(_ITEM_BYTES)}")
    return _ITEM_BYTES[dtype]


def pad_tokens(true_tokens: int) -> int:
    """Round a token count up so that only its size class shows: Padme, floor 64, then a multiple of 64.

    Padme (Nikitin et al., PoPETs 2019, algorithm 1) keeps the top log2(log2 n) + 1 bits of n, at most 12 % more;
    the rounding to 64 comes on top.
    """
    return -(-padme(max(true_tokens, GROUP_TOKENS)) // GROUP_TOKENS) * GROUP_TOKENS


def padme(size: int) -> int:
    """Round a positive size up to its class (see `pad_tokens`)."""
    exponent = size.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << max(low_bits, 0)) - 1
    return (size + mask) & ~mask


def require_coded_bytes(coded_bytes: int | None, layout: CacheLayout, padded_tokens: int) -> None:
    """Refuse a length that a cache in a codec of variable length cannot have.

    It is a size class, at least the slabs' lengths and first bytes, at most that of all slabs as they are. Raises
    LayoutMismatchError.
    """
    sizes = [slab.size_bytes for slab in slabs(layout, padded_tokens)]
    framing = (LENGTH_BYTES + 1) * len(sizes)
    most = padme(sum(sizes) + framing)
    if coded_bytes is None or not framing <= coded_bytes <= most or padme(coded_bytes) != coded_bytes:
        raise LayoutMismatchError("the cache's coded bytes are missing, no size class, or more than its layout needs")


def slabs(layout: CacheLayout, padded_tokens: int) -> Iterator[SlabSpec]:
    """Yield the slabs of a cache, with their lengths in codec `raw`.

    Token ranges outer, layers inner, sliding windows last; keys, then values.
    """
    for start in range(0, padded_tokens, RANGE_TOKENS):
        stop = min(start + RANGE_TOKENS, padded_tokens)
        for index, layer in enumerate(layout.layers):
            if layer.kind == "full":
                yield from _pair(index, layer, start, stop)
    for index, layer in enumerate(layout.layers):
        if layer.kind == "sliding":
            yield from _pair(index, layer, 0, min(layer.window - 1, padded_tokens))


def _pair(index: int, layer: LayerLayout, start: int, stop: int) -> Iterator[SlabSpec]:
    row = item_bytes(layer.dtype) * (stop - start)
    yield SlabSpec(index, "keys", start, stop, row * layer.key_heads * layer.key_dim)
    yield SlabSpec(index, "values", start, stop, row * layer.value_heads * layer.value_dim)


def cache_chunk_bytes(total_bytes: int) -> int:
    """Choose a cache stream's chunk size from its slab bytes: the smallest that makes 64 chunks at most, or 1 MiB."""
    for size in (64 * _KIB, 256 * _KIB):
        if total_bytes <= 64 * size:
            return size
    return _MIB
