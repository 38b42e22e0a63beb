"""A coder before which a slab's first rows stand as bfloat16: first tokens are unlike all others; both sides.

    slab = rows 0:n, bfloat16 [heads, n, dim] || the other rows, in the coder that is wrapped        n = min(4, rows)

Attention collects on a text's first tokens (Xiao et al., ICLR 2024), and their keys and values lie far from the rest:
in a group with others they stretch its scale, and what is lost of them is lost in every later token. Every slab has
such rows, so that its length is a function of its shape alone.
"""

from __future__ import annotations

import torch

from splitinfer.codec.coder import SlabCoder, SlabShape
from splitinfer.codec.quantised import MAX_FP16, require_carriable_rows
from splitinfer.errors import LayoutMismatchError

__all__ = ["FIRST_ROWS", "FirstRowsCoder"]

FIRST_ROWS = 4
_BYTES = 2


class FirstRowsCoder:
    """Keeps the first rows and hands the others on; implements `SlabCoder`."""

    is_variable = False

    def __init__(self, others: SlabCoder) -> None:
        self._others = others

    def size_bytes(self, shape: SlabShape) -> int:
        """Return the bytes of the first rows and of the others."""
        first, others = _parted(shape)
        return _BYTES * first.elements + self._others.size_bytes(others)

    def encode(self, rows: torch.Tensor, slab: torch.Tensor, shape: SlabShape) -> int:
        """Copy the first rows and encode the others; raises CodecError for NaN, infinity and what is too large."""
        (first, others), kept = _parted(shape), rows[:, :FIRST_ROWS]
        require_carriable_rows(kept)
        target = _first(slab, first)
        target[:, : kept.shape[1]] = kept
        target[:, kept.shape[1] :] = 0
        self._others.encode(rows[:, FIRST_ROWS:], slab[_BYTES * first.elements :], others)
        return len(slab)

    def decode(self, slab: torch.Tensor, rows: torch.Tensor, shape: SlabShape) -> None:
        """Undo `encode`; raises LayoutMismatchError for first rows that are not finite, and as the wrapped one does."""
        (first, others), target = _parted(shape), rows[:, :FIRST_ROWS]
        received = _first(slab, first)
        # Written so that NaN does not pass; fp16 caches must hold it.
        if received.numel() and not float(received.abs().amax()) <= MAX_FP16:
            raise LayoutMismatchError("a first row is not finite, or too large")
        padding = received[:, target.shape[1] :].contiguous()
        if padding.numel() and bool(padding.view(torch.uint8).any()):
            raise LayoutMismatchError("a padding row is not zero")
        target.copy_(received[:, : target.shape[1]])
        self._others.decode(slab[_BYTES * first.elements :], rows[:, FIRST_ROWS:], others)

    def wipe(self) -> None:
        """Zero the scratch memory."""
        self._others.wipe()


def _parted(shape: SlabShape) -> tuple[SlabShape, SlabShape]:
    first = min(FIRST_ROWS, shape.rows)
    return (
        SlabShape(shape.heads, first, shape.dim, shape.dtype),
        SlabShape(shape.heads, shape.rows - first, shape.dim, shape.dtype),
    )


def _first(slab: torch.Tensor, shape: SlabShape) -> torch.Tensor:
    data = slab[: _BYTES * shape.elements].view(torch.bfloat16)
    return data.view(shape.heads, shape.rows, shape.dim)
