"""One session of rounds under one permit: opening, then a record up and a record down at a time; on the device.

permit -> appraised recipient -> sealed opening -> checked receipt -> `exchange(record) -> record` -> final receipt

The connection is opened once. However a session ends, the cloud is told the same: a record that closes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Unpack

from splitinfer.asks import Ask
from splitinfer.carrier import Carrier, Lent, SealedAsk
from splitinfer.egress.gate import CallRecord, Permit
from splitinfer.errors import LayoutMismatchError, SplitInferError, TruncatedError, UsageError
from splitinfer.handoff import Link, Route, Transport, VerifiedRecipient
from splitinfer.receive.records import read_record
from splitinfer.receive.replies import OpenedReply
from splitinfer.rounds import Operation, Record
from splitinfer.sealing.keys import Direction, StreamKeys, derive_record_keys
from splitinfer.sealing.receipt import read_receipt_region
from splitinfer.sealing.records import RecordOpener, RecordSealer

__all__ = ["RoundsLink"]

_DRAIN_SECONDS = 5.0
_DRAIN_READS = 64


class RoundsLink(Carrier):
    """Carries a session's records; afterwards `receipt` is the last checked receipt.

    `open`, then `exchange` as often as wanted, then `finish`; `close` at any time. Where a run failed before `finish`,
    `close` sends the same last record and disregards what comes back.
    """

    def __init__(self, permit: Permit, transport: Transport, **lent: Unpack[Lent]) -> None:
        super().__init__(permit, transport, **lent)
        self._parts: deque[bytes] = deque()
        self._link: Link | None = None
        self._call: CallRecord | None = None
        self._sealer: RecordSealer | None = None
        self._opener: RecordOpener | None = None
        self._is_over = False

    @property
    def call(self) -> CallRecord | None:
        """Return the log's record of the session, None before it was opened."""
        return self._call

    def open(self, ask: Ask, recipient: VerifiedRecipient) -> OpenedReply:
        """Seal the opening, connect, send it, and check what the cloud answers and signs; raises as `Exchange.send`."""
        sealed = self._seal(ask, recipient)
        released, self._call = self._permit.release(
            Route.SESSION,
            body=self._pieces(sealed),
            body_bytes=ask.bytes_up_bound,
            recipient=recipient,
            transfer_id=sealed.keys.transfer_id.hex(),
            may_be_shorter=True,
        )
        link = self._link = self._transport.connect(released)
        for _ in range(1 + sealed.body.stream.count):
            link.send()
        self._call.sent_root = sealed.body.stream.root().hex()
        reply = self._opened(link, sealed, recipient)
        reply.reader.is_followed = True
        if reply.was_refused:
            raise self._refusal(reply)
        if (reply.manifest.kind, reply.manifest.frames) != ("rounds", 0):
            raise LayoutMismatchError("the reply is of another kind than was asked for")
        reply.receive_closed()
        self._check_receipt(reply.receipt)
        self._begin(sealed, reply)
        return reply

    def exchange(self, record: Record) -> Record:
        """Send a record and return the verified reply to it.

        Raises TransportError where the connection is lost, VerificationError kinds for a reply that is not the next
        one, EgressDeniedError where more would leave than was announced.
        """
        if self._sealer is None or self._opener is None or self._link is None or self._is_over:
            raise UsageError("the session is not open")
        self._send(record)
        return read_record(self._link, self._opener, asked=record)

    def finish(self) -> None:
        """Close the session in order: the last record up, the receipt of all that went before down."""
        reply = self.exchange(Record(0, 0, Operation.CLOSE))
        self._is_over = True
        self._note_roots()
        if len(reply.blobs) != 1:
            raise TruncatedError("the session's end has no receipt")
        self._check_receipt(read_receipt_region(reply.blobs[0]))
        if self._link is not None:
            with suppress(SplitInferError):
                self._drain(self._link)

    def close(self) -> None:
        """Tell the cloud that the session is over, if that is still to be told, and close the connection."""
        link = self._link
        if link is None:
            return
        if self._sealer is not None and not self._is_over:
            self._is_over = True
            with suppress(SplitInferError):
                self._send(Record(0, 0, Operation.CLOSE))
                self._drain(link)
        self._note_roots()
        link.close()

    def _begin(self, sealed: SealedAsk, reply: OpenedReply) -> None:
        nonces, transfer_id = (sealed.body.nonce, reply.nonce), sealed.keys.transfer_id
        self._sealer = RecordSealer(
            _keys(sealed, Direction.REQUEST, nonces),
            transfer_id=transfer_id,
            direction=Direction.REQUEST,
            chunks=sealed.body.stream.chunks,
        )
        self._opener = RecordOpener(
            _keys(sealed, Direction.REPLY, nonces),
            transfer_id=transfer_id,
            direction=Direction.REPLY,
            chunks=reply.reader.chunks,
        )

    def _pieces(self, sealed: SealedAsk) -> Iterator[memoryview | bytes]:
        """Yield the opening, then the parts that wait; only what is yielded is sent and counted."""
        yield from sealed.body
        while self._parts:
            yield self._parts.popleft()

    def _send(self, record: Record) -> None:
        if self._sealer is None or self._link is None:
            raise UsageError("the session is not open")
        for part in self._sealer.seal(record):
            self._parts.append(part)
            self._link.send()

    def _drain(self, link: Link) -> None:
        """Read on until the cloud ends, as after an ordinary last record, but not for long."""
        buffer, until = memoryview(bytearray(64 * 1024)), self._clock() + _DRAIN_SECONDS
        for _ in range(_DRAIN_READS):
            if self._clock() > until or not link.readinto(buffer):
                return

    def _note_roots(self) -> None:
        if self._call is None or self._sealed is None:
            return
        self._call.sent_root = self._sealed.body.stream.root().hex()
        self._call.received_root = self.received_root


def _keys(sealed: SealedAsk, direction: Direction, nonces: tuple[bytes, bytes]) -> StreamKeys:
    return derive_record_keys(
        sealed.keys.content_key,
        direction=direction,
        manifest_digest=sealed.keys.manifest_digest,
        nonces=nonces,
    )
