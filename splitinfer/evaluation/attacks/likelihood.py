"""How well candidate tokens explain captured rows: the Gaussian log-density of the rows, a slab at a time.

Evaluation. With a variance s^2 for each slab, the score of a candidate is -sum of ||its row - captured row||^2 / (2
s^2): the Mahalanobis distance of a noise that is equal within a slab and differs between slabs. Where nothing was
added, the variances stand for rounding, and any wrong token misses by far more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from transformers import PreTrainedModel

from splitinfer import codec as codecs
from splitinfer.codec.transform import Artefact
from splitinfer.evaluation.attacks.observed import CapturedCache, CapturedSlab, Part
from splitinfer.evaluation.attacks.prefixes import Prefixes
from splitinfer.model.prefill import prefill

__all__ = [
    "RELATIVE_ROUNDING",
    "CacheLikelihood",
    "CacheNoise",
    "EmbeddingLikelihood",
    "Likelihood",
    "PerSlab",
    "Variances",
    "clipped",
    "codec_variances",
    "of_heads",
    "rounding_variances",
]

PerSlab = Mapping[tuple[int, Part], float | torch.Tensor]
"""A number for each layer's keys and values, or one for each of its heads, in the model's order of heads."""

Variances = PerSlab
"""The variance of one element of the rows, as the attacker knows or measured it."""

RELATIVE_ROUNDING = 1e-3
_GOOD_DEVIATIONS = 6.0
# Measured variances are means: a row may be rounded three times as hard, if it is still far nearer than any other.
_CLEAR_RATIO, _LOOSE = 16.0, 9.0


@dataclass(frozen=True, slots=True)
class CacheNoise:
    """What a policy publishes of the noise on the rows of a finished cache, from the first private one on.

    Either `sigmas` and the norms that rows were cut to, of every head, or `relative`, the noise over the size of what
    it hides.
    """

    sigmas: PerSlab = field(default_factory=dict)
    clip_norms: PerSlab = field(default_factory=dict)
    relative: float | None = None

    def variances(self, capture: CapturedCache, *, first: int) -> Variances:
        """Return the variances of a capture noised from row `first` on.

        Where the scale is that of the hidden rows, it follows from the noised ones: their mean square is 1 + r^2 times
        that of the hidden ones.
        """
        if self.relative is None:
            return {key: torch.as_tensor(sigma).double().square() for key, sigma in self.sigmas.items()}
        share = self.relative**2 / (1 + self.relative**2)
        return {
            (slab.layer, slab.part): share * slab.rows[:, max(0, first - slab.first) :].double().square().mean((1, 2))
            for slab in capture.slabs
        }


class Likelihood(Protocol):
    """Scores candidates at a position, given the prefixes before it."""

    def scores(self, prefixes: Prefixes, candidates: torch.Tensor) -> torch.Tensor:
        """Return the log-density [prefixes, candidates] of what was captured of the next position, up to a constant."""

    def is_good(self, position: int, best: float, second: float) -> bool:
        """Tell whether the best score is one that the true token would have; else a wider search may find a better."""


class CacheLikelihood:
    """Of captured cache rows: a candidate's rows are computed by the model itself, on the prefix.

    `clip_norms` are those of a mechanism that clips every head's row before it adds noise.
    """

    def __init__(self, capture: CapturedCache, variances: Variances, *, clip_norms: PerSlab | None = None) -> None:
        self._slabs = capture.slabs
        self._variances = variances
        self._clip_norms = clip_norms or {}
        self._last_layer = max(capture.layers)

    def scores(self, prefixes: Prefixes, candidates: torch.Tensor) -> torch.Tensor:
        """Return [prefixes, candidates]; zeros where no row of the position is held."""
        position = prefixes.length
        held = [slab for slab in self._slabs if slab.holds(position)]
        total = torch.zeros(candidates.shape, dtype=torch.float64)
        if not held:
            return total
        rows = prefixes.rows_after(candidates, last_layer=self._last_layer)
        for slab in held:
            key = slab.layer, slab.part
            squares = _squared_distances(rows[slab.layer], slab, position, clip_norm=self._clip_norms.get(key))
            total -= (squares / (2 * of_heads(self._variances[key], slab))).sum(2)
        return total

    def is_good(self, position: int, best: float, second: float) -> bool:
        """Compare -2 best with chi-square of as many degrees as elements are held, and with the runner-up."""
        held = [slab for slab in self._slabs if slab.holds(position)]
        if not held:
            return True
        elements = sum(slab.at(position).numel() for slab in held)
        is_clear = best > second / _CLEAR_RATIO and -2 * best <= _LOOSE * elements
        return is_clear or _is_plausible(best, elements)


class EmbeddingLikelihood:
    """Of noised embeddings: `noised` [tokens, hidden], noise of one standard deviation; no forward for a candidate."""

    def __init__(self, noised: torch.Tensor, embeddings: torch.Tensor, *, sigma: float) -> None:
        variance = max(sigma, 1e-6 * float(embeddings.std())) ** 2
        distances = torch.cdist(noised.double(), embeddings.double()) ** 2
        self._scores = -distances / (2 * variance)

    def scores(self, prefixes: Prefixes, candidates: torch.Tensor) -> torch.Tensor:
        """Return [prefixes, candidates]: all prefixes score a token alike."""
        return self._scores[prefixes.length][candidates]

    def is_good(self, position: int, best: float, second: float) -> bool:  # noqa: ARG002
        """Search on: scoring the whole vocabulary costs no forward."""
        return False


def rounding_variances(capture: CapturedCache, *, relative: float = RELATIVE_ROUNDING) -> Variances:
    """Return the variances of a capture to which nothing was added: so small a part of each slab's mean square."""
    return {
        (slab.layer, slab.part): (relative**2) * max(float(slab.rows.square().mean()), 1e-12) for slab in capture.slabs
    }


