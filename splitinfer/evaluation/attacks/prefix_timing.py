"""Prefix-cache timing: the time of a request -> whether another tenant's prefix is cached.

Threat: a tenant of the same server who may only send requests and watch a clock. Sources: arXiv 2411.18191
(PromptPeek), CVE-2025-46570. A request whose prefix was prefilled for somebody else comes back sooner. The figure is
the area under the ROC curve of "sooner means cached": 0.5 is chance. Nothing is known here about the server but a
callable that sends a request and returns its seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinfer.errors import UsageError

__all__ = ["TimingResult", "area_under_curve", "probe"]

_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class TimingResult:
    """Seconds of requests whose prefix a victim had sent (`hits`) and of those that nobody had (`misses`)."""

    hits: tuple[float, ...] = field(repr=False)
    misses: tuple[float, ...] = field(repr=False)

    @property
    def auc(self) -> float:
        """Return the area under the ROC curve of "sooner means cached"."""
        return area_under_curve(lower=self.hits, higher=self.misses)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the area, by the standard error of Hanley and McNeil (Radiology 1982)."""
        area, hits, misses = self.auc, len(self.hits), len(self.misses)
        above, below = area / (2 - area), 2 * area**2 / (1 + area)
        spread = area * (1 - area) + (hits - 1) * (above - area**2) + (misses - 1) * (below - area**2)
        half = _NORMAL_95 * math.sqrt(max(0.0, spread) / (hits * misses))
        return max(0.0, area - half), min(1.0, area + half)

    def to_json(self) -> dict[str, object]:
        """Return the area, its interval and the counts."""
        low, high = self.interval
        counts = {"hits": len(self.hits), "misses": len(self.misses)}
        return {"auc": round(self.auc, 6), "low": round(low, 6), "high": round(high, 6), **counts}


def probe(
    *,
    victim: Callable[[Sequence[int]], object],
    attacker_seconds: Callable[[Sequence[int]], float],
    prefixes: Sequence[Sequence[int]],
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TimingResult:
    """Let the victim send a random half of the prefixes, each at its turn, and time the attacker on every one.

    Each prefix is used once, so that the attacker's own request warms nothing. Raises UsageError for fewer than two.
    """
    if len(prefixes) < 2:
        raise UsageError("timing needs at least two prefixes: one to hit and one to miss")
    order = list(range(len(prefixes)))
    random.Random(seed).shuffle(order)
    warmed = set(order[: len(order) // 2])
    times: dict[bool, list[float]] = {True: [], False: []}
    for place, prefix in enumerate(prefixes):
        if place in warmed:
            victim(prefix)
        times[place in warmed].append(attacker_seconds(prefix))
        if progress is not None:
            progress(place + 1)
    return TimingResult(tuple(times[True]), tuple(times[False]))


def area_under_curve(*, lower: Sequence[float], higher: Sequence[float]) -> float:
    """Return the chance that one of `lower` is below one of `higher`, ties counting half (Mann-Whitney)."""
    ranked = sorted([(value, 0) for value in lower] + [(value, 1) for value in higher])
    wins, seen_lower, place = 0.0, 0, 0
    while place < len(ranked):
        stop = place
        while stop < len(ranked) and ranked[stop][0] == ranked[place][0]:
            stop += 1
        ties = [side for _, side in ranked[place:stop]]
        lows = ties.count(0)
        wins += ties.count(1) * (seen_lower + lows / 2)
        seen_lower += lows
        place = stop
    return wins / (len(lower) * len(higher))
