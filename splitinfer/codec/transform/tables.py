"""Scalar tables: samples of unit deviation -> centroids; values <-> codes. Both sides.

Lloyd-Max (Lloyd 1982, Max 1960): a centroid is the mean of its cell, a cell ends half-way between two centroids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["centroids_of", "codes_of", "error_of", "thresholds"]

_ROUNDS, _TOLERANCE = 300, 1e-7


def centroids_of(samples: NDArray[np.float64], *, bits: int) -> NDArray[np.float64]:
    """Return the 2^bits centroids [ascending] that Lloyd's iteration finds for the samples [n]."""
    ordered = np.sort(samples)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    count = 2**bits
    # Quantiles of the density's cube root would be nearer; these converge too.
    found = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(ordered, (found[1:] + found[:-1]) / 2), [len(ordered)]])
        held = np.diff(edges)
        means = np.where(held > 0, np.diff(sums[edges]) / np.maximum(held, 1), found)
        moved = float(np.abs(means - found).max())
        found = np.sort(means)
        if moved < _TOLERANCE:
            break
    return np.asarray(found, dtype=np.float64)


def thresholds(centroids: torch.Tensor) -> torch.Tensor:
    """Return where cells end, [2^b - 1]."""
    return (centroids[1:] + centroids[:-1]) / 2


def error_of(samples: NDArray[np.float64], centroids: NDArray[np.float64]) -> float:
    """Return the mean squared error of the samples [n] coded with these centroids."""
    cells = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, samples)
    return float(np.square(samples - centroids[cells]).mean())


def codes_of(values: torch.Tensor, limits: Sequence[float], codes: torch.Tensor) -> None:
    """Write the cell of every value into `codes` (uint8, of the same shape)."""
    if len(limits) > _MOST_COMPARED:
        codes.copy_(torch.bucketize(values, torch.tensor(limits, dtype=values.dtype), out_int32=True))
        return
    # Few limits are counted faster than they are searched.
    torch.gt(values, limits[0], out=codes)
    for limit in limits[1:]:
        codes.add_(torch.gt(values, limit))


_MOST_COMPARED = 15
