"""A released transfer that goes on after its connection was lost: state, rest of the request, rest of the reply.

sealed body -> transport -> `LastingReply`, which reads like one reply however many connections it took; on the device.
Only a lost connection is gone on after: a VerificationError is raised above this module and ends the transfer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from splitinfer.egress.gate import CallRecord, Permit
from splitinfer.errors import (
    LimitExceededError,
    RemoteBusyError,
    RemoteRefusedError,
    TransportError,
    TransportTimeoutError,
    TruncatedError,
    UsageError,
    VerificationError,
)
from splitinfer.handoff import ReleasedTransfer, Reply, Route, Transport, VerifiedRecipient
from splitinfer.receive.resuming import open_state_answer
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.resume import QUERY_BOUND_BYTES, UNSIGNED, ResumeHead, StateBody, StateQuery, signed
from splitinfer.sealing.signing import Purpose, Signer
from splitinfer.sealing.stream import TAG_BYTES
from splitinfer.sealing.transfer import SealedBody, TransferKeys
from splitinfer.sealing.wire import VERSION

__all__ = ["LastingReply", "Sent", "bound_with_resumes", "read_all"]

BACKOFF_SECONDS = 0.2
_BACKOFF_FACTOR = 3
_MAX_STATE_BYTES = 4096
_SCRATCH_BYTES = 64 * 1024


def bound_with_resumes(body_bytes: int, attempts: int) -> int:
    """Return the most bytes that leave for a body of this bound: each attempt is two heads and at most all of it."""
    return body_bytes + attempts * (body_bytes + 2 * QUERY_BOUND_BYTES)


@dataclass(frozen=True, slots=True)
class Sent:
    """What is needed to go on with a sealed request: its body, its keys, whom it is sealed to, who signs."""

    route: Route
    body: SealedBody
    keys: TransferKeys
    recipient: VerifiedRecipient
    sender_id: str
    signer: Signer = field(repr=False)


class LastingReply:
    """Implements `handoff.Reply` over as many connections as `attempts` allows; `exchange` sends and opens the first.

    `fetch` fetches and appraises the keyset again, which gives a fresh server nonce.
    """

    def __init__(
        self,
        sent: Sent,
        permit: Permit,
        transport: Transport,
        *,
        fetch: Callable[[], VerifiedRecipient],
        attempts: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sent, self._permit, self._transport = sent, permit, transport
        self._fetch, self._pause = fetch, pause
        self._attempts = self._left = attempts
        self._raw: Reply | None = None
        self._head_bytes = self._unit_bytes = 0
        self._read_bytes = self._skip_bytes = 0
        self.call: CallRecord | None = None
        self.was_refused = False

    def exchange(self) -> None:
        """Release and send the request; returns once a reply began. Raises what the transport and the body raise."""
        body = self._sent.body
        released = self._release(self._sent.route, body, body.body_bytes)
        try:
            self._raw = self._send(released)
        except TransportError as error:
            self._go_on(error)

    def framed(self, *, chunks: int, chunk_bytes: int) -> None:
        """Say that what was read so far is the reply's head and its first chunks, all verified.

        From now on only the chunks that lack are asked for again.
        """
        self._unit_bytes = chunk_bytes + TAG_BYTES
        self._head_bytes = self._read_bytes - chunks * self._unit_bytes

    @property
    def body_bytes(self) -> int | None:
        """Return the declared length of what the present connection brings."""
        return self._reply.body_bytes

    @property
    def is_early(self) -> bool:
        """Tell whether the present connection answered before it had the whole request."""
        return self._reply.is_early

    def readinto(self, buffer: memoryview) -> int:
        """Read up to len(buffer) bytes; 0 at the end. Raises TransportError where the transfer cannot go on."""
        while True:
            try:
                self._skip()
                count = self._reply.readinto(buffer)
            except TransportError as error:
                self._go_on(error)
                continue
            self._read_bytes += count
            return count

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._raw is not None:
            self._raw.close()

    @property
    def _reply(self) -> Reply:
        if self._raw is None:
            raise UsageError("nothing was sent yet")
        return self._raw

    def _skip(self) -> None:
        """Pass over the start of a chunk whose other part is still to come: identical bytes, or its tag fails."""
        if not self._skip_bytes:
            return
        scratch = memoryview(bytearray(min(self._skip_bytes, _SCRATCH_BYTES)))
        while self._skip_bytes:
            count = self._reply.readinto(scratch[: self._skip_bytes])
            if count == 0:
                raise TruncatedError("the resumed reply is shorter than what came before")
            self._skip_bytes -= count

    def _go_on(self, lost: TransportError) -> None:
        """Resume, or raise the error that says why the connection was lost."""
        self.close()
        while _is_lost(lost) and self._left and self._permit.bytes_sent:
            self._pause(BACKOFF_SECONDS * _BACKOFF_FACTOR ** (self._attempts - self._left))
            self._left -= 1
            try:
                if not self._resumed():
                    break
            except RemoteRefusedError:
                if self.was_refused:
                    raise
                break
            except TransportError:
                continue
            return
        raise lost

    def _resumed(self) -> bool:
        """Ask for the state and go on from there; False where the transfer cannot go on any more."""
        state = self._state()
        if state is None:
            return False
        if state.state == "unknown":
            # Or not yet: the cloud may still be about to read what came before the connection broke.
            raise TransportError("the cloud holds nothing of the transfer")
        if state.state == "refused":
            self.was_refused = True
            raise RemoteRefusedError("the cloud refused the transfer; its reason was lost with the connection")
        if state.state == "busy":
            raise TransportTimeoutError("the cloud still serves the connection that was lost")
        recipient = self._same_recipient()
        if recipient is None:
            return False
        self._raw = self._resume(recipient, self._request_from(state))
        return True

    def _request_from(self, state: StateBody) -> int:
        """Return the first chunk to send; raises VerificationError where the state cannot be true."""
        stream, start = self._sent.body.stream, state.request_chunks
        is_complete = state.state == "complete"
        if start > stream.pulled or (is_complete and start != stream.count) or (self._read_bytes and not is_complete):
            raise VerificationError("the cloud states that it verified other chunks of the request than it can have")
        return start

    def _same_recipient(self) -> VerifiedRecipient | None:
        """Return the recipient with a fresh nonce, or None where it has other keys by now."""
        again, before = self._fetch(), self._sent.recipient
        same = (again.keyset_digest, again.replica_id) == (before.keyset_digest, before.replica_id)
        return again if same else None

    def _state(self) -> StateBody | None:
        recipient = self._same_recipient()
        if recipient is None:
            return None
        query = signed(StateQuery(**self._ids(recipient)), purpose=Purpose.TRANSFER_STATE, signer=self._sent.signer)
        data = prefixed(query.to_bytes())
        reply = self._transport.exchange(self._release(Route.STATE, [data], len(data)))
        answer = read_all(reply, limit_bytes=_MAX_STATE_BYTES, what="state answer")
        return open_state_answer(answer, query=query, receipt_public_key=recipient.receipt_public_key)

    def _resume(self, recipient: VerifiedRecipient, request_from: int) -> Reply:
        done_bytes = self._read_bytes - self._head_bytes
        reply_from = done_bytes // self._unit_bytes if self._unit_bytes else 0
        head = signed(
            ResumeHead(**self._ids(recipient), request_from=request_from, reply_from=reply_from),
            purpose=Purpose.TRANSFER_RESUME,
            signer=self._sent.signer,
        )
        stream, data = self._sent.body.stream, prefixed(head.to_bytes())
        released = self._release(
            Route.RESUME, _joined(data, stream.resumed(request_from)), len(data) + stream.bytes_from(request_from)
        )
        reply = self._send(released)
        self._skip_bytes = done_bytes - reply_from * self._unit_bytes if reply_from else self._read_bytes
        return reply

    def _ids(self, recipient: VerifiedRecipient) -> dict[str, Any]:
        return {
            "version": VERSION,
            "transfer_id": self._sent.keys.transfer_id.hex(),
            "manifest_sha256": self._sent.keys.manifest_digest.hex(),
            "keyset_digest": recipient.keyset_digest.hex(),
            "sender_id": self._sent.sender_id,
            "server_nonce": recipient.server_nonce.hex(),
            "signature": UNSIGNED,
        }

    def _release(self, route: Route, body: Iterable[memoryview | bytes], body_bytes: int) -> ReleasedTransfer:
        released, call = self._permit.release(
            route,
            body=body,
            body_bytes=body_bytes,
            recipient=self._sent.recipient,
            transfer_id=self._sent.keys.transfer_id.hex(),
        )
        if route is not Route.STATE:
            self.call = call
        return released

    def _send(self, released: ReleasedTransfer) -> Reply:
        try:
            return self._transport.exchange(released)
        finally:
            if self.call is not None:
                self.call.sent_root = self._sent.body.stream.root().hex()


def read_all(reply: Reply, *, limit_bytes: int, what: str) -> bytes:
    """Read a small reply to its end and close it; raises LimitExceededError above its limit."""
    data = bytearray()
    buffer = memoryview(bytearray(16 * 1024))
    try:
        while count := reply.readinto(buffer):
            data += buffer[:count]
            if len(data) > limit_bytes:
                raise LimitExceededError(f"the {what} is longer than {limit_bytes} bytes")
    finally:
        reply.close()
    return bytes(data)


def _is_lost(error: TransportError) -> bool:
    return not isinstance(error, RemoteBusyError | RemoteRefusedError)


def _joined(head: bytes, chunks: Iterator[memoryview]) -> Iterator[memoryview | bytes]:
    yield head
    yield from chunks
