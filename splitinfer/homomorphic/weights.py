"""The cloud's linear layers, encoded once: matrices -> EncodedLinear by layer and name; runs in the cloud.

Every row of a matrix is scaled to an l2 norm of 8, so that with the device's inputs no product can wrap. The factors
go to the device at the opening; they are part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.homomorphic.arithmetic import Arithmetic, EncodedLinear, Operand
from splitinfer.homomorphic.linear_plan import LinearPlan, LinearShape, plan_linear, weight_diagonals
from splitinfer.homomorphic.ranges import normalised, require_finite
from splitinfer.homomorphic.seal import encode
from splitinfer.homomorphic.weight_cache import WeightCache
from splitinfer.rounds import Operation

__all__ = ["LinearStore", "Matrices"]

Matrices: TypeAlias = Mapping[tuple[int, Operation], NDArray[np.floating[Any]]]
"""Matrices [outputs, inputs] by layer and operation."""


class LinearStore:
    """Matrices in the clear, and their encodings for every profile that was asked for; `cache` keeps them on disk."""

    def __init__(self, matrices: Matrices, *, cache: WeightCache | None = None) -> None:
        self._matrices = dict(sorted(matrices.items()))
        self._cache = cache
        self._encoded: dict[str, dict[tuple[int, Operation], EncodedLinear]] = {}

    def encoded(self, arithmetic: Arithmetic) -> dict[tuple[int, Operation], EncodedLinear]:
        """Return the encodings for the session's profile, in the order of layer and operation; made once."""
        profile = arithmetic.parameters.profile
        if profile not in self._encoded:
            self._encoded[profile] = {key: self._one(arithmetic, key) for key in self._matrices}
        return self._encoded[profile]

    def _one(self, arithmetic: Arithmetic, key: tuple[int, Operation]) -> EncodedLinear:
        matrix = self._matrices[key]
        plan = plan_linear(LinearShape(*matrix.shape), slots=arithmetic.parameters.slots)
        found = self._cache.load(arithmetic, key, plan) if self._cache else None
        if found is not None:
            return found
        made = _encoded(matrix, plan, arithmetic)
        if self._cache:
            self._cache.store(arithmetic, key, made)
        return made


def _encoded(matrix: NDArray[np.floating[Any]], plan: LinearPlan, arithmetic: Arithmetic) -> EncodedLinear:
    rows, scale = normalised(require_finite("weights", matrix))
    bits = arithmetic.parameters.weight_bits
    diagonals: list[list[list[Operand]]] = [[[] for _ in range(plan.tables)] for _ in range(plan.chunks)]
    for chunk, table, found in weight_diagonals(plan, rows):
        diagonals[chunk][table] = [
            Operand(encode(arithmetic.encoder, one, bits) if np.any(one) else None, False) for one in found
        ]
    return EncodedLinear(plan, diagonals, scale)
