"""Scalar tables: samples of unit deviation -> centroids; values <-> codes. Both sides.

Lloyd-Max (Lloyd 1982, Max 1960): a centroid is the mean of its cell, a cell ends half-way between two centroids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Cells", "centroids_of", "error_of", "thresholds"]

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


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one table, to be looked up: limits [2^b - 1], and a grid so fine that no bin holds two of them.

    A value's bin gives the cells below that bin; one comparison with the bin's own limit gives the rest. A value and a
    limit are put into bins by the same monotone arithmetic, so that the cell is exact whatever is rounded.
    """

    limits: tuple[float, ...]
    scale: float
    below: NDArray[np.uint8] = field(repr=False)
    own: NDArray[np.float32] = field(repr=False)

    @classmethod
    def of(cls, centroids: torch.Tensor) -> Cells:
        """Make the grid; it stays empty where few limits are counted faster, or where they lie too close for it."""
        limits = thresholds(centroids).numpy()
        if len(limits) <= _MOST_COUNTED:
            return cls(tuple(limits.tolist()), 0.0, *_NO_GRID)
        scale = _FINENESS / max(float(np.diff(limits).min()), 1e-9)
        at = _bins(limits, float(limits[0]), scale, _MOST_BINS)
        if int(at[-1]) >= _MOST_BINS or len(np.unique(at)) < len(at):
            return cls(tuple(limits.tolist()), 0.0, *_NO_GRID)
        own = np.full(int(at[-1]) + 2, np.inf, dtype=np.float32)
        own[at] = limits
        below = np.searchsorted(at, np.arange(len(own)), side="left").astype(np.uint8)
        return cls(tuple(limits.tolist()), scale, below, own)

    def codes(self, values: torch.Tensor, codes: torch.Tensor) -> None:
        """Write the cell of every value into `codes` (uint8, of the same shape)."""
        if len(self.limits) <= _MOST_COUNTED:
            torch.gt(values, self.limits[0], out=codes)
            for limit in self.limits[1:]:
                codes.add_(torch.gt(values, limit))
        elif not self.scale:
            codes.copy_(torch.bucketize(values, torch.tensor(self.limits, dtype=values.dtype), out_int32=True))
        else:
            found, out = values.numpy(), codes.numpy()
            bins = _bins(found, self.limits[0], self.scale, len(self.own) - 1)
            np.take(self.below, bins, out=out, mode="clip")
            np.add(out, np.greater(found, np.take(self.own, bins, mode="clip")), out=out, casting="unsafe")


def _bins(values: NDArray[np.float32], first: float, scale: float, last: int) -> NDArray[np.intp]:
    """Return the bin of every value: bin 0 lies below the first limit, which is in bin 1."""
    # Values that overflowed on their way here get some cell, as they did before.
    with np.errstate(invalid="ignore", over="ignore"):
        at = np.subtract(values, np.float32(first))
        np.multiply(at, np.float32(scale), out=at)
        np.add(at, np.float32(1), out=at)
        np.clip(at, np.float32(0), np.float32(last), out=at)
        return at.astype(np.intp)


# Measured: 7 limits are counted as fast as they are looked up.
_MOST_COUNTED, _MOST_BINS, _FINENESS = 7, 2**14, 1.5
_NO_GRID = (np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.float32))
