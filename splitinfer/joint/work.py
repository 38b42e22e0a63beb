"""What a run under `homomorphic` or `masked` does between prefill and tokens: policy and prompt -> Work; on the device.

A Work says beforehand what will leave at most, and then lends one step: token and position -> logits, computed with the
cloud over `exchange(record) -> record`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.device import Device
from splitinfer.handoff import PromptTokens, SamplingParams
from splitinfer.model.stepwise import Step
from splitinfer.rounds import Exchange
from trust_models.modes import TrustMode

__all__ = ["Work", "work_for"]


class Work(Protocol):
    """One run's share of the device. `packing` and `tokens_bucket` are what the log says of it."""

    @property
    def packing(self) -> str:
        """Return the name of the encoding of what crosses."""

    @property
    def tokens_bucket(self) -> int:
        """Return the size class of the tokens whose cache crosses; 0 where none does."""

    @property
    def rounds_bytes(self) -> int:
        """Return the most bytes that the records take on their way up, sealed."""

    @property
    def prefills(self) -> bool:
        """Tell whether it computes the prompt itself, so that there is no cache to give it."""

    def begin(self, exchange: Exchange, cache: CacheSnapshot | None) -> AbstractContextManager[Step]:
        """Open the half, give it the prompt's cache, and lend the step; the half's secrets are dropped afterwards."""


def work_for(
    device: Device, prompt: PromptTokens, params: SamplingParams, *, progress: Callable[[int], None] | None
) -> Work:
    """Return the policy's work; nothing was computed or sent yet.

    Raises UnsupportedModelError for an architecture that is not written out, CryptoParameterError, MasksExhaustedError,
    StateError, and PromptTooLongError where the policy bounds the prompt.
    """
    if device.policy.mode is TrustMode.HOMOMORPHIC:
        # SEAL's bindings come with an extra, and take a moment to load.
        from splitinfer.joint.homomorphic import HomomorphicWork

        return HomomorphicWork.of(device, prompt, params, progress=progress)
    from splitinfer.joint.masked import MaskedWork

    return MaskedWork.of(device, params)
