"""Codes <-> bit planes, component by component: codes [components, rows] <-> bytes [rows / 64, planes, 8]; both sides.

A block of 64 rows is the planes of its components one after another, a component's lowest bit first. A plane is 8
bytes: the bit of row r of the block is bit r % 8 of byte r // 8. So component i fills exactly 8 b bytes of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_ROWS", "PLANE_BYTES", "Width", "pack", "plane_count", "unpack", "widths_of"]

BLOCK_ROWS, PLANE_BYTES = 64, 8
Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Width:
    """Neighbouring components `start:stop` that have the same number of bits."""

    bits: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Return how many components there are."""
        return self.stop - self.start


def widths_of(bits: Sequence[int]) -> tuple[Width, ...]:
    """Join neighbouring components of equal bits; those without any are left out."""
    found: list[Width] = []
    for index, held in enumerate(bits):
        if found and found[-1].bits == held and found[-1].stop == index:
            found[-1] = Width(held, found[-1].start, index + 1)
        elif held:
            found.append(Width(int(held), index, index + 1))
    return tuple(found)


def plane_count(widths: Sequence[Width]) -> int:
    """Return how many planes a block has."""
    return sum(width.bits * width.count for width in widths)


def pack(codes: Codes, widths: Sequence[Width], packed: Codes) -> None:
    """Pack codes [components, rows], rows a multiple of 64, into `packed` [rows / 64, planes, 8]."""
    at = 0
    for width in widths:
        part = codes[width.start : width.stop]
        target = packed[:, at : at + width.bits * width.count].reshape(len(packed), width.count, width.bits, 8)
        for bit in range(width.bits):
            plane = np.packbits(part & np.uint8(1 << bit), axis=1, bitorder="little")
            target[:, :, bit] = plane.reshape(width.count, len(packed), 8).swapaxes(0, 1)
        packed[:, at : at + width.bits * width.count] = target.reshape(len(packed), -1, 8)
        at += width.bits * width.count


def unpack(packed: Codes, widths: Sequence[Width], codes: Codes) -> None:
    """Undo `pack`; any bytes are valid."""
    at = 0
    for width in widths:
        part, held = codes[width.start : width.stop], width.bits * width.count
        planes = packed[:, at : at + held].reshape(len(packed), width.count, width.bits, 8)
        part[:] = 0
        for bit in range(width.bits):
            plane = np.ascontiguousarray(planes[:, :, bit].swapaxes(0, 1)).reshape(width.count, -1)
            part |= np.unpackbits(plane, axis=1, bitorder="little") << np.uint8(bit)
        at += held