def codec_variances(
    model: PreTrainedModel, codec: str, *, token_ids: Sequence[int], artefact: Artefact | None = None
) -> Variances:
    """Measure what a codec of the product rounds away, on a cache of the attacker's own token ids.

    `artefact` is that of a calibrated codec.
    """
    ids = list(token_ids)
    snapshot = prefill(model, ids, steps=[(0, len(ids))])
    exact, moved = CapturedCache.of(snapshot), CapturedCache.of(codecs.move(snapshot, codec=codec, artefact=artefact))
    floor = rounding_variances(exact)
    return {
        (mine.layer, mine.part): float((mine.rows - theirs.rows).square().mean()) + floor[mine.layer, mine.part]
        for mine, theirs in zip(exact.slabs, moved.slabs, strict=True)
    }


def clipped(rows: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return rows [..., heads, candidates, dim] cut to the norm of their head, `limits` [heads]."""
    norms = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    scales: torch.Tensor = (limits.float()[:, None, None] / norms).clamp_max(1.0)
    return scales * rows


def _squared_distances(
    rows: tuple[torch.Tensor, torch.Tensor],
    slab: CapturedSlab,
    position: int,
    *,
    clip_norm: float | torch.Tensor | None,
) -> torch.Tensor:
    """Return [prefixes, candidates, heads]."""
    mine = rows[0 if slab.part == "keys" else 1].float()
    if len(slab.heads) != mine.shape[1]:
        mine = mine[:, list(slab.heads)]
    if clip_norm is not None:
        mine = clipped(mine, of_heads(clip_norm, slab))
    gap = mine - slab.at(position)[None, :, None, :]
    return gap.square().sum(3, dtype=torch.float64).transpose(1, 2)


def of_heads(value: float | torch.Tensor, slab: CapturedSlab) -> torch.Tensor:
    """Return one number for each head of the slab."""
    if isinstance(value, torch.Tensor):
        return value.double()[list(slab.heads)]
    return torch.full((len(slab.heads),), value, dtype=torch.float64)


def _is_plausible(score: float, elements: int) -> bool:
    return -2 * score <= elements + _GOOD_DEVIATIONS * math.sqrt(2 * elements)
