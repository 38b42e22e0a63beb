"""Noise on a clipped cache: slabs of rows to noised slabs, at prompt level; on the device, numpy only.

Mechanism: a slab j is one layer's keys or values in one head, n rows of d_j numbers. Every row is clipped to the norm
c_j, then N(0, sigma_j^2 I) is added. Two prompts of the same length can differ in every row of every slab, each by
2 c_j at most, so

    mu^2 = sum over j of n (2 c_j)^2 / sigma_j^2.

Clip norms, and the weights w_j by which a slab's noise hurts, come from public text alone. At a given mu the weighted
noise, sum of w_j d_j sigma_j^2, is least (by Lagrange's rule) for

    sigma_j^2 = (c_j / sqrt(a_j)) (sum over i of c_i sqrt(a_i)) 4 n / mu^2,    a_j = w_j d_j.

There is no token level here: one token changes every later row of every later layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from splitinfer.errors import UsageError
from splitinfer.noise.stream import Float64, NoiseStream, add_noise

__all__ = ["ClipPlan", "NoisedSlabs", "SlabClip", "Slabs", "allocate", "noise_slabs", "plan_from_public", "prompt_mu"]

Slabs = Mapping[str, npt.NDArray[np.floating]]
"""Rows [tokens, dim] of every slab by its name; the order of names is the plan's."""


@dataclass(frozen=True, slots=True)
class SlabClip:
    """One slab: its row's dimension, the norm that rows are clipped to, and the weight of noise on it."""

    name: str
    dim: int
    clip_norm: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the figures."""
        if self.dim < 1 or not 0 < self.clip_norm < math.inf or not 0 < self.weight < math.inf:
            raise UsageError(f"slab {self.name} needs a dimension, a positive clip norm and a positive weight")


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """The clips of all slabs, found on public text: the quantile of row norms over so many rows."""

    slabs: tuple[SlabClip, ...]
    quantile: float
    public_rows: int


@dataclass(frozen=True, slots=True)
class NoisedSlabs:
    """Slabs that may be shown to the other side at the price `mu`; made by `noise_slabs` only."""

    slabs: Mapping[str, Float64] = field(repr=False)
    mu: float
    key_digest: str


def plan_from_public(
    public: Sequence[Slabs], *, quantile: float = 0.95, weights: Mapping[str, float] = MappingProxyType({})
) -> ClipPlan:
    """Return the plan that clips each slab at this quantile of its row norms over caches of public texts.

    `weights` are measured losses per unit of noise variance, 1 where a slab has none. Raises UsageError without public
    caches, or where they have other slabs than the first.
    """
    if not public or not 0 < quantile <= 1:
        raise UsageError("clip norms need caches of public texts and a quantile above 0, 1 at most")
    names = tuple(public[0])
    if any(tuple(slabs) != names for slabs in public):
        raise UsageError("the public caches do not have the same slabs in the same order")
    norms = {name: np.concatenate([np.linalg.norm(slabs[name], axis=1) for slabs in public]) for name in names}
    clips = tuple(
        SlabClip(name, public[0][name].shape[1], float(np.quantile(norms[name], quantile)), weights.get(name, 1.0))
        for name in names
    )
    return ClipPlan(clips, quantile, len(norms[names[0]]))


def prompt_mu(plan: ClipPlan, sigmas: Sequence[float], *, rows: int) -> float:
    """Return mu of a release of `rows` rows of every slab; infinite where any slab has no noise."""
    if any(sigma <= 0 for sigma in sigmas):
        return math.inf
    pairs = zip(plan.slabs, sigmas, strict=True)
    return math.sqrt(math.fsum(rows * (2 * slab.clip_norm / sigma) ** 2 for slab, sigma in pairs))


def allocate(plan: ClipPlan, *, mu: float, rows: int) -> tuple[float, ...]:
    """Return sigma of every slab such that the release of `rows` rows has this mu and the least weighted noise."""
    if not 0 < mu < math.inf or rows < 1:
        raise UsageError("noise is allocated for a positive mu and one row or more")
    roots = [math.sqrt(slab.weight * slab.dim) for slab in plan.slabs]
    total = math.fsum(slab.clip_norm * root for slab, root in zip(plan.slabs, roots, strict=True))
    return tuple(
        2 * math.sqrt(rows * slab.clip_norm / root * total) / mu for slab, root in zip(plan.slabs, roots, strict=True)
    )


def noise_slabs(slabs: Slabs, *, plan: ClipPlan, sigmas: Sequence[float], stream: NoiseStream) -> NoisedSlabs:
    """Clip and noise every slab, in the plan's order.

    Raises UsageError where the slabs are not the plan's, not of one length, or a sigma is not positive.
    """
    lengths = {len(rows) for rows in slabs.values()}
    fits = len(lengths) == 1 and set(slabs) == {slab.name for slab in plan.slabs} and len(sigmas) == len(plan.slabs)
    if not fits or any(slabs[slab.name].shape[1:] != (slab.dim,) for slab in plan.slabs):
        raise UsageError("the slabs are not those of the plan: the same names and dimensions, and one number of rows")
    noised = {
        slab.name: add_noise(_clipped(slabs[slab.name], slab.clip_norm), sigma=sigma, stream=stream)
        for slab, sigma in zip(plan.slabs, sigmas, strict=True)
    }
    return NoisedSlabs(noised, prompt_mu(plan, sigmas, rows=lengths.pop()), stream.key_digest)


def _clipped(rows: npt.NDArray[np.floating], clip_norm: float) -> Float64:
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    # One part in 10^12 below, so that rounding never leaves a row longer than its bound.
    scales = np.minimum(1.0, clip_norm * (1 - 1e-12) / np.maximum(norms, np.finfo(np.float64).tiny))
    return np.asarray(exact * scales, dtype=np.float64)
