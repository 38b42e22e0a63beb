"""The `lossless` coder, bit-exact and of variable length: exponents through zstd, sign and mantissa as they are.

Each element's bits are turned left by one, so that its top byte is the exponent (for float16: exponent and three bits
of mantissa) and sign and mantissa are together below. Planes are one byte of every element.

    slab = 0x00 || elements as in `raw`
         | 0x01 || lower planes, lowest first || one zstd frame of the top plane

The frame's length is what is left. The first form stands where the second would not be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from splitinfer.codec.coder import SlabShape
from splitinfer.errors import LayoutMismatchError
from splitinfer.schedule import item_bytes

__all__ = ["LosslessCoder", "join", "split"]

# Small tables for repeats: exponents gain by their frequencies, and looking for repeats in large tables took most of
# the time and found no more.
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(1, hash_log=10, chain_log=6, search_log=1)
_STORED, _COMPRESSED = 0, 1
_INTEGERS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}
Words = NDArray[Any]
Plane = NDArray[np.uint8]


def split(words: Words, planes: Sequence[Plane], spare: Words) -> None:
    """Turn every word [n] left by one, in place, and spread its bytes over the planes [n], the lowest first.

    `spare` [n] is overwritten. Multiplying is what numpy does on whole vectors, shifting by 8 and more is not.
    """
    np.right_shift(words, 8 * words.itemsize - 1, out=spare)
    np.multiply(words, 2, out=words)
    np.bitwise_or(words, spare, out=words)
    for index, plane in enumerate(planes):
        if index:
            np.right_shift(words, 8, out=words)
        # Casting to bytes keeps the low eight bits.
        np.copyto(plane, words, casting="unsafe")


def join(planes: Sequence[Plane], words: Words, spare: Words) -> None:
    """Undo `split`; `words` is written only."""
    np.copyto(words, planes[-1])
    for plane in planes[-2::-1]:
        np.copyto(spare, plane)
        np.multiply(words, 256, out=words)
        np.bitwise_or(words, spare, out=words)
    np.multiply(words, 1 << (8 * words.itemsize - 1), out=spare)
    np.right_shift(words, 1, out=words)
    np.bitwise_or(words, spare, out=words)


class LosslessCoder:
    """Compresses exponents; implements `SlabCoder`."""

    is_variable = True

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        self._decompressor = zstandard.ZstdDecompressor()
        self._words: Plane = np.empty(0, dtype=np.uint8)
        self._plane: Plane = np.empty(0, dtype=np.uint8)

    def size_bytes(self, shape: SlabShape) -> int:
        """Return the most bytes that a slab can have: a first byte and the rows as they are."""
        return 1 + shape.raw_bytes

    def encode(self, rows: torch.Tensor, slab: torch.Tensor, shape: SlabShape) -> int:
        """Compress the rows and zero rows as padding."""
        held, lower = rows.shape[1], shape.raw_bytes - shape.elements
        out, top = slab.numpy(), self._top(shape)
        planes = [*_planes(out[1 : 1 + lower], shape), top]
        for plane in planes:
            _as_rows(plane, shape)[:, held:] = 0
        for head in range(shape.heads):
            words, spare = self._pair(held * shape.dim, shape.dtype)
            np.copyto(words.reshape(held, shape.dim), _bits(rows[head], shape.dtype))
            split(words, [_as_rows(plane, shape)[head, :held].reshape(-1) for plane in planes], spare)
        frame = np.frombuffer(self._compressor.compress(top.data), dtype=np.uint8)
        if len(frame) >= shape.elements:
            return _store(rows, out, shape)
        out[0] = _COMPRESSED
        out[1 + lower : 1 + lower + len(frame)] = frame
        return 1 + lower + len(frame)

    def decode(self, slab: torch.Tensor, rows: torch.Tensor, shape: SlabShape) -> None:
        """Undo `encode`; raises LayoutMismatchError for a slab or frame of another length or form."""
        data, held = slab.numpy(), rows.shape[1]
        lower = shape.raw_bytes - shape.elements
        if len(data) == 1 + shape.raw_bytes and data[0] == _STORED:
            _restore(data, rows, shape)
        elif len(data) > 1 + lower and data[0] == _COMPRESSED:
            top = self._decompressed(data[1 + lower :], shape.elements)
            planes = [_as_rows(plane, shape) for plane in (*_planes(data[1 : 1 + lower], shape), top)]
            _require_zeros(*(plane[:, held:] for plane in planes))
            for head in range(shape.heads):
                words = _bits(rows[head].view(-1), shape.dtype)
                spare = self._pair(len(words), shape.dtype)[1]
                join([plane[head, :held].reshape(-1) for plane in planes], words, spare)
        else:
            raise LayoutMismatchError("a compressed slab has an unknown form or another length than its rows need")

    def wipe(self) -> None:
        """Zero the scratch memory."""
        self._words.fill(0)
        self._plane.fill(0)

    def _decompressed(self, frame: Plane, elements: int) -> Plane:
        try:
            # The length that a frame declares is what is allocated, so it is compared first.
            if zstandard.frame_content_size(frame.data) != elements:
                raise LayoutMismatchError("a compressed slab declares another length than its rows need")
            plane = self._decompressor.decompress(frame.data, max_output_size=elements, allow_extra_data=False)
        except zstandard.ZstdError:
            raise LayoutMismatchError("a compressed slab cannot be decompressed") from None
        return np.frombuffer(plane, dtype=np.uint8)

    def _top(self, shape: SlabShape) -> Plane:
        """Return a plane [elements]."""
        if self._plane.size < shape.elements:
            self._plane.fill(0)
            self._plane = np.empty(shape.elements, dtype=np.uint8)
        return self._plane[: shape.elements]

    def _pair(self, count: int, dtype: str) -> tuple[Words, Words]:
        """Return two times `count` words, for one head at a time: few enough to stay in a core's own cache."""
        kind = np.dtype(_INTEGERS[item_bytes(dtype)][1])
        if self._words.size < 2 * count * kind.itemsize:
            self._words.fill(0)
            self._words = np.empty(2 * count * kind.itemsize, dtype=np.uint8)
        words = self._words[: 2 * count * kind.itemsize].view(kind)
        return words[:count], words[count:]


