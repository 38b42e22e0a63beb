"""Audit by fresh releases: a release function and a worst-case pair of inputs -> a lower bound on its real mu.

Evaluation. A mechanism is mu-GDP if telling two neighbours apart is no easier than telling N(0, 1) from N(mu, 1).
Many releases of each neighbour are projected on their difference, each element weighted by one over its variance, as
the best test of a Gaussian does. Variances and threshold come from pilot releases that do not count, so nothing is
selected. With Clopper-Pearson upper bounds on both error rates, mu >= PHI^-1(1 - FPR) - PHI^-1(FNR): a claim below that
is false. What one release cannot show, two can: whether the noise of one says anything about that of the next. With n
releases no bound exceeds what zero errors would give, 7.3 for 100,000: a larger claim is audited on a pair that is
closer by a known factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch

from splitinfer.errors import UsageError
from splitinfer.evaluation.intervals import upper_bound

__all__ = ["Audited", "Release", "audit", "error_bound_mu"]

Release = Callable[[torch.Tensor], torch.Tensor]
"""Draws one fresh release of an input; the shape is the mechanism's own."""

PILOT_RELEASES = 400
_MAX_CORRELATION_DEVIATIONS = 6.0


@dataclass(frozen=True, slots=True)
class Audited:
    """What the releases showed. `lower_mu` holds with the stated confidence; `correlation` is of successive noises."""

    claimed_mu: float
    lower_mu: float
    confidence: float
    releases: int
    correlation: float

    @property
    def is_repeating(self) -> bool:
        """Tell whether successive noises are correlated by more than chance allows, or do not vary at all."""
        # Written so that NaN, of noise that does not vary, counts as repeating.
        return not abs(self.correlation) <= _MAX_CORRELATION_DEVIATIONS / math.sqrt(self.releases / 2)

    @property
    def is_refuted(self) -> bool:
        """Tell whether the claim is false: more distinguishable than claimed, or noise that repeats."""
        return self.lower_mu > self.claimed_mu or self.is_repeating

    def to_json(self) -> dict[str, object]:
        """Return the figures; a bound without limit is a word."""
        return {
            "claimed_mu": self.claimed_mu,
            "lower_mu": self.lower_mu if math.isfinite(self.lower_mu) else "unbounded",
            "confidence": self.confidence,
            "releases": self.releases,
            "is_refuted": self.is_refuted,
        }


def audit(
    release: Release,
    pair: tuple[torch.Tensor, torch.Tensor],
    *,
    claimed_mu: float,
    difference: torch.Tensor | None = None,
    releases: int = 100_000,
    confidence: float = 0.999,
    progress: Callable[[int], None] | None = None,
) -> Audited:
    """Draw `releases` fresh releases in all, each neighbour in turn, and bound mu.

    `difference` is that of the two outputs without noise, where the mechanism does more than add noise. Raises
    UsageError for a claim that is not positive or fewer than 100 releases.
    """
    if releases < 100 or not claimed_mu > 0:
        raise UsageError("an audit needs a positive claim and at least 100 releases")
    project, threshold = _test(release, pair, difference)
    half = releases // 2
    scores = torch.empty(2, half, dtype=torch.float64)
    for place in range(half):
        for side in (0, 1):
            scores[side, place] = project(release(pair[side]))
        if progress is not None:
            progress(2 * place + 2)
    false_positives, false_negatives = int((scores[0] > threshold).sum()), int((scores[1] <= threshold).sum())
    lower = error_bound_mu(false_positives, false_negatives, half, alpha=(1 - confidence) / 2)
    return Audited(claimed_mu, max(0.0, lower), confidence, 2 * half, _correlation(scores))


def error_bound_mu(false_positives: int, false_negatives: int, trials: int, *, alpha: float) -> float:
    """Return PHI^-1(1 - FPR) - PHI^-1(FNR) at upper bounds of both rates, each of level 1 - alpha."""
    bounds = [upper_bound(count, trials, alpha=alpha) for count in (false_positives, false_negatives)]
    if max(bounds) >= 1:
        return -math.inf
    normal = NormalDist()
    return normal.inv_cdf(1 - bounds[0]) - normal.inv_cdf(bounds[1])


def _test(
    release: Release, pair: tuple[torch.Tensor, torch.Tensor], known: torch.Tensor | None
) -> tuple[Callable[[torch.Tensor], float], float]:
    """Return a projection and a threshold, from pilot releases and the neighbours' known difference."""
    pilots = [torch.stack([_flat(release(side)) for _ in range(PILOT_RELEASES)]) for side in pair]
    variance = torch.cat([pilot - pilot.mean(0) for pilot in pilots]).square().mean(0)
    difference = _flat(pair[1]) - _flat(pair[0]) if known is None else _flat(known)
    if difference.shape != variance.shape:
        # A mechanism that gives out another form: its difference is what the pilots show of it.
        difference = pilots[1].mean(0) - pilots[0].mean(0)
    weights = difference / variance.clamp_min(1e-12 * float(variance.max()) + 1e-300)
    middles = [float(pilot.mean(0) @ weights) for pilot in pilots]
    return (lambda found: float(_flat(found) @ weights)), sum(middles) / 2


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double().flatten()


def _correlation(scores: torch.Tensor) -> float:
    """Return the largest correlation of a release's noise with the next one's, of the other side or of its own."""
    noise = scores - scores.mean(1, keepdim=True)
    if bool((noise.std(1) <= 1e-9 * scores.abs().max()).any()):
        return math.nan
    found = [_cosine(noise[0], noise[1]), *(_cosine(side[:-1], side[1:]) for side in noise)]
    return max(found, key=abs)


def _cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left @ right) / (left.norm() * right.norm()))
