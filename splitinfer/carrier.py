"""What carries an ask under one permit, whatever follows its reply: appraisal, sealing, refusals, receipts; device.

permit -> appraised recipient -> sealed ask -> (sent by `Exchange` or `RoundsLink`) -> opened reply -> checked receipt
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.asks import Ask
from splitinfer.attestation.appraise import SeenKeysets, appraise
from splitinfer.attestation.sender import sender_id
from splitinfer.egress.gate import CallRecord, Permit
from splitinfer.egress.receipts import check_receipt, check_signature
from splitinfer.errors import (
    RecipientMismatchError,
    SplitInferError,
    TruncatedError,
    UsageError,
    VerificationError,
)
from splitinfer.handoff import Route, Source, Transport, VerifiedRecipient
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.replies import OpenedReply, SentRequest, open_reply
from splitinfer.resume import read_all
from splitinfer.sealing.manifest import RequestManifest
from splitinfer.sealing.receipt import Receipt
from splitinfer.sealing.signing import signer
from splitinfer.sealing.transfer import SealedBody, TransferKeys, seal_request

__all__ = ["Carrier", "Lent", "SealedAsk", "read_keyset"]

MAX_KEYSET_BYTES = 64 * 1024
_VERBS = {"prefill": "prefill", "decode": "decode", "rounds": "compute in rounds"}


@dataclass(frozen=True, slots=True)
class SealedAsk:
    """An ask, sealed to a recipient: the manifest as it was sealed, the body to send, and what opens the reply."""

    manifest: RequestManifest = field(repr=False)
    body: SealedBody
    keys: TransferKeys
    sender_id: str

    @property
    def keepable_tokens(self) -> int:
        """Return how many tokens' cache the cloud may keep afterwards; 0 where it may keep none."""
        return self.manifest.tokens.true if self.manifest.session.keep or self.manifest.public else 0

    def sent(self, recipient: VerifiedRecipient) -> SentRequest:
        """Return what is kept in order to open the reply."""
        return SentRequest(
            self.keys,
            self.manifest.digest.hex(),
            recipient.receipt_public_key,
            self.manifest.tokens.true,
            self.manifest.session.base_tokens,
        )


def seal_ask(
    ask: Ask,
    recipient: VerifiedRecipient,
    *,
    log_checkpoint: str,
    device_key: Ed25519PrivateKey,
    now: int,
    randomness: Callable[[int], bytes],
) -> SealedAsk:
    """Seal an ask; raises RecipientMismatchError where the recipient's certificate does not allow it."""
    needed = "prefill" if ask.manifest.kind == "rows" else ask.manifest.kind
    if needed != "close" and needed not in recipient.capabilities:
        raise RecipientMismatchError(f"the recipient's certificate does not allow it to {_VERBS[needed]}")
    manifest = ask.manifest.model_copy(update={"log_checkpoint": log_checkpoint})
    own_id = sender_id(recipient.keyset_digest, device_key.public_key().public_bytes_raw())
    body, keys = seal_request(
        ask.pieces,
        sealed_manifest=manifest.to_bytes(),
        # What follows a session's opening are records, which are no part of its stream.
        following_bytes=0 if manifest.kind == "rounds" else ask.following_bytes,
        chunk_bytes=ask.chunk_bytes,
        recipient=recipient,
        sender_id=own_id,
        signer=signer(device_key),
        now=now,
        randomness=randomness,
    )
    return SealedAsk(manifest, body, keys, own_id)


class Lent(TypedDict):
    """What a device lends to every carrier, by keyword."""

    device_key: Ed25519PrivateKey
    expected: Expectations
    clock: Callable[[], float]
    randomness: Callable[[int], bytes]


class Carrier(ABC):
    """Carries one ask through the permit; afterwards `receipt` is the checked receipt and `reply` what was opened."""

    def __init__(self, permit: Permit, transport: Transport, **lent: Unpack[Lent]) -> None:
        self._permit, self._transport, self._device_key = permit, transport, lent["device_key"]
        self._expected, self._clock, self._randomness = lent["expected"], lent["clock"], lent["randomness"]
        self._recipient: VerifiedRecipient | None = None
        self._sealed: SealedAsk | None = None
        self.reply: OpenedReply | None = None
        self.receipt: Receipt | None = None

    @property
    @abstractmethod
    def call(self) -> CallRecord | None:
        """Return the log's record of the call that carries the ask, None before one was released."""

    @abstractmethod
    def close(self) -> None:
        """Note what arrived in the call's record and close the connection."""

    @property
    def has_sent(self) -> bool:
        """Tell whether any byte of a sealed body left."""
        return self._permit.bytes_sent > 0

    @property
    def was_refused(self) -> bool:
        """Tell whether the cloud answered with a sealed refusal."""
        return self.reply is not None and self.reply.was_refused

    @property
    def received_root(self) -> str:
        """Return the ciphertext root of what was verified of the reply, empty before it was opened."""
        return self.reply.reader.root().hex() if self.reply is not None else ""

    def appraise(self, *, pinned_sha256: str, seen: SeenKeysets) -> VerifiedRecipient:
        """Fetch the keyset through the gate and appraise it."""
        data = read_keyset(self._transport, self._permit)
        return appraise(data, pinned_sha256=pinned_sha256, now=int(self._clock()), seen=seen)

    def _seal(self, ask: Ask, recipient: VerifiedRecipient) -> SealedAsk:
        """Seal the ask with the permit's commitment to the log; what comes back is checked against it."""
        self._recipient = recipient
        self._sealed = seal_ask(
            ask,
            recipient,
            log_checkpoint=self._permit.checkpoint_commitment,
            device_key=self._device_key,
            now=int(self._clock()),
            randomness=self._randomness,
        )
        return self._sealed

    def _opened(self, raw: Source, sealed: SealedAsk, recipient: VerifiedRecipient) -> OpenedReply:
        self.reply = open_reply(raw, sealed.sent(recipient), self._expected)
        return self.reply

    def _refusal(self, reply: OpenedReply) -> SplitInferError:
        """Return the error that a sealed refusal names, its receipt checked."""
        error = reply.refuse()
        self._check_receipt(reply.receipt, is_refusal=True)
        return error

    def _check_receipt(self, receipt: Receipt | None, *, is_refusal: bool = False) -> None:
        call, recipient, sealed = self.call, self._recipient, self._sealed
        if call is None or recipient is None or sealed is None:
            raise UsageError("nothing was sent yet")
        if receipt is None:
            raise TruncatedError("the reply was not read to its receipt")
        check_signature(receipt, recipient)
        # Signed, so it is kept and logged even where it says something else than what was sent.
        self.receipt = receipt
        check_receipt(
            receipt,
            permit=self._permit,
            call=call,
            recipient=recipient,
            manifest_sha256=sealed.keys.manifest_digest.hex(),
            is_refusal=is_refusal,
        )
        if receipt.event_count("kept") not in (None, sealed.keepable_tokens or None):
            raise VerificationError("the receipt says that the cloud kept what it was not asked to keep")


def read_keyset(transport: Transport, permit: Permit) -> bytes:
    """Fetch a keyset through the gate, unappraised; raises LimitExceededError above 64 KiB."""
    released, _ = permit.release(Route.KEYSET)
    return read_all(transport.exchange(released), limit_bytes=MAX_KEYSET_BYTES, what="keyset")
