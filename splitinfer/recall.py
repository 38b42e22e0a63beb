"""One run's use of the session's memory: what it goes on from, here and at the cloud, and what it leaves behind.

PromptTokens and Plan -> base of this run, Place of its transfer; CacheSnapshot and Receipt -> Conversation; on the
device. The twin of `reuse`, which does the same with the store.
"""

from __future__ import annotations

from splitinfer import schedule
from splitinfer.asks import Place
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.conversation import Held, Link, Origin, Past
from splitinfer.device import Device
from splitinfer.handoff import PromptTokens
from splitinfer.placement import Plan
from splitinfer.sealing.receipt import Receipt
from trust_models.modes import TrustMode

__all__ = ["LOST_NOTE", "Recall"]

LOST_NOTE = "the cloud no longer held this session's cache, so everything was sent again under a new transfer"


class Recall:
    """What one run has of the conversation. `held_tokens` of its prompt are in the device's memory."""

    def __init__(self, device: Device, prompt: PromptTokens, plan: Plan) -> None:
        self._device, self._plan, self._prompt = device, plan, prompt
        self._conversation = device.conversation
        self._number = 0
        self.held_tokens = self._conversation.base_tokens(prompt.token_ids, plan.steps)

    @property
    def cache(self) -> CacheSnapshot | None:
        """Return the cache of those tokens, as views of what is held; None for none."""
        return self._conversation.cache(self.held_tokens)

    @property
    def held(self) -> Held | None:
        """Return what is held, where this run goes on from any of it."""
        return self._conversation.held if self.held_tokens else None

    def prefill_place(self) -> Place:
        """Place a prefill: onto what both sides hold; of public text, of which the cloud owes nothing, the device.

        What was private before is no base to tell the cloud of, even where it is public now.
        """
        if self._plan.mode is TrustMode.PUBLIC_PREFIX:
            base = min(self.held_tokens, self.held.public_tokens if self.held else 0)
            return Place(base_tokens=base if self._conversation.can_give(base) else 0)
        linked = self._linked(self.held_tokens)
        return self._place(linked if self._conversation.can_give(linked) else 0)

    def decode_place(self) -> Place:
        """Place a decode: onto what the cloud holds, since the device has all of it."""
        return self._place(self._linked(None))

    def anew(self) -> Place:
        """Place a transfer that brings everything: a first turn, whatever the cloud held before."""
        return self._place(0)

    def sends(self, place: Place) -> None:
        """Note what the cloud may hold from now on; what it holds for sure is known with the receipt."""
        if self._plan.mode is not TrustMode.PUBLIC_PREFIX:
            self._number = self._conversation.begin_transfer()
            self._conversation.may_be_held_by_cloud |= place.keep

    def received(self, place: Place, receipt: Receipt | None) -> None:
        """Note what the cloud says that it kept for the next turn."""
        if place.keep and receipt is not None:
            is_kept = bool(receipt.event_count("kept"))
            link = Link(self._past(), place.turn, receipt.body.ciphertext_root) if is_kept else None
            self._conversation.end_transfer(self._number, link)

    def remember(self, snapshot: CacheSnapshot, *, is_exact: bool, origin: Origin | None) -> bool:
        """Hand the prompt's cache to the conversation; False where that keeps none, and the cache is the caller's."""
        # Of a prompt that starts with private text nothing is public, whatever follows.
        public_tokens = min(self._prompt.leading_public_tokens, snapshot.true_tokens)
        return self._conversation.remember(Held(self._past(), snapshot, is_exact, public_tokens, origin))

    def log(self) -> None:
        """Log a run that would have asked the cloud and did not have to: nothing leaves."""
        gate, policy = self._device.gate, self._device.policy
        bucket = schedule.pad_tokens(self._plan.prefix_tokens)
        origin = self.held.origin if self.held else None
        if origin is None:
            gate.local(mode=policy.mode.value, policy_sha256=policy.digest, tokens_bucket=bucket)
            return
        gate.reuse(
            mode=policy.mode.value,
            policy_sha256=policy.digest,
            recipient=origin.recipient,
            tokens_bucket=bucket,
            transfer_id=origin.transfer_id,
            received_root=origin.received_root,
        )

    def _linked(self, at_most: int | None) -> int:
        return self._conversation.linked_tokens(
            self._prompt.token_ids, self._plan.steps, layout=self._device.engine.layout, at_most=at_most
        )

    def _place(self, base_tokens: int) -> Place:
        link, keep = self._conversation.link, self._conversation.keeps
        if not base_tokens or link is None:
            return Place(keep=keep)
        return Place(link.turn + 1, link.root, base_tokens, keep)

    def _past(self) -> Past:
        return Past(self._prompt.token_ids[:-1], self._plan.steps)
