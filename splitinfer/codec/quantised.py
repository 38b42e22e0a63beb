"""The lossy coders: rows -> 8, 6, 5 or 4 bits an element with an fp16 scale and minimum a group, and back; both sides.

    slab = scales (fp16) || minima (fp16) || codes (`packing`)          padding is zero in all three
    element = minimum + code x scale                                    computed in float32

`per_channel` groups neighbouring rows of one head and channel, 64 or 128: the channels of keys differ in size far more
than their rows do (KIVI, Liu et al., ICML 2024). `per_token` groups up to 64 neighbouring channels of one row.
Groups start at the first row, and a slab never crosses a token range.

The error: scale and minimum are rounded outwards, so that a group's range is covered and no code is cut off. An element
is off by at most scale / 2, but for float32 rounding (below scale / 16), and then rounded to the cache's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec import packing
from splitinfer.codec.coder import SlabShape
from splitinfer.errors import CodecError, LayoutMismatchError
from splitinfer.handoff import TensorName

__all__ = [
    "GROUP",
    "MAX_ABSOLUTE",
    "MAX_FP16",
    "ROUNDED",
    "Axis",
    "QuantisedCoder",
    "require_carriable",
    "require_carriable_rows",
]

ROUNDED: tuple[TensorName, ...] = ("keys", "values")

Axis = Literal["per_channel", "per_token"]

GROUP = 64
MAX_ABSOLUTE = 2.0**15
MAX_FP16 = 65504.0
# Half of fp16's spacing is at most 2^-11 of a normal number, and 2^-25 below them. A scale is at least the latter's
# double, so that a minimum rounded up by 2^-25 cuts nothing off.
_RELATIVE_MARGIN, _ABSOLUTE_MARGIN = 2.0**-10, 2.0**-24
_STAT_BYTES = 4
_INTEGERS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole groups of one length as a view [heads, a, b, c] that is reduced over `axis`, and where their stats lie."""

    elements: torch.Tensor
    stats: tuple[slice, ...]
    axis: int


