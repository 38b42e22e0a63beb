"""Exact confidence bounds on rates: successes and trials -> Clopper-Pearson bounds. Evaluation; no IO.

The bounds are quantiles of the Beta distribution (Clopper and Pearson, Biometrika 1934), found by bisection on the
regularised incomplete Beta function, which is a continued fraction (Lentz's method).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitinfer.errors import UsageError

__all__ = ["Rate", "beta_cdf", "binomial_tail", "clopper_pearson", "lower_bound", "upper_bound"]

_TINY = 1e-300
_ITERATIONS = 400
_BISECTIONS = 200


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of trials, with its two-sided 95 % Clopper-Pearson interval."""

    successes: float
    trials: int

    @property
    def share(self) -> float:
        """Return the share; 0 where there was no trial."""
        return self.successes / self.trials if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval; a fractional count of successes, from ties, is rounded outwards."""
        if not self.trials:
            return 0.0, 1.0
        low = clopper_pearson(math.floor(self.successes), self.trials, alpha=0.05)[0]
        return low, clopper_pearson(math.ceil(self.successes), self.trials, alpha=0.05)[1]

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.successes + other.successes, self.trials + other.trials)

    def to_json(self) -> dict[str, object]:
        """Return the counts, the share and the interval."""
        low, high = self.interval
        return {
            "share": round(self.share, 6),
            "low": round(low, 6),
            "high": round(high, 6),
            "successes": self.successes,
            "trials": self.trials,
        }


def clopper_pearson(successes: int, trials: int, *, alpha: float) -> tuple[float, float]:
    """Return the two-sided bounds of level 1 - alpha."""
    return (
        lower_bound(successes, trials, alpha=alpha / 2),
        upper_bound(successes, trials, alpha=alpha / 2),
    )


def lower_bound(successes: int, trials: int, *, alpha: float) -> float:
    """Return the one-sided lower bound: the rate at which so many successes or more have probability alpha."""
    _require_counts(successes, trials)
    return 0.0 if successes == 0 else _beta_quantile(alpha, successes, trials - successes + 1)


def upper_bound(successes: int, trials: int, *, alpha: float) -> float:
    """Return the one-sided upper bound: the rate at which so many successes or fewer have probability alpha."""
    _require_counts(successes, trials)
    return 1.0 if successes == trials else _beta_quantile(1 - alpha, successes + 1, trials - successes)


def binomial_tail(successes: int, trials: int, rate: float) -> float:
    """Return P(Bin(trials, rate) >= successes)."""
    _require_counts(successes, trials)
    return 1.0 if successes == 0 else beta_cdf(rate, successes, trials - successes + 1)


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete Beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(x, a, b) / a
    return 1 - front * _continued_fraction(1 - x, b, a) / b


def _continued_fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for step in range(1, _ITERATIONS):
        for numerator in (
            step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step)),
            -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return value


def _beta_quantile(level: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if beta_cdf(middle, a, b) < level else (low, middle)
    return (low + high) / 2


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _require_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials or not trials:
        raise UsageError("a rate needs at least one trial and no more successes than trials")
