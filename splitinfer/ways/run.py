"""One run, as every way of going it sees it: what it has, and what the device computes of it; on the device.

PromptTokens and Plan -> CacheSnapshot -> text pieces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from splitinfer.asks import Place
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.device import Device
from splitinfer.errors import VerificationError
from splitinfer.handoff import PromptTokens, SamplingParams
from splitinfer.placement import Plan, Step
from splitinfer.recall import LOST_NOTE, Recall
from splitinfer.ways.calls import Calls
from splitinfer.ways.progress import Progress

__all__ = ["Run"]

# Fewer tokens say little of a device's speed.
LEAST_TIMED_TOKENS = 64


@dataclass(slots=True)
class Run:
    """What one run has: `recall` is what it goes on from, `progress` what became known, `calls` ask the cloud."""

    device: Device
    prompt: PromptTokens = field(repr=False)
    plan: Plan
    params: SamplingParams
    progress: Progress
    calls: Calls
    recall: Recall

    def prefill_on_held(self) -> CacheSnapshot:
        """Compute on the device what it does not hold of the conversation."""
        return self.prefill(self.steps_on_held(), onto=self.recall.cache)

    def steps_on_held(self) -> tuple[Step, ...]:
        """Return the steps that the device has not computed; what it holds is as exact as when it was made."""
        recall, progress = self.recall, self.progress
        if recall.held is not None:
            progress.is_exact &= recall.held.is_exact
            progress.origin = recall.held.origin
        return tuple(step for step in self.plan.steps if step[0] >= recall.held_tokens)

    def prefill(self, steps: tuple[Step, ...], *, onto: CacheSnapshot | None = None) -> CacheSnapshot:
        """Compute these steps here, onto the cache of those before them; the chooser learns how fast that was."""
        progress = self.device.prefill_progress(len(self.prompt.token_ids) - 1)
        began = time.perf_counter()
        snapshot = self.device.engine.prefill(self.prompt.token_ids, steps=steps, onto=onto, progress=progress)
        tokens = sum(stop - start for start, stop in steps)
        if self.device.chooser is not None and tokens >= LEAST_TIMED_TOKENS:
            seconds = max(time.perf_counter() - began, 1e-6)
            self.device.chooser.learn({"device_tokens_per_second": tokens / seconds})
        return snapshot

    def decode_here(self, snapshot: CacheSnapshot) -> Iterator[str]:
        """Make the answer here and yield its text; the cache is remembered or wiped."""
        ids = self.prompt.token_ids
        is_remembered = self.remember(snapshot, is_exact=self.progress.is_exact)
        decoding = self.device.engine.decode(snapshot, last_token=ids[-1], params=self.params)
        try:
            for token_id, piece in decoding:
                self.progress.saw_token(token_id)
                yield piece
        finally:
            decoding.close()
            if not is_remembered:
                wipe(snapshot)
        self.progress.finish_reason = decoding.finish_reason or ""
        yield decoding.tail

    def remember(self, snapshot: CacheSnapshot, *, is_exact: bool) -> bool:
        """Hand the prompt's cache to the conversation; False where it stays the caller's to wipe."""
        return self.recall.remember(snapshot, is_exact=is_exact, origin=self.progress.origin)

    def anew(self, place: Place) -> Place:
        """Place the transfer after one that the cloud refused because its session is lost; visible in the answer."""
        if not place.turn:
            raise VerificationError("the cloud says that it lost a session that was not continued")
        self.progress.notes.append(LOST_NOTE)
        return self.recall.anew()

    def may_fall_back(self) -> bool:
        """Tell whether the device may take over: by the policy, before the first token, after no sealed refusal."""
        carrier = self.progress.carrier
        wants = self.device.policy.fallback.on_remote_failure == "local"
        return wants and not self.progress.token_ids and not (carrier is not None and carrier.was_refused)
