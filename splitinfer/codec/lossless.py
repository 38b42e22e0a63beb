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

_LEVEL = 1
_STORED, _COMPRESSED = 0, 1
_INTEGERS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}
Words = NDArray[Any]
Plane = NDArray[np.uint8]


def split(words: Words, planes: Plane) -> None:
    """Turn every word [n] left by one, in place, and spread its bytes over `planes` [bytes of a word, n]."""
    width = 8 * words.itemsize
    top_bit = words >> (width - 1)
    np.left_shift(words, 1, out=words)
    np.bitwise_or(words, top_bit, out=words)
    for index, plane in enumerate(planes):
        # Assigning to bytes keeps the low eight bits.
        plane[:] = words >> (8 * index) if index else words


def join(planes: Sequence[Plane], words: Words) -> None:
    """Undo `split`."""
    words[:] = planes[-1]
    for plane in planes[-2::-1]:
        np.left_shift(words, 8, out=words)
        np.bitwise_or(words, plane, out=words)
    low_bit = words << (8 * words.itemsize - 1)
    np.right_shift(words, 1, out=words)
    np.bitwise_or(words, low_bit, out=words)


class LosslessCoder:
    """Compresses exponents; implements `SlabCoder`."""

    is_variable = True

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()
        self._words = torch.empty(0, dtype=torch.uint8)
        self._planes = torch.empty(0, dtype=torch.uint8)

    def size_bytes(self, shape: SlabShape) -> int:
        """Return the most bytes that a slab can have: a first byte and the rows as they are."""
        return 1 + shape.raw_bytes

    def encode(self, rows: torch.Tensor, slab: torch.Tensor, shape: SlabShape) -> int:
        """Compress the rows and zero rows as padding."""
        padded, planes = self._scratch(shape)
        padded[:, : rows.shape[1]].copy_(rows.view(padded.dtype))
        padded[:, rows.shape[1] :] = 0
        words, out = _words(padded, shape), slab.numpy()
        split(words, planes)
        frame = np.frombuffer(self._compressor.compress(planes[-1].data), dtype=np.uint8)
        lower = shape.raw_bytes - shape.elements
        size = 1 + lower + min(len(frame), shape.elements)
        if len(frame) < shape.elements:
            out[0] = _COMPRESSED
            out[1 : 1 + lower] = planes[:-1].reshape(-1)
            out[1 + lower : size] = frame
        else:
            join([*planes], words)
            out[0] = _STORED
            out[1:size] = padded.view(torch.uint8).view(-1).numpy()
        return size

    def decode(self, slab: torch.Tensor, rows: torch.Tensor, shape: SlabShape) -> None:
        """Undo `encode`; raises LayoutMismatchError for a slab or frame of another length or form."""
        padded, planes = self._scratch(shape)
        data = slab.numpy()
        lower = shape.raw_bytes - shape.elements
        if len(data) == 1 + shape.raw_bytes and data[0] == _STORED:
            padded.view(torch.uint8).view(-1).numpy()[:] = data[1:]
        elif len(data) > 1 + lower and data[0] == _COMPRESSED:
            top = self._decompressed(data[1 + lower :], shape.elements)
            join([*data[1 : 1 + lower].reshape(len(planes) - 1, -1), top], _words(padded, shape))
        else:
            raise LayoutMismatchError("a compressed slab has an unknown form or another length than its rows need")
        held = rows.shape[1]
        if bool(padded[:, held:].any()):
            raise LayoutMismatchError("a padding row is not zero")
        rows.view(padded.dtype).copy_(padded[:, :held])

    def wipe(self) -> None:
        """Zero the scratch memory."""
        self._words.zero_()
        self._planes.zero_()

    def _decompressed(self, frame: Plane, elements: int) -> Plane:
        try:
            # The length that a frame declares is what is allocated, so it is compared first.
            if zstandard.frame_content_size(frame.data) != elements:
                raise LayoutMismatchError("a compressed slab declares another length than its rows need")
            plane = self._decompressor.decompress(frame.data, max_output_size=elements, allow_extra_data=False)
        except zstandard.ZstdError:
            raise LayoutMismatchError("a compressed slab cannot be decompressed") from None
        return np.frombuffer(plane, dtype=np.uint8)

    def _scratch(self, shape: SlabShape) -> tuple[torch.Tensor, Plane]:
        """Return integers [heads, rows, dim] of the elements' width, and planes [bytes of an element, elements]."""
        if self._words.numel() < shape.raw_bytes:
            self.wipe()
            self._words = torch.empty(shape.raw_bytes, dtype=torch.uint8)
            self._planes = torch.empty(shape.raw_bytes, dtype=torch.uint8)
        words = self._words[: shape.raw_bytes].view(_INTEGERS[item_bytes(shape.dtype)][0])
        planes = self._planes[: shape.raw_bytes].numpy().reshape(item_bytes(shape.dtype), shape.elements)
        return words.view(shape.heads, shape.rows, shape.dim), planes


def _words(padded: torch.Tensor, shape: SlabShape) -> Words:
    words: Words = padded.view(-1).numpy().view(_INTEGERS[item_bytes(shape.dtype)][1])
    return words
