"""Closed-set confirmation: captured evidence and 100 look-alikes of a private value -> the rank of the true one.

Threat: an attacker who knows the rest of the prompt and asks only which of a hundred values stands in it. Source: the
counting of ties is that of the audit "Fresh Shuffles, Reused Secrets": with g candidates scored strictly higher and m
scored equal, the true one included, it is among the first k with probability max(0, min(1, (k - g) / m)). A seat that
sees nothing has m = 100 and a chance of 1 in 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.likelihood import PerSlab, Variances, clipped, of_heads
from splitinfer.evaluation.attacks.observed import CapturedCache
from splitinfer.evaluation.attacks.prefixes import rows_of

__all__ = ["Confirmed", "cache_score", "confirm", "transcript_score"]

TIE_NATS = 1e-9


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Where the true value stands among `candidates`: `higher` scored strictly more, `tied` equal, itself included."""

    candidates: int
    higher: int
    tied: int

    def chance_in_first(self, count: int) -> float:
        """Return the probability that it is among the first `count` when ties are broken at random."""
        return max(0.0, min(1.0, (count - self.higher) / self.tied))


def confirm(scores: Sequence[float], *, true_index: int) -> Confirmed:
    """Rank the true candidate by the scores of all; equal scores, also of minus infinity, are ties."""
    if not 0 <= true_index < len(scores):
        raise UsageError("the true value is not among the candidates")
    mine = scores[true_index]
    is_tied = [score == mine or abs(score - mine) <= TIE_NATS for score in scores]
    higher = sum(score > mine and not tied for score, tied in zip(scores, is_tied, strict=True))
    return Confirmed(len(scores), higher, sum(is_tied))


def cache_score(
    model: PreTrainedModel, capture: CapturedCache, variances: Variances, *, clip_norms: PerSlab | None = None
) -> Callable[[Sequence[int]], float]:
    """Return what scores a whole prompt's ids against captured rows: the Gaussian log-density of all of them.

    Another number of tokens than the cache has is impossible. `clip_norms` are those of a mechanism that cuts rows.
    """

    def score(token_ids: Sequence[int]) -> float:
        if len(token_ids) != capture.tokens:
            return float("-inf")
        mine = rows_of(model, token_ids, last_layer=max(capture.layers))
        total = 0.0
        for slab in capture.slabs:
            rows = mine[slab.layer][0 if slab.part == "keys" else 1][0, list(slab.heads), slab.first : slab.stop]
            limit = (clip_norms or {}).get((slab.layer, slab.part))
            cut = rows.float() if limit is None else clipped(rows.float(), of_heads(limit, slab))
            gaps = (cut - slab.rows).double().square().sum((1, 2))
            total -= float((gaps / (2 * of_heads(variances[slab.layer, slab.part], slab))).sum())
        return total

    return score


def transcript_score(sizes: Sequence[int]) -> Callable[[Sequence[int]], float]:
    """Return what scores the message sizes that a candidate would cause against those that were seen."""
    seen = torch.tensor(list(sizes), dtype=torch.float64)

    def score(expected: Sequence[int]) -> float:
        if len(expected) != len(seen):
            return float("-inf")
        return -float((torch.tensor(list(expected), dtype=torch.float64) - seen).abs().sum())

    return score
