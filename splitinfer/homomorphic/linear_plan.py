"""A matrix and its input in slots: LinearShape -> LinearPlan, vectors <-> complex slots; pure numpy, both sides.

A ciphertext's slots are a table of `rows` output rows by `groups`, row-major. A group holds the products of some input
columns; the device sums the groups after decryption. Two halves of the input are real and imaginary part, against the
conjugate halves of the matrix, so that the real part of a slot is what counts. Inputs of more than two ciphertexts'
slots are cut into equal chunks, whose products are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import CryptoParameterError, LayoutMismatchError

__all__ = ["LinearPlan", "LinearShape", "pack_input", "plan_linear", "unpack_result", "weight_diagonals"]

Rows: TypeAlias = NDArray[np.floating[Any]]
Slots: TypeAlias = NDArray[np.complex128]
# Milliseconds at ring degree 4096, as in `planning`: a rotation of an input, a sum rescaled and turned, a product with
# an encoded plaintext, a ciphertext on the wire and in the device's hands.
_ROTATE, _TURNED_SUM, _MULTIPLY, _CIPHERTEXT = 1.13, 0.87, 0.14, 3.0
_MIN_ROWS = 32


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A matrix of `outputs` rows and `inputs` columns."""

    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """One placement of a matrix: `chunks` input ciphertexts, `tables` output ciphertexts of rows x groups slots.

    `period` is how many columns a chunk's row runs through, in `parts` column ranges; each group covers one part and
    `diagonals` of its columns.
    """

    shape: LinearShape
    slots: int
    chunks: int
    rows: int
    parts: int
    diagonals: int
    babies: int

    @property
    def groups(self) -> int:
        """Return how many sums lie beside each other in a row."""
        return self.slots // self.rows

    @property
    def period(self) -> int:
        """Return the columns of one part."""
        return min(self.rows, _power_above(_half(self.shape, self.chunks)))

    @property
    def used_groups(self) -> int:
        """Return how many groups hold something."""
        return self.parts * (self.period // self.diagonals)

    @property
    def tables(self) -> int:
        """Return how many output ciphertexts there are."""
        return -(-self.shape.outputs // self.rows)

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the rotations that the product needs."""
        turns = [*range(1, self.babies), *range(self.babies, self.diagonals, self.babies)]
        return tuple(self.groups * step for step in turns)

    @property
    def cost(self) -> float:
        """Estimate the time of one product; only to compare plans."""
        rotations, sums = self.chunks * (self.babies - 1), self.tables * self.diagonals // self.babies
        products = self.chunks * self.tables * self.diagonals
        return rotations * _ROTATE + sums * _TURNED_SUM + products * _MULTIPLY + self.tables * _CIPHERTEXT

    def columns(self) -> NDArray[np.int64]:
        """Return the column of a chunk's half at [rows, used groups], for diagonal 0."""
        part, span = np.divmod(np.arange(self.used_groups), self.period // self.diagonals)
        row = np.arange(self.rows)[:, None]
        found: NDArray[np.int64] = part * self.period + (row + span * self.diagonals) % self.period
        return found


def _power_above(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _half(shape: LinearShape, chunks: int) -> int:
    return -(-shape.inputs // (2 * chunks))


def _candidates(shape: LinearShape, slots: int) -> Iterator[LinearPlan]:
    chunks = -(-shape.inputs // (2 * slots))
    width, most_rows = _power_above(_half(shape, chunks)), max(_power_above(shape.outputs), _MIN_ROWS)
    rows = min(_MIN_ROWS, slots)
    while rows <= min(slots, most_rows):
        period, groups = min(rows, width), slots // rows
        parts = width // period
        if groups >= parts:
            diagonals = period // min(groups // parts, period)
            for babies in (1 << i for i in range(diagonals.bit_length())):
                yield LinearPlan(shape, slots, chunks, rows, parts, diagonals, babies)
        rows *= 2


def plan_linear(shape: LinearShape, *, slots: int) -> LinearPlan:
    """Choose the cheapest plan of a matrix; raises CryptoParameterError for an empty one."""
    if min(shape.outputs, shape.inputs) < 1:
        raise CryptoParameterError(f"a matrix of {shape.outputs} x {shape.inputs} has nothing to multiply")
    return min(_candidates(shape, slots), key=lambda plan: plan.cost)


def _halves(plan: LinearPlan, rows: Rows) -> tuple[Rows, Rows]:
    """[..., inputs] -> two halves of every chunk, [chunks, ..., period * parts]."""
    half, width = _half(plan.shape, plan.chunks), plan.period * plan.parts
    padded = np.zeros((*rows.shape[:-1], plan.chunks * 2 * half))
    padded[..., : plan.shape.inputs] = rows
    found = np.zeros((2, plan.chunks, *rows.shape[:-1], width))
    cut = np.moveaxis(padded.reshape(*rows.shape[:-1], plan.chunks, 2, half), (-2, -3), (0, 1))
    found[..., :half] = cut
    return found[0], found[1]


def pack_input(plan: LinearPlan, vector: Rows) -> Slots:
    """[inputs] -> [chunks, slots]; raises LayoutMismatchError for another length."""
    if vector.shape != (plan.shape.inputs,):
        raise LayoutMismatchError(f"an input has shape {vector.shape}, expected ({plan.shape.inputs},)")
    real, imaginary = _halves(plan, vector)
    table = np.zeros((plan.chunks, plan.rows, plan.groups), np.complex128)
    table[..., : plan.used_groups] = (real + 1j * imaginary)[:, plan.columns()]
    return table.reshape(plan.chunks, plan.slots)


def weight_diagonals(plan: LinearPlan, weight: Rows) -> Iterator[tuple[int, int, Slots]]:
    """Yield (chunk, table, diagonals [diagonals, slots]) of a matrix [outputs, inputs], one table at a time."""
    if weight.shape != (plan.shape.outputs, plan.shape.inputs):
        raise LayoutMismatchError(f"a matrix has shape {weight.shape}, expected {plan.shape}")
    columns = plan.columns()
    for at in range(plan.tables):
        part = np.zeros((plan.rows, plan.shape.inputs))
        held = weight[at * plan.rows : (at + 1) * plan.rows]
        part[: len(held)] = held
        real, imaginary = _halves(plan, part)
        for chunk in range(plan.chunks):
            yield chunk, at, _table_diagonals(plan, real[chunk] - 1j * imaginary[chunk], columns)


def _table_diagonals(plan: LinearPlan, matrix: Slots, columns: NDArray[np.int64]) -> Slots:
    row, base = np.arange(plan.rows)[:, None], columns // plan.period * plan.period
    found = np.zeros((plan.diagonals, plan.rows, plan.groups), np.complex128)
    for j in range(plan.diagonals):
        diagonal = matrix[row, base + (columns + j) % plan.period]
        found[j, :, : plan.used_groups] = np.roll(diagonal, j // plan.babies * plan.babies, axis=0)
    return found.reshape(plan.diagonals, plan.slots)


def unpack_result(plan: LinearPlan, slots: Slots) -> Rows:
    """[tables, slots] -> [outputs]; the sum over groups happens here, in the clear."""
    table = slots.reshape(plan.tables * plan.rows, plan.groups)[:, : plan.used_groups]
    result: Rows = table.real.sum(axis=1)[: plan.shape.outputs]
    return result
