"""The pure functions that both ends of a stream compute for themselves: padding, slab order and lengths, chunk sizes.

Nothing on the wire names a layer or a range: they follow from the authenticated manifest by these rules
(docs/format.md section 6).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

from splitinfer.errors import LayoutMismatchError, ManifestError
from splitinfer.handoff import CacheLayout, LayerLayout, RowRule, TensorLayout, TensorName

__all__ = [
    "LENGTH_BYTES",
    "RANGE_TOKENS",
    "SlabSpec",
    "cache_chunk_bytes",
    "certain_tokens",
    "held_rows",
    "item_bytes",
    "pad_new_tokens",
    "pad_tokens",
    "padme",
    "require_coded_bytes",
    "sent_rows",
    "slabs",
]

RANGE_TOKENS = 512
GROUP_TOKENS = 64
LENGTH_BYTES = 4
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KIB, _MIB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True)
class SlabSpec:
    """One slab: rows `start:stop` of one tensor's padded row axis, `size_bytes` long; a fixed state is one row.

    Rows are counted from the oldest that the layer holds: a window starts with its oldest row.
    """

    layer: int
    part: TensorName
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


def certain_tokens(padded_tokens: int) -> int:
    """Return the least token count of a size class: what every prompt of that class has at least.

    The inverse of `pad_tokens`, which never falls. Raises LayoutMismatchError for a count that is no size class.
    """
    if padded_tokens < 1 or pad_tokens(padded_tokens) != padded_tokens:
        raise LayoutMismatchError(f"{padded_tokens} tokens are no size class; pad the count first")
    return 1 + bisect.bisect_left(range(1, padded_tokens + 1), padded_tokens, key=pad_tokens)


def padme(size: int) -> int:
    """Round a positive size up to its class (see `pad_tokens`)."""
    exponent = size.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << max(low_bits, 0)) - 1
    return (size + mask) & ~mask


def require_coded_bytes(coded_bytes: int | None, layout: CacheLayout, padded_tokens: int, base_tokens: int = 0) -> None:
    """Refuse a length that a cache in a codec of variable length cannot have.

    It is a size class, at least the slabs' lengths and first bytes, at most that of all slabs as they are. Raises
    LayoutMismatchError.
    """
    sizes = [slab.size_bytes for slab in slabs(layout, padded_tokens, base_tokens)]
    framing = (LENGTH_BYTES + 1) * len(sizes)
    most = padme(sum(sizes) + framing)
    if coded_bytes is None or not framing <= coded_bytes <= most or padme(coded_bytes) != coded_bytes:
        raise LayoutMismatchError("the cache's coded bytes are missing, no size class, or more than its layout needs")


def held_rows(layer: LayerLayout, tensor: TensorLayout, tokens: int) -> int:
    """Return how many rows a tensor has after `tokens` tokens; a fixed state counts as one row.

    One a token; the last W - 1; one for every whole stride; what is left over; one stride once there is a whole one.
    """
    match tensor.rows:
        case "tokens":
            return tokens
        case "window":
            return min(tokens, layer.window - 1)
        case "entries":
            return tokens // layer.stride
        case "remainder":
            return tokens % layer.stride
        case "overlap":
            return layer.stride if tokens >= layer.stride else 0
    return 1


def sent_rows(layer: LayerLayout, tensor: TensorLayout, padded_tokens: int) -> int:
    """Return how many rows of a tensor travel: the most that any count of up to `padded_tokens` tokens has."""
    if tensor.rows == "remainder":
        return min(padded_tokens, layer.stride - 1)
    return held_rows(layer, tensor, padded_tokens)


def pad_new_tokens(true_tokens: int, base_tokens: int) -> int:
    """Return the padded count of a cache of which the recipient holds the first `base_tokens`: only the rest is padded.

    `padded - base` is the size class of the new tokens. Raises LayoutMismatchError where there is no new one.
    """
    if not 0 <= base_tokens < true_tokens:
        raise LayoutMismatchError("a transfer brings at least one token that is not there yet")
    return base_tokens + pad_tokens(true_tokens - base_tokens)


def slabs(layout: CacheLayout, padded_tokens: int, base_tokens: int = 0) -> Iterator[SlabSpec]:
    """Yield the slabs of a cache, with their lengths in codec `raw`.

    Token ranges outer, layers inner, then windows, then states. Within a layer tensors keep the layout's order; slabs
    of no rows are left out. With a base, rows of tokens and entries start there; what has one size travels whole, with
    the room of the size class of all tokens, so that lengths follow from two classes and not from the base.
    """
    whole_tokens = pad_tokens(padded_tokens) if base_tokens else padded_tokens
    for start in range(base_tokens, padded_tokens, RANGE_TOKENS):
        bounds = (start, min(start + RANGE_TOKENS, padded_tokens))
        for index, layer, tensor in _tensors(layout, "tokens", "entries"):
            first, last = (_rows_until(layer, tensor, end, base_tokens, padded_tokens) for end in bounds)
            yield from _slab(index, tensor, first, last)
    for index, layer, tensor in _tensors(layout, "window"):
        yield from _slab(index, tensor, 0, sent_rows(layer, tensor, whole_tokens))
    for index, layer, tensor in _tensors(layout, "remainder", "overlap", "fixed"):
        yield from _slab(index, tensor, 0, sent_rows(layer, tensor, whole_tokens))


def _rows_until(layer: LayerLayout, tensor: TensorLayout, tokens: int, base_tokens: int, padded_tokens: int) -> int:
    """Return how many rows lie before this token; entries are counted so that their number does not show the base."""
    if tensor.rows == "tokens" or not base_tokens:
        return held_rows(layer, tensor, tokens)
    # One more than whole strides: the base may end within one.
    return base_tokens // layer.stride + (tokens - base_tokens) // layer.stride + (tokens == padded_tokens)


def _tensors(layout: CacheLayout, *rules: RowRule) -> Iterator[tuple[int, LayerLayout, TensorLayout]]:
    for index, layer in enumerate(layout.layers):
        for tensor in layer.tensors:
            if tensor.rows in rules:
                yield index, layer, tensor


def _slab(index: int, tensor: TensorLayout, start: int, stop: int) -> Iterator[SlabSpec]:
    if start < stop:
        row = item_bytes(tensor.dtype) * math.prod(tensor.before) * math.prod(tensor.after)
        yield SlabSpec(index, tensor.name, start, stop, row * (stop - start))


def cache_chunk_bytes(total_bytes: int, *, is_small: bool = False) -> int:
    """Choose a cache stream's chunk size from its slab bytes: the smallest that makes 64 chunks at most, or 1 MiB.

    `is_small` admits the two smallest sizes, for codecs whose caches a chunk of 64 KiB would pad beyond their own size.
    """
    sizes = (512, 4 * _KIB, 64 * _KIB, 256 * _KIB)
    for size in sizes if is_small else sizes[2:]:
        if total_bytes <= 64 * size:
            return size
    return _MIB
