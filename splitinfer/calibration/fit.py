"""Rows and gradients -> the basis, scales, deviations and tables of an artefact; numbers only, no model.

    s = deviation of a channel       w = E[(s dL/dx)^2], over its mean, plus the ridge
    y = (x - mean) sqrt(w) / s       covariance of y = U diag(v) U^T

A coded error of y spread by U weighs as much as the loss feels it. Deviations and tables are those of pieces that the
basis has not seen: in its own sample the small components look smaller than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from splitinfer.codec.transform.basis import Group
from splitinfer.codec.transform.levels import MAX_BITS, allocate
from splitinfer.codec.transform.tables import centroids_of, error_of

__all__ = ["RIDGE", "Moments", "Projected", "Tables", "basis_of", "groups_of", "tables_of"]

RIDGE = 0.1
_LEAST = 1e-6
_TABLE_SAMPLES = 200_000
_ALLOCATION_ROUNDS = 2


class Moments:
    """Sums of one group's rows, in float64: mean, covariance, and the mean square of the gradients."""

    def __init__(self, channels: int) -> None:
        self._count, self._gradients = 0, 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros((channels, channels), dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, rows: torch.Tensor, gradients: torch.Tensor | None) -> None:
        """Add rows [n, p], and gradients [m, p] where there are any."""
        self._sum += rows.sum(0, dtype=torch.float64)
        # The product is taken in float32 and summed in float64: what a piece loses is far below what text varies.
        self._products += (rows.T @ rows).double()
        self._count += len(rows)
        if gradients is not None:
            self._squares += gradients.double().square().sum(0)
            self._gradients += len(gradients)

    @property
    def mean(self) -> torch.Tensor:
        """Return the mean [p]."""
        return self._sum / self._count

    @property
    def covariance(self) -> torch.Tensor:
        """Return the covariance [p, p]."""
        return self._products / self._count - torch.outer(self.mean, self.mean)

    @property
    def sensitivity(self) -> torch.Tensor:
        """Return E[(s dL/dx)^2] [p], before it is normalised; ones where there were no gradients."""
        if not self._gradients:
            return torch.ones_like(self._sum)
        return self._squares / self._gradients * self.covariance.diagonal().clamp_min(0)


@dataclass(frozen=True, slots=True)
class Projected:
    """A basis before its bits are given: mean and scale [p], U [p, p] by falling variance."""

    mean: torch.Tensor
    scale: torch.Tensor
    vectors: torch.Tensor

    def values(self, rows: torch.Tensor) -> torch.Tensor:
        """Return y U [n, p] of rows [n, p]."""
        return ((rows.double() - self.mean) / self.scale) @ self.vectors


def basis_of(
    moments: Moments, *, mean_sensitivity: float, ridge: float = RIDGE, parts: torch.Tensor | None = None
) -> Projected:
    """Return the basis of one group; `mean_sensitivity` is that of all groups together.

    `parts` [p] numbers the channels: components then stay within channels of one number. For comparisons only.
    """
    covariance = moments.covariance
    if parts is not None:
        covariance = covariance * (parts == parts.unsqueeze(1))
    deviation = covariance.diagonal().clamp_min(_LEAST**2).sqrt()
    weight = moments.sensitivity / mean_sensitivity + ridge
    scale = deviation / weight.sqrt()
    _, vectors = torch.linalg.eigh(covariance / scale / scale.unsqueeze(1))
    return Projected(moments.mean, scale, vectors.flip(1))


@dataclass(frozen=True, slots=True)
class Tables:
    """Centroids by bits (index 0 is unused) and their mean squared errors, 1 at 0 bits."""

    centroids: tuple[torch.Tensor, ...]
    errors: tuple[float, ...]


