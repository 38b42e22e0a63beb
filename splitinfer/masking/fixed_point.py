"""Numbers in fixed point: matrices and vectors -> integers and factors, and back; pure numpy, on both sides.

A product of n columns is below 2^(15 + 15) n in magnitude, so that it never leaves Z_2^48 for n up to 2^16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import CryptoParameterError
from splitinfer.masking.ring import Integers, require_finite

__all__ = ["MAX_INPUTS", "FixedMatrix", "fixed_matrix", "fixed_vector"]

WEIGHT_BITS = 16
INPUT_BITS = 16
MAX_INPUTS = 1 << 16

Rows: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class FixedMatrix:
    """`integers` [outputs, inputs] of 16 bits; a row's real weights are its integers times its entry of `scale`."""

    integers: Integers
    scale: NDArray[np.float64]


def fixed_matrix(matrix: Rows) -> FixedMatrix:
    """Round every row of [outputs, inputs] to 16 bits; both sides get the same integers from the same weights.

    Raises CryptoParameterError for weights that are not finite, or more columns than a product has room for.
    """
    wide = require_finite("weights", matrix)
    if wide.shape[1] > MAX_INPUTS:
        raise CryptoParameterError(f"a matrix has {wide.shape[1]} columns, above the limit of {MAX_INPUTS}")
    scale = _steps(np.abs(wide).max(axis=1), WEIGHT_BITS)
    return FixedMatrix(np.rint(wide / scale[:, None]).astype(np.int64), scale)


def fixed_vector(vector: Rows) -> tuple[Integers, float]:
    """Round a vector to 16 bits of its largest magnitude; returns integers and the factor back."""
    wide = require_finite("inputs of a linear layer", vector)
    step = float(_steps(np.abs(wide).max(initial=0.0), INPUT_BITS))
    return np.rint(wide / step).astype(np.int64), step


def _steps(largest: Any, bits: int) -> Any:
    step = np.asarray(largest) / (2 ** (bits - 1) - 1)
    # A magnitude too small for its step to be a normal number rounds to zero.
    return np.where(step > np.finfo(np.float64).tiny, step, 1.0)
