"""The `raw` coder, bit-exact: rows as they are, little-endian, C order [heads, rows, dim], zero rows as padding."""

from __future__ import annotations

import torch

from splitinfer.cache.snapshot import DTYPES
from splitinfer.codec.coder import SlabShape
from splitinfer.errors import LayoutMismatchError

__all__ = ["RawCoder"]


class RawCoder:
    """Copies; implements `SlabCoder`."""

    is_variable = False

    def size_bytes(self, shape: SlabShape) -> int:
        """Return the bytes of the rows."""
        return shape.raw_bytes

    def encode(self, rows: torch.Tensor, slab: torch.Tensor, shape: SlabShape) -> int:
        """Copy the rows and zero the padding."""
        padded = _as_rows(slab, shape)
        padded[:, : rows.shape[1]] = rows
        padded[:, rows.shape[1] :] = 0
        return shape.raw_bytes

    def decode(self, slab: torch.Tensor, rows: torch.Tensor, shape: SlabShape) -> None:
        """Copy the true rows; raises LayoutMismatchError where a padding row is not zero."""
        received = _as_rows(slab, shape)
        rows.copy_(received[:, : rows.shape[1]])
        padding = received[:, rows.shape[1] :].contiguous()
        # Compared as bits: a negative zero is not the zero that `encode` writes.
        if padding.numel() and bool(padding.view(torch.uint8).any()):
            raise LayoutMismatchError("a padding row is not zero")

    def wipe(self) -> None:
        """Do nothing: there is no scratch memory."""


def _as_rows(slab: torch.Tensor, shape: SlabShape) -> torch.Tensor:
    return slab.view(DTYPES[shape.dtype]).view(shape.heads, shape.rows, shape.dim)