def _bits(rows: torch.Tensor, dtype: str) -> Words:
    """View a tensor's elements as unsigned integers."""
    signed, unsigned = _INTEGERS[item_bytes(dtype)]
    bits: Words = rows.view(signed).numpy().view(unsigned)
    return bits


def _planes(lower: Plane, shape: SlabShape) -> Plane:
    """View all planes but the top one."""
    return lower.reshape(item_bytes(shape.dtype) - 1, shape.elements)


def _as_rows(plane: Plane, shape: SlabShape) -> Plane:
    return plane.reshape(shape.heads, shape.rows, plane.size // max(1, shape.heads * shape.rows))


def _store(rows: torch.Tensor, out: Plane, shape: SlabShape) -> int:
    """Write the form that is not compressed; returns its length."""
    size = 1 + shape.raw_bytes
    out[0], out[1:size] = _STORED, 0
    stored = _as_rows(out[1:size], shape)
    for head, row in enumerate(rows if rows.numel() else ()):
        stored[head, : len(row)] = _bits(row, shape.dtype).view(np.uint8)
    return size


def _restore(data: Plane, rows: torch.Tensor, shape: SlabShape) -> None:
    """Undo `_store`."""
    stored, held = _as_rows(data[1:], shape), rows.shape[1]
    _require_zeros(stored[:, held:])
    for head, row in enumerate(rows if rows.numel() else ()):
        _bits(row, shape.dtype).view(np.uint8)[:] = stored[head, :held]


def _require_zeros(*padding: Plane) -> None:
    if any(part.any() for part in padding):
        raise LayoutMismatchError("a padding row is not zero")
