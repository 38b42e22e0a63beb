"""Prefill: token ids and steps -> CacheSnapshot, on whichever side the plan says.

Every step is one forward on the growing cache (one a token for the few models that `cache.live.feed` names). The
steps are the same in every mode, so that the same tokens give bit-equal caches; only the base model runs, which
computes no logits, and the prompt's last token is left to `decode`. Where the model bears it
(`probe.prefill_ends_early`), a step ends as soon as its cache is complete; the cache is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from splitinfer.cache.live import feed, new_cache
from splitinfer.cache.snapshot import CacheSnapshot, restore, take
from splitinfer.errors import EmptyPromptError, LayoutMismatchError, PromptError
from splitinfer.handoff import CacheLayout
from splitinfer.model.early_end import watching

__all__ = ["BURN_STEP_TOKENS", "advance", "burn", "burn_steps", "prefill", "require_prompt"]

BURN_STEP_TOKENS = 512


def prefill(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    steps: Sequence[tuple[int, int]],
    onto: CacheSnapshot | None = None,
    layout: CacheLayout | None = None,
    progress: Callable[[int], None] | None = None,
    ends_early: bool = False,
    embeddings: torch.Tensor | None = None,
) -> CacheSnapshot:
    """Run `token_ids[start:stop]` for every step and return the cache of all tokens up to the last `stop`.

    `token_ids` is the whole prompt: with `onto`, the cache of its first tokens, the steps start where that ends.
    `layout` is the model's, where it is known (see `snapshot.take`).
    `progress` is called after every step with the number of prompt tokens that are in the cache by then.
    `ends_early` ends every step's forward at the last cache layer (see `early_end.ending_early`).
    `embeddings`, [1, tokens, dim] of the whole prompt, are all that the model then sees of it (see `embeddings`).
    Raises EmptyPromptError without any step and cache, LayoutMismatchError for steps that leave a gap, overlap or
    pass the end, PromptError for an id outside the vocabulary.
    """
    require_prompt(model, token_ids, steps=steps, onto=onto)
    if onto is not None and not steps:
        return onto
    cache = new_cache(model.config) if onto is None else restore(onto, model.config, device=model.device)
    with torch.inference_mode():
        for start, stop in steps:
            rows = None if embeddings is None else embeddings[:, start:stop]
            advance(model, token_ids[start:stop], cache, ends_early=ends_early, embeddings=rows)
            if progress is not None:
                progress(stop)
    return take(cache, true_tokens=steps[-1][1], layout=layout)


def burn(model: PreTrainedModel, tokens: int, *, ends_early: bool = False) -> None:
    """Run a forward over `tokens` dummy tokens on an empty cache and discard it, so that time shows the padded size.

    `ends_early` must be that of the prefill, so that a dummy token takes a real one's time.
    """
    if tokens <= 0:
        return
    cache = new_cache(model.config)
    with torch.inference_mode():
        for start, stop in burn_steps(tokens):
            advance(model, [0] * (stop - start), cache, ends_early=ends_early)


def burn_steps(tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the steps of a burn."""
    for start in range(0, tokens, BURN_STEP_TOKENS):
        yield start, min(start + BURN_STEP_TOKENS, tokens)


def advance(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    cache: DynamicCache,
    *,
    ends_early: bool,
    stored: Callable[[int], None] | None = None,
    embeddings: torch.Tensor | None = None,
) -> None:
    """Run one step on the live cache; `stored(layer)` is called whenever a layer has stored (`early_end.watching`)."""
    with watching(cache, stored=stored, ends_early=ends_early):
        feed(model.base_model, token_ids, cache, embeddings=embeddings)


def require_prompt(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    steps: Sequence[tuple[int, int]],
    onto: CacheSnapshot | None,
) -> None:
    """Refuse steps and token ids that cannot be prefilled; raises as `prefill` does."""
    done = 0 if onto is None else onto.true_tokens
    _require_steps(steps, first=done, last=len(token_ids))
    if steps:
        _require_vocabulary(model, token_ids[done : steps[-1][1]])
    elif onto is None:
        raise EmptyPromptError("the prompt needs at least two tokens: one to prefill and one to decode from")


def _require_steps(steps: Sequence[tuple[int, int]], *, first: int, last: int) -> None:
    for start, stop in steps:
        if start != first or not start < stop <= last:
            raise LayoutMismatchError(f"step {start}:{stop} does not continue a cache of {first} of {last} tokens")
        first = stop


def _require_vocabulary(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    vocabulary = model.get_input_embeddings().num_embeddings
    if min(token_ids) < 0 or max(token_ids) >= vocabulary:
        raise PromptError(f"a token id is outside the model's vocabulary of {vocabulary}")
