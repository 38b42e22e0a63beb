"""Audit in one run: guesses about many independent coins -> a lower bound on epsilon. Evaluation; no IO.

Source: Steinke, Nasr, Jagielski, arXiv 2305.08846, theorem for (epsilon, delta). Each of m slots gets one of two rows
by a fair coin, one release is drawn of all of them, and the auditor guesses r of the coins, c of them rightly, and
abstains from the rest. With (epsilon, delta)-DP a slot, P(C >= c) <= P(Bin(r, q) >= c) + 2 m delta max_i (P(Bin >= c -
i) - P(Bin >= c)) / i, q = e^eps / (1 + e^eps). The bound is the largest epsilon at which that stays below 1 -
confidence. It is looser than that of many fresh releases, and needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from splitinfer.errors import UsageError
from splitinfer.evaluation.intervals import binomial_tail

__all__ = ["OneRun", "audit_one_run", "epsilon_bound", "epsilon_of_mu"]

_MAX_EPSILON = 100.0
_BISECTIONS = 60
_SLACK_TERMS = 200


@dataclass(frozen=True, slots=True)
class OneRun:
    """What one release showed: of `slots` coins `guesses` were guessed, `right` of them rightly."""

    slots: int
    guesses: int
    right: int
    lower_epsilon: float
    claimed_epsilon: float
    delta: float
    confidence: float

    @property
    def is_refuted(self) -> bool:
        """Tell whether the claim is false."""
        return self.lower_epsilon > self.claimed_epsilon


def audit_one_run(
    release: Callable[[torch.Tensor], torch.Tensor],
    pair: tuple[torch.Tensor, torch.Tensor],
    *,
    slots: int,
    claimed_mu: float,
    delta: float = 1e-9,
    guess_share: float = 0.1,
    confidence: float = 0.999,
    seed: int = 0,
) -> OneRun:
    """Release [slots, hidden] rows once, each one of the pair's [hidden] by a coin, and guess the surest share.

    `release` adds its noise to all rows at once. The bound gains nothing above what slots times delta leaves of the
    confidence, so delta is far below one over the slots. Raises UsageError without a slot to guess.
    """
    guesses = int(slots * guess_share)
    if guesses < 1 or slots < guesses:
        raise UsageError("a one-run audit needs slots, and a share of them to guess")
    coins = torch.rand(slots, generator=torch.Generator().manual_seed(seed)) < 0.5
    rows = torch.where(coins[:, None], pair[1][None], pair[0][None])
    released = release(rows).double()
    direction = (pair[1] - pair[0]).double()
    scores = (released - (pair[0] + pair[1]).double() / 2) @ direction
    surest = scores.abs().topk(guesses).indices
    right = int(((scores[surest] > 0) == coins[surest]).sum())
    lower = epsilon_bound(right, guesses, slots=slots, delta=delta, confidence=confidence)
    return OneRun(slots, guesses, right, lower, epsilon_of_mu(claimed_mu, delta), delta, confidence)


def epsilon_bound(right: int, guesses: int, *, slots: int, delta: float, confidence: float) -> float:
    """Return the largest epsilon that so many right guesses refute; 0 where they refute none."""
    low, high = 0.0, _MAX_EPSILON
    if _chance(right, guesses, slots=slots, epsilon=0.0, delta=delta) > 1 - confidence:
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_refuted = _chance(right, guesses, slots=slots, epsilon=middle, delta=delta) <= 1 - confidence
        low, high = (middle, high) if is_refuted else (low, middle)
    return low


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return the exact epsilon of mu-GDP at delta (Balle and Wang 2018, equation 6)."""
    low, high = 0.0, 1.0
    while _delta(mu, high) > delta:
        high *= 2
    for _ in range(_BISECTIONS * 2):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(mu, middle) > delta else (low, middle)
    return high


def _delta(mu: float, epsilon: float) -> float:
    # e^epsilon times a tail far below it: the product is taken in logarithms.
    first, second = _log_tail(epsilon / mu - mu / 2), epsilon + _log_tail(epsilon / mu + mu / 2)
    return math.exp(first) - math.exp(min(second, first))


def _log_tail(x: float) -> float:
    """Return log P(N(0, 1) > x)."""
    if x < 30:
        return math.log(0.5 * math.erfc(x / math.sqrt(2)))
    # The first terms of Mills' ratio; the rest is below 1e-6 of it.
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4)


def _chance(right: int, guesses: int, *, slots: int, epsilon: float, delta: float) -> float:
    """Return the bound on the probability of so many right guesses under (epsilon, delta)-DP."""
    rate = 1 / (1 + math.exp(-epsilon))
    base = binomial_tail(right, guesses, rate)
    if not delta:
        return base
    gains = (
        (binomial_tail(max(0, right - index), guesses, rate) - base) / index
        for index in range(1, min(right, _SLACK_TERMS) + 1)
    )
    return min(1.0, base + 2 * slots * delta * max(gains, default=0.0))