def tables_of(samples: Sequence[NDArray[np.float64]]) -> Tables:
    """Fit a table to samples of unit deviation for every number of bits; `samples[b - 1]` are those of b bits.

    Errors are made to fall in falling steps, as `levels.allocate` needs them.
    """
    centroids, errors = [torch.zeros(1)], [1.0]
    for bits, drawn in enumerate(samples, start=1):
        found = _distinct(centroids_of(drawn, bits=bits))
        centroids.append(torch.from_numpy(found).float())
        errors.append(min(error_of(drawn, found), 0.9 * errors[-1]))
    for index in range(len(errors) - 2, 0, -1):
        step = errors[index] - errors[index + 1]
        errors[index - 1] = max(errors[index - 1], errors[index] + step * 1.001)
    return Tables(tuple(centroids), tuple(error / errors[0] for error in errors))


def _distinct(centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    least = 1e-4
    return np.asarray(np.maximum.accumulate(centroids) + least * np.arange(len(centroids)), dtype=np.float64)


def groups_of(
    bases: Sequence[Projected],
    layers: Sequence[tuple[int, ...]],
    held_out: Sequence[torch.Tensor],
    *,
    levels: Sequence[float],
) -> tuple[tuple[Group, ...], Tables]:
    """Give bits, fit tables, and round the bases: `held_out` are the values [n, p] of each group on unseen pieces."""
    deviations = [values.square().mean(0).sqrt().clamp_min(_LEAST) for values in held_out]
    orders = [torch.argsort(found, descending=True) for found in deviations]
    sorted_deviations = [found[order] for found, order in zip(deviations, orders, strict=True)]
    units = [
        (values[:, order] / found).numpy()
        for values, order, found in zip(held_out, orders, sorted_deviations, strict=True)
    ]
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(_TABLE_SAMPLES)
    tables = tables_of([normal] * MAX_BITS)
    bits: list[NDArray[np.uint8]] = []
    for _ in range(_ALLOCATION_ROUNDS):
        bits = _bits(sorted_deviations, levels, tables.errors)
        tables = tables_of([_samples(units, bits, held, normal, rng) for held in range(1, MAX_BITS + 1)])
    bits = _bits(sorted_deviations, levels, tables.errors)
    found = []
    for basis, own, order, deviation, given in zip(bases, layers, orders, sorted_deviations, bits, strict=True):
        used = int((given.max(0) > 0).sum())
        found.append(_group(basis, own, order[:used], deviation[:used], given[:, :used]))
    return tuple(found), tables


def _bits(
    deviations: Sequence[torch.Tensor], levels: Sequence[float], errors: Sequence[float]
) -> list[NDArray[np.uint8]]:
    """Return bits [levels, p] for each group; at one level all groups share the bits."""
    sizes = [len(found) for found in deviations]
    joined = np.concatenate([found.numpy() for found in deviations])
    rows = [allocate(joined, total_bits=round(level * len(joined)), errors=errors) for level in levels]
    return list(np.split(np.stack(rows), np.cumsum(sizes)[:-1], axis=1))


def _samples(
    units: Sequence[NDArray[np.float64]],
    bits: Sequence[NDArray[np.uint8]],
    held: int,
    normal: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return unit values of components that have so many bits at any level, or normal ones where there are none."""
    chosen = [
        values[:, column]
        for values, given in zip(units, bits, strict=True)
        for column in np.flatnonzero((given == held).any(0))
    ]
    if not chosen:
        return normal
    joined = np.concatenate(chosen)
    return joined if len(joined) <= _TABLE_SAMPLES else rng.choice(joined, _TABLE_SAMPLES, replace=False)


def _group(
    basis: Projected,
    layers: tuple[int, ...],
    order: torch.Tensor,
    deviation: torch.Tensor,
    bits: NDArray[np.uint8],
) -> Group:
    columns = basis.vectors[:, order]
    unit = columns.abs().amax(0) / 127
    return Group(
        layers=layers,
        mean=basis.mean.float(),
        scale=basis.scale.float(),
        basis=(columns / unit).round().to(torch.int8),
        unit=unit.float(),
        deviation=deviation.float(),
        bits=torch.from_numpy(np.ascontiguousarray(bits)),
    )
