"""Decode with a step of which parts are computed elsewhere: (token, position) -> logits -> new ids; on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from splitinfer.handoff import SamplingParams
from splitinfer.model.decode import FinishReason, Stopper
from splitinfer.model.sampling import Sampler

__all__ = ["Step", "StepwiseDecoder"]

Step: TypeAlias = Callable[[int, int], NDArray[np.floating[Any]]]
"""(token id, position counted from 0) -> logits [vocabulary]."""


class StepwiseDecoder(Iterator[int]):
    """As `decode.Decoder`, with one `step` a token; feeds `last_token` at `position`, then its own tokens."""

    def __init__(
        self,
        step: Step,
        *,
        last_token: int,
        position: int,
        params: SamplingParams,
        eos_token_ids: frozenset[int],
        stopper: Stopper,
    ) -> None:
        self._step: Step | None = step
        self._sampler = Sampler(params)
        self._max_new_tokens, self._eos_token_ids, self._stopper = params.max_new_tokens, eos_token_ids, stopper
        self._last_token, self._position = last_token, position
        self._made = 0
        self._finish_reason: FinishReason | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why decoding ended: "length", "end_of_text" or "stop"; None while it goes on."""
        return self._finish_reason

    def __next__(self) -> int:
        """Run one step; raises ModelError where the logits are not finite, and whatever the step raises."""
        if self._step is None or self._finish_reason is not None:
            raise StopIteration
        logits = self._step(self._last_token, self._position)
        token_id = self._sampler.choose(torch.from_numpy(np.ascontiguousarray(logits)))
        if token_id in self._eos_token_ids:
            self._finish_reason = "end_of_text"
            raise StopIteration
        self._last_token, self._position, self._made = token_id, self._position + 1, self._made + 1
        self._stopper.push(token_id)
        if self._stopper.stopped:
            self._finish_reason = "stop"
        elif self._made >= self._max_new_tokens:
            self._finish_reason = "length"
        return token_id

    def close(self) -> None:
        """Make no further step. Idempotent."""
        self._step = None
