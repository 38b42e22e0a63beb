"""Rules of first rows that stand as they are: kept, out of the others' groups, refused where no sender writes them."""

from __future__ import annotations

import math

import pytest
import torch

from splitinfer.codec.coder import SlabShape
from splitinfer.codec.first_rows import FIRST_ROWS, FirstRowsCoder
from splitinfer.codec.quantised import QuantisedCoder
from splitinfer.errors import CodecError, LayoutMismatchError

SHAPE = SlabShape(2, 64, 16, "float32")
FIRST_BYTES = 2 * 2 * FIRST_ROWS * 16


def coder() -> FirstRowsCoder:
    return FirstRowsCoder(QuantisedCoder(bits=5, axis="per_channel", group=128))


def encoded(rows: torch.Tensor, shape: SlabShape = SHAPE) -> torch.Tensor:
    slab = torch.full((coder().size_bytes(shape),), 255, dtype=torch.uint8)
    assert coder().encode(rows, slab, shape) == len(slab)
    return slab


def decoded(slab: torch.Tensor, held: int, shape: SlabShape = SHAPE) -> torch.Tensor:
    rows = torch.full((shape.heads, held, shape.dim), math.nan)
    coder().decode(slab, rows, shape)
    return rows


@pytest.mark.parametrize("held", [0, 1, 3, 4, 5, 64])
def test_first_rows_are_kept_as_bfloat16(held: int) -> None:
    rows = torch.randn(2, held, 16)
    back = decoded(encoded(rows), held)
    assert torch.equal(back[:, :FIRST_ROWS], rows[:, :FIRST_ROWS].bfloat16().float())


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_a_slab_of_few_rows_has_as_many_first_ones(rows: int) -> None:
    shape = SlabShape(2, rows, 16, "float32")
    drawn = torch.randn(2, rows, 16)
    assert float((decoded(encoded(drawn, shape), rows, shape) - drawn).abs().max()) < 0.2


def test_large_first_rows_do_not_widen_the_others_groups() -> None:
    rows = torch.randn(2, 60, 16)
    others = decoded(encoded(rows), 60)[:, FIRST_ROWS:]
    rows[:, :FIRST_ROWS] *= 1000
    assert torch.equal(decoded(encoded(rows), 60)[:, FIRST_ROWS:], others)


@pytest.mark.parametrize("element", [math.nan, math.inf, -40_000.0])
def test_a_first_row_that_cannot_be_carried_is_refused_on_packing(element: float) -> None:
    rows = torch.zeros(2, 10, 16)
    rows[1, 3, 15] = element
    with pytest.raises(CodecError, match="lossless"):
        encoded(rows)


@pytest.mark.parametrize("element", [math.nan, math.inf, -70_000.0])
def test_a_first_row_that_no_sender_writes_is_refused_on_arrival(element: float) -> None:
    slab = encoded(torch.zeros(2, 10, 16))
    slab[:FIRST_BYTES].view(torch.bfloat16)[7] = element
    with pytest.raises(LayoutMismatchError, match="first row"):
        decoded(slab, 10)


@pytest.mark.parametrize("element", [1.0, -0.0])
def test_padding_among_the_first_rows_is_zero_bits(element: float) -> None:
    slab = encoded(torch.randn(2, 2, 16))
    slab[:FIRST_BYTES].view(torch.bfloat16).view(2, FIRST_ROWS, 16)[1, 2, 0] = element
    with pytest.raises(LayoutMismatchError, match="padding row"):
        decoded(slab, 2)
