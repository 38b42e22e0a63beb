"""Prefill in a thread of its own: token ids and steps -> GrowingCache, whose rows are read while it runs; both sides.

The steps, and so the bits, are those of `prefill`. After the prompt's tokens the thread spends the time of the padding
tokens, and only then says that it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from splitinfer.cache.early_rows import EarlyRows
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.kinds import Kind, kind_of
from splitinfer.cache.live import new_cache, wipe_live
from splitinfer.cache.snapshot import CacheSnapshot, restore, storages, take, wipe
from splitinfer.errors import EmptyPromptError
from splitinfer.handoff import CacheLayout, TensorName
from splitinfer.model.prefill import advance, burn_steps, require_prompt
from splitinfer.schedule import pad_new_tokens

__all__ = ["start_prefill"]

# Tensors that grow by rows at their end; of a window the oldest rows go, the other states change.
_GROWING = ("tokens", "entries")


def start_prefill(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    steps: Sequence[tuple[int, int]],
    layout: CacheLayout,
    onto: CacheSnapshot | None = None,
    padded_tokens: int | None = None,
    base_tokens: int = 0,
    guard: AbstractContextManager[object] | None = None,
    progress: Callable[[int], None] | None = None,
    count: Callable[[int], None] = lambda _: None,
    ends_early: bool = False,
    embeddings: torch.Tensor | None = None,
) -> GrowingCache:
    """Run the steps as `prefill` does, in a thread; `guard`, a lock that can be taken again and again, is held a step.

    `onto` stays the caller's: it is not wiped with the cache, and must not change until the prefill is over. Its rows
    count as done, so how much leaves at once shows its length. `padded_tokens` is the size class, by default that of
    the last step's end; rows before `base_tokens` do not leave, and the class is then that of what lies behind them.
    `embeddings` are all that the model sees of the prompt, as in `prefill`.
    `progress` is called as `GrowingCache` says, `count` with the tokens of every step, under the guard. Raises as
    `prefill` does, and EmptyPromptError without any step, before anything is computed.
    """
    require_prompt(model, token_ids, steps=steps, onto=onto)
    if not steps:
        raise EmptyPromptError("there are no tokens to prefill; use the cache as it is")
    true_tokens = steps[-1][1]
    padded = pad_new_tokens(true_tokens, base_tokens) if padded_tokens is None else padded_tokens
    run = _Run(
        model=model,
        token_ids=tuple(token_ids),
        steps=tuple(steps),
        onto=onto,
        layout=layout,
        padded_tokens=padded,
        guard=guard or nullcontext(),
        count=count,
        ends_early=ends_early,
        embeddings=embeddings,
        # A new thread has settings of its own.
        threads=torch.get_num_threads(),
    )
    rule = EarlyRows.of(layout, padded_tokens=padded, steps=steps, base_tokens=base_tokens)
    return GrowingCache(rule, run.fill, true_tokens=true_tokens, progress=progress)


@dataclass(frozen=True, slots=True)
class _Run:
    """What the thread works on."""

    model: PreTrainedModel
    token_ids: tuple[int, ...] = field(repr=False)
    steps: tuple[tuple[int, int], ...]
    onto: CacheSnapshot | None
    layout: CacheLayout
    padded_tokens: int
    guard: AbstractContextManager[object]
    count: Callable[[int], None]
    ends_early: bool
    embeddings: torch.Tensor | None = field(repr=False)
    threads: int

    def fill(self, growing: GrowingCache) -> CacheSnapshot:
        """Prefill, spend the padding time, return the snapshot; where that fails or is stopped, zero what there is."""
        torch.set_num_threads(self.threads)
        cache = new_cache(self.model.config) if self.onto is None else self._restored(self.onto)
        snapshot: CacheSnapshot | None = None
        try:
            self._prefill(cache, growing)
            snapshot = take(cache, true_tokens=self.steps[-1][1], layout=self.layout)
            self._burn(growing)
        except BaseException:
            wipe_live(cache, keep=() if self.onto is None else storages(self.onto))
            if snapshot is not None:
                wipe(snapshot)
            raise
        return snapshot

    def _restored(self, onto: CacheSnapshot) -> DynamicCache:
        return restore(onto, self.model.config, device=self.model.device)

    def _prefill(self, cache: DynamicCache, growing: GrowingCache) -> None:
        # Before a forward: while one runs, its layers have an attribute that the table of kinds refuses.
        kinds = [kind_of(index, layer) for index, layer in enumerate(cache.layers)]
        layers = len(kinds)
        for start, stop in self.steps:

            def stored(index: int, start: int = start, stop: int = stop) -> None:
                work = start * layers + (stop - start) * index
                growing.grew(work, index, _complete(kinds[index], cache.layers[index], tokens=stop))

            rows = None if self.embeddings is None else self.embeddings[:, start:stop]
            with self.guard, torch.inference_mode():
                advance(
                    self.model,
                    self.token_ids[start:stop],
                    cache,
                    ends_early=self.ends_early,
                    stored=stored,
                    embeddings=rows,
                )
                self.count(stop - start)
            for index, kind in enumerate(kinds):
                growing.grew(stop * layers, index, _complete(kind, cache.layers[index], tokens=stop))
            growing.report(stop)

    def _burn(self, growing: GrowingCache) -> None:
        """Go on with padding tokens on an empty cache; the work that they are counts as the prompt's does."""
        cache, true_tokens = new_cache(self.model.config), self.steps[-1][1]
        layers = len(cache.layers)
        for start, stop in burn_steps(self.padded_tokens - true_tokens):

            def stored(index: int, start: int = start, stop: int = stop) -> None:
                growing.grew((true_tokens + start) * layers + (stop - start) * index)

            with self.guard, torch.inference_mode():
                advance(self.model, [0] * (stop - start), cache, ends_early=self.ends_early, stored=stored)


def _complete(kind: Kind, layer: Any, *, tokens: int) -> dict[TensorName, torch.Tensor]:
    """Return the tensors of a live layer that grow by rows and hold those of `tokens` tokens."""
    found: dict[TensorName, torch.Tensor] = {}
    for part in kind.parts:
        tensor = part.read(layer)
        if part.rows not in _GROWING or tensor is None or tensor.dim() != part.lead + 3:
            continue
        held = tokens if part.rows == "tokens" else tokens // layer.compress_rate
        if tensor.shape[1 + part.lead] == held:
            found[part.name] = tensor
    return found
