"""Collision and collision+: rows of one layer -> token ids, by an accept threshold; for comparison.

Threat: a reader of one layer's keys and values who has the weights. Source: the public code of the KV-Cloak authors.
At each position the vocabulary is taken in the order of the model's next-token probability, in batches; of each
candidate two distances count, of its keys and of its values to the captured row. Collision accepts the first candidate
whose both distances are below mean - 3 deviations of its batch; collision+ the first below 1.01 times two thresholds
measured on a text of the attacker's own. As published, the attack stops where nobody is accepted, and what follows is
lost; `never_stops` takes the nearest candidate there and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.observed import CapturedCache, CapturedSlab
from splitinfer.evaluation.attacks.posterior import Recovered
from splitinfer.evaluation.attacks.prefixes import CHUNK_CANDIDATES, Prefixes

__all__ = ["Thresholds", "calibrate", "collide"]

_SLACK = 1.01
_DEVIATIONS = 3.0
_DRAWS = 5
_STEPS = 400


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Collision+'s two thresholds on the Frobenius distances over heads."""

    keys: float
    values: float


def collide(
    model: PreTrainedModel,
    capture: CapturedCache,
    *,
    layer: int,
    thresholds: Thresholds | None = None,
    never_stops: bool = False,
) -> Recovered:
    """Attack one layer: collision, or collision+ where `thresholds` are given. Unreached positions are -1."""
    keys, values = _pair(capture, layer)
    prefixes = Prefixes(model, positions=capture.tokens)
    vocabulary = model.get_input_embeddings().num_embeddings
    prior = torch.zeros(1, vocabulary)
    found: list[int] = []
    tried = 0
    for position in range(capture.tokens):
        order = prior[0].argsort(descending=True, stable=True)
        token, count = _first_accepted(prefixes, (keys, values), order, thresholds, never_stops=never_stops)
        tried += count
        if token is None:
            break
        found.append(token)
        if position + 1 < capture.tokens:
            prior = prefixes.advance(torch.tensor([token]))
    return Recovered((*found, *[-1] * (capture.tokens - len(found))), candidates=tried)


def calibrate(
    model: PreTrainedModel, protected: CapturedCache, *, layer: int, token_ids: Sequence[int], wrong: int = 64
) -> Thresholds:
    """Measure the thresholds on a cache of the attacker's own tokens, protected as the victim's was.

    For each part: midway between the right tokens' largest distance and the wrong ones' smallest; where these overlap,
    the t that maximises P(right < t) P(wrong >= t)^4 of two fitted normals. `wrong` tokens are drawn a position.
    """
    slabs = _pair(protected, layer)
    prefixes = Prefixes(model, positions=protected.tokens)
    vocabulary = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    right: list[list[float]] = [[], []]
    others: list[list[float]] = [[], []]
    for token in token_ids:
        tokens = torch.cat([torch.tensor([token]), torch.randint(0, vocabulary, (wrong,), generator=draw)])
        for part, distances in enumerate(_distances(prefixes, tokens, slabs)):
            right[part].append(float(distances[0]))
            others[part] += distances[1:][tokens[1:] != token].tolist()
        prefixes.advance(torch.tensor([token]))
    return Thresholds(*(_threshold(torch.tensor(r), torch.tensor(o)) for r, o in zip(right, others, strict=True)))


def _first_accepted(
    prefixes: Prefixes,
    slabs: tuple[CapturedSlab, CapturedSlab],
    order: torch.Tensor,
    thresholds: Thresholds | None,
    *,
    never_stops: bool,
) -> tuple[int | None, int]:
    nearest: tuple[float, int | None] = (float("inf"), None)
    tried = 0
    for batch in torch.split(order, CHUNK_CANDIDATES):
        keys, values = _distances(prefixes, batch, slabs)
        tried += len(batch)
        limits = (thresholds.keys, thresholds.values) if thresholds is not None else (None, None)
        accepted = (keys < _limit(keys, limits[0])) & (values < _limit(values, limits[1]))
        if bool(accepted.any()):
            return int(batch[int(accepted.int().argmax())]), tried
        both = keys + values
        nearest = min(nearest, (float(both.min()), int(batch[int(both.argmin())])))
    return (nearest[1] if never_stops else None), tried


def _limit(distances: torch.Tensor, threshold: float | None) -> float:
    if threshold is not None:
        return _SLACK * threshold
    return float(distances.mean() - _DEVIATIONS * distances.std())


def _distances(
    prefixes: Prefixes, tokens: torch.Tensor, slabs: tuple[CapturedSlab, CapturedSlab]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distances [candidates] of keys and of values to the captured rows of the next position."""
    rows = prefixes.rows_after(tokens[None], last_layer=slabs[0].layer)[slabs[0].layer]
    first, second = (
        (mine[0, list(slab.heads)] - slab.at(prefixes.length)[:, None]).square().sum((0, 2)).sqrt()
        for mine, slab in zip(rows, slabs, strict=True)
    )
    return first, second


def _pair(capture: CapturedCache, layer: int) -> tuple[CapturedSlab, CapturedSlab]:
    keys, values = capture.find(layer, "keys"), capture.find(layer, "values")
    if keys is None or values is None or keys.first or values.first:
        raise UsageError(f"collision needs all rows of keys and values of layer {layer}; capture that layer whole")
    return keys, values


def _threshold(right: torch.Tensor, wrong: torch.Tensor) -> float:
    if right.max() < wrong.min():
        return float((right.max() + wrong.min()) / 2)
    grid = torch.linspace(float(right.mean()), float(wrong.mean()), _STEPS)
    below = [torch.special.ndtr((grid - part.mean()) / part.std().clamp_min(1e-12)) for part in (right, wrong)]
    chance = below[0] * (1 - below[1]) ** (_DRAWS - 1)
    return float(grid[int(chance.argmax())])
