"""What a codec costs a model: texts -> Loss; on any machine that has the model.

Every window of text is prefilled, its cache is moved through the codec, and the tokens after it are fed, the same ones
on the exact cache and on the moved one. Compared are the distributions of the next token, as decode would see them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from splitinfer.cache.live import logits_of
from splitinfer.cache.snapshot import CacheSnapshot, restore
from splitinfer.errors import UsageError
from splitinfer.model.loading import LoadedModel
from splitinfer.model.prefill import prefill
from trust_models.codecs import Loss

__all__ = ["Window", "measure", "windows"]

_STEP_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of one text: the first `context_tokens` are prefilled, the others are fed and predicted."""

    token_ids: tuple[int, ...]
    context_tokens: int


def windows(
    loaded: LoadedModel, texts: Sequence[str], *, context_tokens: int, scored_tokens: int, limit: int
) -> tuple[Window, ...]:
    """Cut texts into windows that do not overlap, at most `limit`, taken in turn from every text.

    The context is shortened to the model's positions. Raises UsageError for texts too short for two windows.
    """
    size = min(context_tokens + scored_tokens + 1, loaded.max_positions)
    context = size - scored_tokens - 1
    if context < 1:
        raise UsageError(f"the model has {loaded.max_positions} positions; score fewer tokens a window")
    queues = [iter(_cut(loaded.tokenizer.encode(text, add_special_tokens=False), size)) for text in texts]
    found = [Window(ids, context) for ids in _in_turn(queues)][:limit]
    if len(found) < 2:
        raise UsageError(f"the texts are too short: two windows of {size} tokens are needed, give longer --text files")
    return tuple(found)


def measure(
    loaded: LoadedModel,
    scored: Sequence[Window],
    *,
    through: Callable[[CacheSnapshot], CacheSnapshot],
    progress: Callable[[int, int], None] | None = None,
) -> Loss:
    """Return the loss of moving each window's cache `through` a codec; the error is that of windows, not of tokens."""
    rows = []
    for done, window in enumerate(scored, start=1):
        rows.append(_window_figures(loaded, window, through))
        if progress is not None:
            progress(done, len(scored))
    # [windows, figures]: divergence, agreement, cross-entropy moved and exact; windows are equally long.
    table = torch.stack(rows)
    divergence, agreement, moved, exact = table.mean(0).tolist()
    error = float(table[:, 0].std()) / math.sqrt(len(rows))
    tokens = sum(len(window.token_ids) - window.context_tokens - 1 for window in scored)
    return Loss(divergence, error, agreement, math.exp(moved - exact), tokens)


def _window_figures(
    loaded: LoadedModel, window: Window, through: Callable[[CacheSnapshot], CacheSnapshot]
) -> torch.Tensor:
    context = window.context_tokens
    steps = [(at, min(at + _STEP_TOKENS, context)) for at in range(0, context, _STEP_TOKENS)]
    snapshot = prefill(loaded.model, window.token_ids[:context], steps=steps)
    exact = _log_probabilities(loaded, snapshot, window)
    moved = _log_probabilities(loaded, through(snapshot), window)
    targets = torch.tensor(window.token_ids[context + 1 :]).unsqueeze(1)
    figures = (
        (exact.exp() * (exact - moved)).sum(1),
        (exact.argmax(1) == moved.argmax(1)).double(),
        -moved.gather(1, targets),
        -exact.gather(1, targets),
    )
    return torch.stack([figure.mean() for figure in figures])


def _log_probabilities(loaded: LoadedModel, snapshot: CacheSnapshot, window: Window) -> torch.Tensor:
    """Feed the tokens after the context on a cache; returns [scored tokens, vocabulary] in float64."""
    cache = restore(snapshot, loaded.model.config, device=loaded.model.device)
    with torch.inference_mode():
        logits = logits_of(loaded.model, window.token_ids[window.context_tokens : -1], cache)
    return torch.log_softmax(logits.double().cpu(), dim=-1)


def _cut(token_ids: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(token_ids) - size + 1, size):
        yield tuple(token_ids[start : start + size])


def _in_turn(queues: list[Iterator[tuple[int, ...]]]) -> Iterator[tuple[int, ...]]:
    while queues:
        for queue in list(queues):
            ids = next(queue, None)
            if ids is None:
                queues.remove(queue)
            else:
                yield ids
