"""The exact arithmetic of one Gaussian release: numbers to numbers; on the device, pure.

A release whose l2 sensitivity is s and whose noise has the standard deviation sigma is mu-Gaussian differentially
private for mu = s / sigma (Dong, Roth, Su: Gaussian Differential Privacy, JRSS B 2022, theorem 2.7), and
(epsilon, delta)-private exactly where

    delta >= Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)

(Balle, Wang: Improving the Gaussian Mechanism, ICML 2018, theorem 8). Releases compose to sqrt(sum of mu squared).

With R(x) = (1 - Phi(x)) / phi(x), the right side is phi(u) (R(u) - R(u + mu)), u = epsilon/mu - mu/2, for
exp(epsilon) phi(u + mu) = phi(u). That form neither overflows nor cancels where epsilon is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from splitinfer.errors import UsageError

__all__ = [
    "composed",
    "delta_of",
    "epsilon_of",
    "mu_of",
    "normal_cdf",
    "normal_quantile",
    "recovery_bound",
]

_SQRT_2, _SQRT_2PI = math.sqrt(2.0), math.sqrt(2.0 * math.pi)
_ASYMPTOTIC_FROM = 20.0
_STEPS = 200


def composed(mus: Iterable[float]) -> float:
    """Return the mu of several releases together: the root of the sum of squares; infinite where one is."""
    return math.hypot(*mus)


def delta_of(mu: float, epsilon: float) -> float:
    """Return the smallest delta at this epsilon; raises UsageError for a negative or missing number."""
    _require(mu >= 0 and epsilon >= 0, "mu and epsilon are numbers, 0 or more")
    if mu == 0 or epsilon == math.inf:
        return 0.0
    if mu == math.inf:
        return 1.0
    u = epsilon / mu - mu / 2
    if u <= 0:
        return normal_cdf(-u) - _density(u) * _mills(u + mu)
    return _density(u) * _mills_fall(u, mu)


def epsilon_of(mu: float, delta: float) -> float:
    """Return the smallest epsilon at this delta, rounded up; infinite without noise, or at delta 0 with any loss.

    Raises UsageError for a delta outside [0, 1) or a negative mu.
    """
    _require(mu >= 0 and 0 <= delta < 1, "mu is a number, 0 or more, and delta is from 0 to below 1")
    if mu == 0 or delta_of(mu, 0.0) <= delta:
        return 0.0
    if mu == math.inf or delta == 0:
        return math.inf
    return _smallest(lambda epsilon: delta_of(mu, epsilon) <= delta, start=mu * mu / 2 + mu)


def mu_of(epsilon: float, delta: float) -> float:
    """Return the largest mu that is (epsilon, delta)-private, rounded down; raises UsageError where there is none."""
    _require(epsilon >= 0 and 0 < delta < 1, "epsilon is a number, 0 or more, and delta is above 0 and below 1")
    _require(epsilon < math.inf, "an infinite epsilon needs no noise; leave the noise out instead")
    # Sought as sigma / sensitivity, which is rounded up: more noise, never less.
    noise_multiplier = _smallest(lambda multiplier: delta_of(1 / multiplier, epsilon) <= delta, start=1.0)
    return 1 / noise_multiplier


def recovery_bound(prior: float, mu: float) -> float:
    """Bound the chance that an attacker who guesses right with chance `prior` beforehand does so afterwards.

    Phi(Phi^-1(prior) + mu) (Hayes, Mahloujifar, Balle: Bounding Training Data Reconstruction in DP-SGD, NeurIPS 2023).
    Raises UsageError for a prior outside [0, 1].
    """
    _require(0 <= prior <= 1 and mu >= 0, "a prior is a chance from 0 to 1, and mu 0 or more")
    if prior in {0.0, 1.0}:
        return prior
    return 1.0 if mu == math.inf else normal_cdf(normal_quantile(prior) + mu)


def normal_cdf(x: float) -> float:
    """Return Phi(x)."""
    return 0.5 * math.erfc(-x / _SQRT_2)


def normal_quantile(p: float) -> float:
    """Return the x with Phi(x) = p, for p strictly between 0 and 1."""
    _require(0 < p < 1, "a quantile is asked for a chance above 0 and below 1")
    if p > 0.5:
        return -normal_quantile(1 - p)
    low, high = -40.0, 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if normal_cdf(middle) < p else (low, middle)
    return high


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / _SQRT_2PI


def _mills(x: float) -> float:
    """Return (1 - Phi(x)) / phi(x) for x >= 0."""
    if x < _ASYMPTOTIC_FROM:
        return _SQRT_2PI / 2 * math.exp(x * x / 2) * math.erfc(x / _SQRT_2)
    # Abramowitz and Stegun 26.2.12; the first term left out is below 1e-17 of the sum from x = 20 on.
    inverse = 1 / (x * x)
    total, term = 1.0, 1.0
    for odd in range(1, 22, 2):
        term *= -odd * inverse
        total += term
    return total / x


def _mills_fall(u: float, mu: float) -> float:
    """Return R(u) - R(u + mu) for u > 0, by quadrature where subtracting would leave no digits."""
    if mu > 1e-3 * (1 + u):
        return _mills(u) - _mills(u + mu)
    # R' = x R - 1; Simpson's rule over so short a step is exact to the last digits.
    slopes = [1 - x * _mills(x) for x in (u, u + mu / 2, u + mu)]
    return mu * (slopes[0] + 4 * slopes[1] + slopes[2]) / 6


def _smallest(holds: Callable[[float], bool], *, start: float) -> float:
    """Return the smallest number for which a monotone condition holds, from above."""
    high = start
    while not holds(high):
        high *= 2
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)
