"""One sealed exchange with the cloud, under one permit: sealed ask, reply, receipt; on the device.

permit -> appraised recipient -> sealed request -> released -> transport -> opened reply -> checked receipt

What is asked is `asks`', what every carrier of an ask does is `carrier`'s, and what happens after a lost connection is
`resume`'s; here it is one reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, Unpack

from splitinfer.asks import Ask
from splitinfer.attestation.appraise import SeenKeysets
from splitinfer.carrier import Carrier, Lent
from splitinfer.egress.gate import CallRecord, Permit
from splitinfer.errors import LayoutMismatchError, ManifestError, TransportError
from splitinfer.handoff import CacheSink, Transport, VerifiedRecipient
from splitinfer.receive.replies import OpenedReply
from splitinfer.resume import LastingReply, Sent
from splitinfer.sealing.frames import Frame, frame_count
from splitinfer.sealing.signing import signer

__all__ = ["Exchange"]

T = TypeVar("T")


class Exchange(Carrier):
    """Carries one ask through the permit; afterwards `receipt` is the checked receipt and `reply` what was opened."""

    def __init__(self, permit: Permit, transport: Transport, *, resume_attempts: int = 0, **lent: Unpack[Lent]) -> None:
        super().__init__(permit, transport, **lent)
        self._resume_attempts = resume_attempts
        self._appraise: Callable[[], VerifiedRecipient] | None = None
        self._raw: LastingReply | None = None

    @property
    def call(self) -> CallRecord | None:
        """Return the log's record of the call that carries the ask now: another one after every resume."""
        return self._raw.call if self._raw is not None else None

    @property
    def was_refused(self) -> bool:
        """Tell whether the cloud answered with a sealed refusal, before a connection was lost too."""
        was_refused_before = self._raw is not None and self._raw.was_refused
        return was_refused_before or super().was_refused

    @property
    def transfer_id(self) -> str:
        """Return the id of the transfer, empty before it was sealed."""
        return self.call.transfer_id if self.call is not None else ""

    def appraise(self, *, pinned_sha256: str, seen: SeenKeysets) -> VerifiedRecipient:
        """Fetch the keyset through the gate and appraise it; done again, for a fresh nonce, before a resume."""
        self._appraise = partial(super().appraise, pinned_sha256=pinned_sha256, seen=seen)
        return self._appraise()

    def send(self, ask: Ask, recipient: VerifiedRecipient) -> OpenedReply:
        """Seal, release and send the ask; return the reply once its manifest is authentic.

        A sealed refusal raises the error that it names.
        """
        sealed = self._seal(ask, recipient)
        own, sign = sealed.sender_id, signer(self._device_key)
        raw = self._raw = self._lasting(Sent(ask.route, sealed.body, sealed.keys, recipient, own, sign))
        raw.exchange()
        reply = self._opened(raw, sealed, recipient)
        raw.framed(chunks=reply.reader.count, chunk_bytes=reply.reader.chunk_bytes)
        if raw.is_early and reply.manifest.kind != "refusal":
            raise TransportError("the cloud answered before it had the whole request; the connection is useless")
        if reply.manifest.kind == "refusal":
            raise self._refusal(reply)
        _check_kind(reply, ask)
        return reply

    def _lasting(self, sent: Sent) -> LastingReply:
        attempts = self._resume_attempts if self._appraise else 0
        fetch = self._appraise or (lambda: sent.recipient)
        return LastingReply(sent, self._permit, self._transport, fetch=fetch, attempts=attempts)

    def receive_cache(self, reply: OpenedReply, sink: CacheSink[T]) -> T:
        """Receive a cache, check the receipt, and return what the sink finished.

        Raises TransportError where the connection is lost for good: what came stays in the sink, and the caller wipes.
        """
        sizes, total = sink.sizes(), sink.size_bytes
        return reply.receive_cache(sink, sizes, data_bytes=total, check_receipt=self._check_receipt).payload

    def receive_frames(self, reply: OpenedReply) -> Iterator[Frame]:
        """Yield verified frames, then check the receipt."""
        left = self._max_new_tokens()
        for frame in reply.frames():
            left -= len(frame.token_ids)
            if left < 0 or any(token_id >= self._expected.vocabulary for token_id in frame.token_ids):
                raise LayoutMismatchError("the reply holds more tokens than were asked for, or unknown ones")
            yield frame
        self._check_receipt(reply.receipt)

    def receive_closed(self, reply: OpenedReply) -> None:
        """Read the answer to a session's end and check its receipt."""
        reply.receive_closed()
        self._check_receipt(reply.receipt)

    def close(self) -> None:
        """Note the root of what arrived and close the connection."""
        if self._raw is None:
            return
        if self.call is not None:
            self.call.received_root = self.received_root
        self._raw.close()

    def _max_new_tokens(self) -> int:
        sampling = self._sealed.manifest.sampling if self._sealed is not None else None
        return sampling.max_new_tokens if sampling is not None else 0


def _check_kind(reply: OpenedReply, ask: Ask) -> None:
    """Refuse a reply of another kind, number of frames or codec than this request has."""
    sampling = ask.manifest.sampling
    kind, frames = ("tokens", frame_count(sampling.max_new_tokens)) if sampling else ("cache", 0)
    kind = "closed" if ask.manifest.kind == "close" else kind
    if (reply.manifest.kind, reply.manifest.frames) != (kind, frames):
        raise LayoutMismatchError("the reply is of another kind or size than was asked for")
    wanted = (ask.manifest.codec, ask.manifest.artefact_sha256)
    if (reply.manifest.codec, reply.manifest.artefact_sha256) != wanted:
        raise ManifestError("the reply is in another codec than was asked for")
