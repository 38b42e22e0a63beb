"""One run's use of the store: the cache of its public prefix from an earlier transfer, or the one just received.

PublicPrefix -> CacheSnapshot, CacheSnapshot -> PackedCache -> the store; on the device. A stored cache is used only
after the checks that one from the wire would get, and the log says that it is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.device import Device
from splitinfer.errors import StoreError, VerificationError
from splitinfer.handoff import PromptTokens, Sink
from splitinfer.placement import Plan
from splitinfer.receive.replies import OpenedReply
from splitinfer.row_check import RowCheck
from splitinfer.sealing.manifest import ModelWire
from splitinfer.store import CacheStore, Facts, PublicPrefix, Stored, public_prefix
from trust_models.modes import TrustMode

__all__ = ["Shelf", "shelf_for"]

# Whatever the transfer's codec: what it lost is not lost twice, and the length follows from the layout.
_CODEC = "raw"


def shelf_for(device: Device, prompt: PromptTokens, plan: Plan, *, notes: list[str]) -> Shelf | None:
    """Return the place of this run's public prefix in the store, or None where nothing is kept."""
    store, engine = device.store, device.engine
    if store is None or plan.mode is not TrustMode.PUBLIC_PREFIX:
        return None
    prefix = public_prefix(
        prompt,
        steps=plan.cloud_steps,
        model=engine.identity,
        numerics=engine.numerics,
        layout=engine.layout,
        codec=device.policy.transfer.codec,
        recipient_identity_sha256=device.pinned_sha256,
    )
    return Shelf(device, store, prefix, notes)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The place of one public prefix in the store. Files are padded as transfers are, so that only a class shows.

    `notes` is told where a cache could not be stored: a run does not fail because its disk is full.
    """

    device: Device
    store: CacheStore
    prefix: PublicPrefix
    notes: list[str]

    def find(self, rows: RowCheck) -> Stored[CacheSnapshot] | None:
        """Return what is stored, or None; what a recipient of a lower, retired generation sent is forgotten.

        Rows that the policy wants verified and that were not yet are recomputed first; raises VerificationError, and
        forgets the cache, where one differs. Either way the log gets a record.
        """
        stored = self.store.get(self.prefix, self._sink)
        if stored is None:
            return None
        if stored.facts.generation < self.device.seen.highest_generation(self.device.pinned_sha256):
            self._forget()
            return None
        self._verify(stored, rows)
        self._log(stored.facts)
        return stored

    def keep(
        self,
        snapshot: CacheSnapshot,
        reply: OpenedReply,
        *,
        generation: int,
        verified_rows: int,
        is_exact: bool,
    ) -> None:
        """Store a cache that was received and verified."""
        facts = Facts(
            model=ModelWire.of(self.device.engine.identity),
            tokens=len(self.prefix.token_ids),
            recipient=self.device.pinned_sha256,
            generation=generation,
            transfer_id=reply.sent.keys.transfer_id.hex(),
            received_root=reply.reader.root().hex(),
            verified_rows=verified_rows,
            is_exact=is_exact,
            stored_at=int(self.device.clock()),
        )
        self._put(snapshot, facts)

    def _verify(self, stored: Stored[CacheSnapshot], rows: RowCheck) -> None:
        facts, wanted = stored.facts, rows.wanted(stored.cache)
        if facts.verified_rows >= wanted:
            return
        try:
            rows.check(stored.cache)
        except VerificationError as error:
            self._log(facts, code=error.code)
            self._forget()
            raise
        self._put(stored.cache, facts.model_copy(update={"verified_rows": wanted}))

    def _put(self, snapshot: CacheSnapshot, facts: Facts) -> None:
        try:
            packed = codec.pack(snapshot, codec=_CODEC, padded_tokens=self._padded_tokens)
            self.store.put(self.prefix, packed, facts)
        except StoreError as error:
            self.notes.append(f"the public text's cache was not stored: {error}")

    def _forget(self) -> None:
        # If that cannot be done: what stays is refused again the next time.
        with suppress(StoreError):
            self.store.forget(self.prefix)

    def _log(self, facts: Facts, *, code: str = "") -> None:
        self.device.gate.reuse(
            mode=self.device.policy.mode.value,
            policy_sha256=self.device.policy.digest,
            recipient=facts.recipient,
            tokens_bucket=self._padded_tokens,
            transfer_id=facts.transfer_id,
            received_root=facts.received_root,
            code=code,
        )

    @property
    def _padded_tokens(self) -> int:
        return schedule.pad_tokens(len(self.prefix.token_ids))

    def _sink(self) -> Sink[CacheSnapshot]:
        return codec.sink(
            self.prefix.layout,
            codec=_CODEC,
            true_tokens=len(self.prefix.token_ids),
            padded_tokens=self._padded_tokens,
        )