class QuantisedCoder:
    """Quantises along one axis at one number of bits; implements `SlabCoder`."""

    is_variable = False

    def __init__(self, *, bits: int, axis: Axis, group: int = GROUP) -> None:
        self._bits, self._axis, self._group = bits, axis, group
        self._levels = 2**bits - 1
        self._floats = torch.empty(0)
        self._codes = torch.empty(0, dtype=torch.uint8)

    def size_bytes(self, shape: SlabShape) -> int:
        """Return the bytes of scales, minima and codes."""
        return _STAT_BYTES * math.prod(self._stats_shape(shape)) + packing.packed_bytes(shape.elements, self._bits)

    def encode(self, rows: torch.Tensor, slab: torch.Tensor, shape: SlabShape) -> int:
        """Quantise the rows; raises CodecError for NaN, infinity and elements beyond +-32,768."""
        scales, minima, packed = self._parts(slab, shape)
        floats, codes = self._scratch(shape, packed)
        held, padded = rows.shape[1], _as_rows(codes, shape)
        floats = floats[:, :held]
        floats.copy_(rows)
        for block in _blocks(floats, self._axis, self._group):
            _quantise(block, scales[block.stats], minima[block.stats], self._levels)
        # numpy cuts off straight to bytes; torch does it several times faster only by way of wider integers.
        np.copyto(padded[:, :held].numpy(), floats.numpy(), casting="unsafe")
        if held < shape.rows or codes.numel() > shape.elements:
            used = self._used(held)
            for padding in (scales[:, used:], minima[:, used:], padded[:, held:], codes[shape.elements :]):
                padding.zero_()
        if codes is not packed:
            packing.pack(codes, packed, bits=self._bits)
        return len(slab)

    def decode(self, slab: torch.Tensor, rows: torch.Tensor, shape: SlabShape) -> None:
        """Undo `encode`; raises LayoutMismatchError for scales that are not finite, and for non-zero padding."""
        scales, minima, packed = self._parts(slab, shape)
        floats, codes = self._scratch(shape, packed)
        held, padded = rows.shape[1], _as_rows(codes, shape)
        if codes is not packed:
            packing.unpack(packed, codes, bits=self._bits)
        used = self._used(held)
        _require_zero_padding(scales[:, used:], minima[:, used:], padded[:, held:], codes[shape.elements :])
        scale, minimum = scales.float(), minima.float()
        _require_usable(scale, minimum, self._levels)
        floats = floats[:, :held]
        floats.copy_(padded[:, :held])
        for block in _blocks(floats, self._axis, self._group):
            block.elements.mul_(_at(scale, block)).add_(_at(minimum, block))
        rows.copy_(floats)

    def wipe(self) -> None:
        """Zero the scratch memory."""
        self._floats.zero_()
        self._codes.zero_()

    def _stats_shape(self, shape: SlabShape) -> tuple[int, int, int]:
        if self._axis == "per_channel":
            return shape.heads, -(-shape.rows // self._group), shape.dim
        return shape.heads, shape.rows, -(-shape.dim // self._group)

    def _used(self, held: int) -> int:
        """Return how far the stats of `held` true rows reach."""
        return -(-held // self._group) if self._axis == "per_channel" else held

    def _parts(self, slab: torch.Tensor, shape: SlabShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """View a slab as scales and minima [heads, groups, dim] or [heads, rows, groups], and packed codes."""
        stats_shape = self._stats_shape(shape)
        split = _STAT_BYTES * math.prod(stats_shape)
        scales, minima = slab[:split].view(torch.float16).view(2, *stats_shape)
        return scales, minima, slab[split:]

    def _scratch(self, shape: SlabShape, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 rows, and codes one a byte, which 8-bit codes are in the slab itself."""
        count = packing.code_count(shape.elements, self._bits)
        if self._floats.numel() < count:
            self.wipe()
            self._floats = torch.empty(count)
            self._codes = torch.empty(0 if self._bits == 8 else count, dtype=torch.uint8)
        codes = packed if self._bits == 8 else self._codes[:count]
        return _as_rows(self._floats, shape), codes


def require_carriable(snapshot: CacheSnapshot) -> None:
    """Raise CodecError for a snapshot with NaN, infinity or an element beyond +-32,768."""
    for layer in snapshot.layers:
        for name in ROUNDED:
            if (tensor := layer.get(name)) is not None:
                require_carriable_rows(tensor)


def _quantise(block: _Block, scales: torch.Tensor, minima: torch.Tensor, levels: int) -> None:
    """Turn a block's elements into codes plus a half, to be cut off, and store their groups' scales and minima."""
    # Two reductions: `torch.aminmax` along a dimension is several times slower.
    low, high = block.elements.amin(block.axis), block.elements.amax(block.axis)
    _require_finite(low, high)
    minima.copy_(torch.add(low, low.abs(), alpha=-_RELATIVE_MARGIN))
    minimum = minima.float()
    # Never zero, so that there is an inverse: a group of equal elements has the smallest scale and code 0 or 1.
    scales.copy_(high.sub_(minimum).mul_((1 + _RELATIVE_MARGIN) / levels).add_(_ABSOLUTE_MARGIN))
    scale = scales.float()
    offset = torch.add(minimum, scale, alpha=-0.5).unsqueeze_(block.axis)
    block.elements.sub_(offset).mul_(scale.reciprocal_().unsqueeze_(block.axis))


def _blocks(rows: torch.Tensor, axis: Axis, group: int) -> Iterator[_Block]:
    """Cut rows [heads, rows, dim] into whole groups, and a last block of shorter ones."""
    heads, held, dim = rows.shape
    dimension, length = (1, held) if axis == "per_channel" else (2, dim)
    whole = length // group * group
    for start, stop in ((0, whole), (whole, length)):
        if start == stop or not rows.numel():
            continue
        size = min(group, stop - start)
        part = rows.narrow(dimension, start, stop - start)
        groups = slice(start // group, -(-stop // group))
        if axis == "per_channel":
            yield _Block(part.view(heads, -1, size, dim), (slice(None), groups), 2)
        else:
            yield _Block(part.view(heads, held, -1, size), (slice(None), slice(0, held), groups), 3)


def _as_rows(flat: torch.Tensor, shape: SlabShape) -> torch.Tensor:
    return flat[: shape.elements].view(shape.heads, shape.rows, shape.dim)


def _at(stats: torch.Tensor, block: _Block) -> torch.Tensor:
    return stats[block.stats].unsqueeze(block.axis)


def require_carriable_rows(elements: torch.Tensor) -> None:
    """Raise CodecError where an element is NaN, infinite or beyond +-32,768."""
    # Floats of one sign are ordered as their bits are, NaN and infinity above all numbers; integers compare faster.
    signed, unsigned = _INTEGERS[elements.itemsize]
    bits = elements.view(signed).numpy()
    most = int(torch.tensor(MAX_ABSOLUTE, dtype=elements.dtype).view(signed))
    negative = most + (1 << (8 * elements.itemsize - 1))
    if bits.size and (int(bits.max()) > most or int(bits.view(unsigned).max()) > negative):
        raise _not_carriable()


def _require_finite(low: torch.Tensor, high: torch.Tensor) -> None:
    # Written so that NaN does not pass: both extremes of a group that holds one are NaN.
    if not (float(low.amin()) >= -MAX_ABSOLUTE and float(high.amax()) <= MAX_ABSOLUTE):
        raise _not_carriable()


def _not_carriable() -> CodecError:
    return CodecError(
        f"the cache holds NaN, infinity or an element beyond +-{MAX_ABSOLUTE:,.0f}, which a lossy codec cannot carry; "
        'write codec = "raw" or "lossless"'
    )


def _require_usable(scales: torch.Tensor, minima: torch.Tensor, levels: int) -> None:
    # Written so that NaN does not pass; the top of a group must be finite in every dtype.
    top = torch.add(minima.abs(), scales, alpha=levels)
    if scales.numel() and not (float(scales.amin()) >= 0 and float(top.amax()) <= MAX_FP16):
        raise LayoutMismatchError("a scale or minimum is negative, not finite, or too large")


def _require_zero_padding(scales: torch.Tensor, minima: torch.Tensor, codes: torch.Tensor, rest: torch.Tensor) -> None:
    # Scales are compared as bits: a negative zero is not the zero that `encode` writes.
    stats = (part.contiguous().view(torch.uint8) for part in (scales, minima) if part.numel())
    if any(bool(part.any()) for part in (*stats, codes, rest) if part.numel()):
        raise LayoutMismatchError("a padding row is not zero")
