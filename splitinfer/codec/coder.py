"""What a codec is made of: one tensor's rows [heads, rows, dim] <-> the bytes of one slab; both sides.

A coder holds scratch memory, so every packed cache and every sink makes its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from splitinfer.schedule import item_bytes

__all__ = ["SlabCoder", "SlabShape"]


@dataclass(frozen=True, slots=True)
class SlabShape:
    """The rows that one slab holds, padding rows included."""

    heads: int
    rows: int
    dim: int
    dtype: str

    @property
    def elements(self) -> int:
        """Return heads x rows x dim."""
        return self.heads * self.rows * self.dim

    @property
    def raw_bytes(self) -> int:
        """Return the bytes of these rows as they are."""
        return self.elements * item_bytes(self.dtype)


class SlabCoder(Protocol):
    """One way to write rows; a slab's length is a function of its shape unless `is_variable`."""

    @property
    def is_variable(self) -> bool:
        """Tell whether the length depends on the contents."""

    def size_bytes(self, shape: SlabShape) -> int:
        """Return the length of a slab, or the most that it can have where it is variable."""

    def encode(self, rows: torch.Tensor, slab: torch.Tensor, shape: SlabShape) -> int:
        """Write the true rows [heads, at most shape.rows, dim] into `slab` [size_bytes] of uint8; return its length.

        Raises CodecError for rows that this codec cannot carry.
        """

    def decode(self, slab: torch.Tensor, rows: torch.Tensor, shape: SlabShape) -> None:
        """Write the true rows into `rows` and drop the padding.

        Raises LayoutMismatchError for bytes that no sender writes, non-zero padding rows among them.
        """

    def wipe(self) -> None:
        """Zero the scratch memory."""
