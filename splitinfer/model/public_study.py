"""What caches of public text are like: a model and the built-in texts -> caches, and what noise on them costs.

Clip norms and the division of noise over a cache must not depend on anybody's text, so both are found on the texts of
`measure_texts`. The cost is measured one tensor at a time: a little noise on it alone, and the divergence of the next
tokens, per unit of variance of one number in each row. That noise hides nothing and may come from any generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.handoff import TensorName
from splitinfer.model.loading import LoadedModel
from splitinfer.model.measure import Window, measure, windows
from splitinfer.model.measure_texts import built_in_texts
from splitinfer.model.prefill import prefill

__all__ = ["PublicStudy", "study_public_text"]

_CONTEXT_TOKENS, _SCORED_TOKENS, _WINDOWS, _SCORED_WINDOWS = 256, 32, 4, 2
_RELATIVE_NOISE = 0.1
# No tensor is taken to cost less than this share of the dearest: two windows do not show such a difference.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class PublicStudy:
    """Caches of public texts; `losses` has nats a token per unit of variance of one number a row, by layer and tensor.

    Losses are positive.
    """

    caches: tuple[CacheSnapshot, ...] = field(repr=False)
    losses: Mapping[tuple[int, TensorName], float]


def study_public_text(loaded: LoadedModel) -> PublicStudy:
    """Prefill windows of the built-in texts, and measure what noise on each tensor costs.

    Raises UsageError where the texts are too short for this model's tokenizer.
    """
    texts = built_in_texts(loaded.directory)
    scored = windows(loaded, texts, context_tokens=_CONTEXT_TOKENS, scored_tokens=_SCORED_TOKENS, limit=_WINDOWS)
    caches = tuple(_prefilled(loaded, window) for window in scored)
    losses = {place: _loss(loaded, scored[:_SCORED_WINDOWS], caches, place) for place in _places(caches[0])}
    least = max(losses.values(), default=0.0) * _LEAST_SHARE
    return PublicStudy(caches, {place: max(loss, least) or 1.0 for place, loss in losses.items()})


def _prefilled(loaded: LoadedModel, window: Window) -> CacheSnapshot:
    context = window.context_tokens
    return prefill(loaded.model, window.token_ids[:context], steps=[(0, context)])


def _places(cache: CacheSnapshot) -> list[tuple[int, TensorName]]:
    return [(index, tensor.name) for index, layer in enumerate(cache.layout.layers) for tensor in layer.tensors]


def _loss(
    loaded: LoadedModel, scored: Sequence[Window], caches: Sequence[CacheSnapshot], place: tuple[int, TensorName]
) -> float:
    index, name = place
    tensors = [cache.layers[index][name].double() for cache in caches]
    variance = _RELATIVE_NOISE**2 * sum(float((x * x).mean()) for x in tensors) / len(tensors)
    numbers = sum(x.numel() for x in tensors) / sum(cache.true_tokens for cache in caches)
    if not variance:
        return 0.0
    found = measure(loaded, scored, through=_noisy(index, name, sigma=variance**0.5))
    return max(found.kl_nats, 0.0) / (variance * numbers)


def _noisy(index: int, name: TensorName, *, sigma: float) -> Callable[[CacheSnapshot], CacheSnapshot]:
    def through(snapshot: CacheSnapshot) -> CacheSnapshot:
        exact = snapshot.layers[index][name]
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(exact.shape, generator=generator, dtype=torch.float64) * sigma
        layers = list(snapshot.layers)
        layers[index] = {**layers[index], name: (exact.cpu().double() + noise).to(exact.dtype)}
        return replace(snapshot, layers=tuple(layers))

    return through
