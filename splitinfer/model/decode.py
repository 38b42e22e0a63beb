"""Decode: CacheSnapshot and the prompt's last token -> new token ids, one a step; the one loop of device and cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from splitinfer.cache.live import feed, wipe_live
from splitinfer.cache.snapshot import CacheSnapshot, restore
from splitinfer.errors import PromptError
from splitinfer.handoff import SamplingParams
from splitinfer.model.sampling import Sampler

__all__ = ["Decoder", "FinishReason", "Stopper"]

FinishReason = Literal["length", "end_of_text", "stop"]


class Stopper(Protocol):
    """Sees every token and says when a stop string has appeared; `text.TextStream` is one."""

    @property
    def stopped(self) -> bool:
        """Return whether a stop string has appeared."""

    def push(self, token_id: int) -> str:
        """Take one token."""


class Decoder(Iterator[int]):
    """Token ids as they are made; `finish_reason` is set with the last one.

    Feeds `last_token` on the restored cache, then its own tokens. The end-of-text token is not among the ids; the
    token that completes a stop string is. Raises UsageError for sampling parameters out of range, PromptError for a
    last token outside the vocabulary, LayoutMismatchError for another model's cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        snapshot: CacheSnapshot,
        *,
        last_token: int,
        params: SamplingParams,
        eos_token_ids: frozenset[int],
        stopper: Stopper,
    ) -> None:
        vocabulary = model.get_input_embeddings().num_embeddings
        if not 0 <= last_token < vocabulary:
            raise PromptError(f"the last token's id is outside the model's vocabulary of {vocabulary}")
        self._model = model
        self._sampler = Sampler(params)
        self._max_new_tokens = params.max_new_tokens
        self._eos_token_ids = eos_token_ids
        self._stopper = stopper
        self._cache: DynamicCache | None = restore(snapshot, model.config, device=model.device)
        self._last_token = last_token
        self._steps = 0
        self._finish_reason: FinishReason | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why decoding ended: "length", "end_of_text" or "stop"; None while it goes on."""
        return self._finish_reason

    def __next__(self) -> int:
        """Run one step; raises ModelError where the logits are not finite."""
        if self._cache is None or self._finish_reason is not None:
            self.close()
            raise StopIteration
        token_id = self._sampler.choose(self._forward(self._cache))
        if token_id in self._eos_token_ids:
            self._finish_reason = "end_of_text"
            self.close()
            raise StopIteration
        self._last_token = token_id
        self._stopper.push(token_id)
        self._finish_reason = self._reason()
        return token_id

    def close(self) -> None:
        """Zero and drop the cache that grew (best effort); the snapshot stays as it is. Idempotent."""
        # Before the first step the live cache still shares the snapshot's tensors.
        if self._cache is not None and self._steps:
            wipe_live(self._cache)
        self._cache = None

    def _forward(self, cache: DynamicCache) -> torch.Tensor:
        with torch.inference_mode():
            output = feed(self._model, [self._last_token], cache)
        self._steps += 1
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _reason(self) -> FinishReason | None:
        if self._stopper.stopped:
            return "stop"
        return "length" if self._steps >= self._max_new_tokens else None
