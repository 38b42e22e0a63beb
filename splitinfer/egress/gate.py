"""The gate: all bytes that leave the device pass here; an intent is durable in the log before the first of them.

Intent -> Permit; a sealed body -> `ReleasedTransfer`, the only thing that a transport sends; on the device. The only
module that makes a `ReleasedTransfer`. A permit is closed once, with what really moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from splitinfer.egress.log import AuditLog
from splitinfer.egress.records import Record
from splitinfer.errors import EgressDeniedError, SplitInferError
from splitinfer.handoff import ReleasedTransfer, Route, VerifiedRecipient

__all__ = ["CallRecord", "Gate", "Intent", "KeepReceipt", "Outcome", "Permit"]

Status = Literal["completed", "aborted", "refused", "failed", "unreceipted"]


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to happen, announced before the first byte: to whom, under which rule, how much at most."""

    mode: str
    policy_sha256: str
    recipient_identity_sha256: str
    protection: str
    codec: str
    tokens_bucket: int
    bytes_up_bound: int
    fields_in_clear: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """Return the fields of the log record."""
        return {
            "mode": self.mode,
            "policy_sha256": self.policy_sha256,
            "recipient": self.recipient_identity_sha256,
            "protection": self.protection,
            "codec": self.codec,
            "tokens_bucket": self.tokens_bucket,
            "bytes_up_bound": self.bytes_up_bound,
            "fields_in_clear": list(self.fields_in_clear),
        }


@dataclass(slots=True)
class CallRecord:
    """One call as it moved: body bytes both ways, counted here; roots of the sealed streams in it."""

    route: Route
    transfer_id: str = ""
    replica_id: str = ""
    bytes_released: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sent_root: str = ""
    received_root: str = ""

    def received(self, data: memoryview | bytes) -> None:
        """Count body bytes that came back."""
        self.bytes_received += memoryview(data).nbytes

    def record(self) -> dict[str, object]:
        """Return the fields of the log record, the empty ones left out."""
        return {
            "route": self.route.value,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            **{name: value for name in _OPTIONAL if (value := getattr(self, name))},
        }


_OPTIONAL = ("transfer_id", "replica_id", "sent_root", "received_root")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a permit ended: the status, an error's code, the canonical bytes of the recipient's signed receipt."""

    status: Status
    code: str = ""
    receipt: bytes = field(default=b"", repr=False)


KeepReceipt = Callable[[str, bytes], None]


class Gate:
    """Opens permits on one audit log.

    A receipt states exact token counts, so the log holds a salted commitment to it; `keep_receipt(intent id, bytes)`
    puts the receipt itself beside the log.
    """

    def __init__(self, log: AuditLog, *, keep_receipt: KeepReceipt) -> None:
        self._log, self._keep_receipt = log, keep_receipt

    def open(self, intent: Intent) -> Permit:
        """Log the intent durably and return its permit; raises AuditLogError, and then nothing may leave."""
        checkpoint = self._log.checkpoint()
        commitment, salt_id = self._log.commit(checkpoint.note.encode())
        record = {**intent.record(), "checkpoint_commitment": commitment, "checkpoint_salt": salt_id}
        intent_id = self._log.open_intent(record)
        return Permit(self._log, self._keep_receipt, intent_id, intent, checkpoint_commitment=commitment)

    def deny(self, error: SplitInferError, *, mode: str, policy_sha256: str) -> None:
        """Log a request that the policy did not permit; nothing left."""
        self._log.append({"type": "denied", "code": error.code, "mode": mode, "policy_sha256": policy_sha256})

    def charge(self, build: Callable[[Iterator[Record]], Record]) -> None:
        """Log what `build(records so far)` returns, durably; where it raises, nothing is logged or may leave."""
        self._log.append_if(build)

    def local(
        self,
        *,
        mode: str,
        policy_sha256: str,
        tokens_bucket: int,
        transfer_id: str = "",
        received_root: str = "",
        accepted_bucket: int = 0,
    ) -> None:
        """Log a request that is about to be served on the device, so that absence from the log says something.

        Where it starts from a part of a cache whose transfer broke off, that transfer and the root of what came of it
        are named, and the bucket of the tokens that are used.
        """
        record: dict[str, object] = {
            "type": "local",
            "protection": "none",
            "mode": mode,
            "policy_sha256": policy_sha256,
            "tokens_bucket": tokens_bucket,
            "bytes_sent": 0,
        }
        if transfer_id:
            record |= {
                "transfer_id": transfer_id,
                "received_root": received_root,
                "accepted_bucket": accepted_bucket,
            }
        self._log.append(record)

    def reuse(
        self,
        *,
        mode: str,
        policy_sha256: str,
        recipient: str,
        tokens_bucket: int,
        transfer_id: str,
        received_root: str,
        code: str = "",
    ) -> None:
        """Log that the cache of an earlier transfer is used again and nothing leaves; `code` where it was refused.

        `transfer_id` and `received_root` are those of the call that brought it, `recipient` is who computed it.
        """
        record: dict[str, object] = {
            "type": "reuse",
            "mode": mode,
            "protection": "none",
            "policy_sha256": policy_sha256,
            "recipient": recipient,
            "tokens_bucket": tokens_bucket,
            "transfer_id": transfer_id,
            "received_root": received_root,
            "bytes_sent": 0,
        }
        self._log.append({**record, "code": code} if code else record)

    @property
    def size(self) -> int:
        """Return the number of records in the log."""
        return self._log.size

    @property
    def root(self) -> bytes:
        """Return the log's present root."""
        return self._log.root


@dataclass(slots=True)
class Permit:
    """Leave to send, up to the announced bound, to the announced recipient; one a run."""

    _log: AuditLog
    _keep_receipt: KeepReceipt
    intent_id: str
    intent: Intent
    checkpoint_commitment: str
    calls: list[CallRecord] = field(default_factory=list)
    _is_open: bool = True

    def release(
        self,
        route: Route,
        *,
        body: Iterable[memoryview | bytes] = (),
        body_bytes: int = 0,
        recipient: VerifiedRecipient | None = None,
        transfer_id: str = "",
        may_be_shorter: bool = False,
    ) -> tuple[ReleasedTransfer, CallRecord]:
        """Let one call go; its bytes are counted as the transport pulls them.

        A body that `may_be_shorter` has `body_bytes` as its bound: a session's, which ends when the answer does.

        Raises EgressDeniedError where the permit is closed, the recipient is not the announced one, a body goes to
        nobody verified, or the sum of bodies would exceed the announced bound.
        """
        self._check(body_bytes, recipient)
        replica_id = recipient.replica_id if recipient else ""
        call = CallRecord(route, transfer_id, replica_id, bytes_released=body_bytes)
        self.calls.append(call)
        released = ReleasedTransfer(
            route=route,
            body_bytes=body_bytes,
            body=self._counted(body, call, body_bytes, may_be_shorter=may_be_shorter),
            replica_id=call.replica_id,
            meter=call,
        )
        return released, call

    def close(self, outcome: Outcome) -> None:
        """Log what moved and how it ended; idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        record: dict[str, object] = {
            "status": outcome.status,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "calls": [call.record() for call in self.calls],
        }
        if outcome.code:
            record["code"] = outcome.code
        try:
            if outcome.receipt:
                self._keep_receipt(self.intent_id, outcome.receipt)
                record["receipt_commitment"], record["receipt_salt"] = self._log.commit(outcome.receipt)
        finally:
            # What moved is logged even where the receipt could not be kept.
            self._log.close_intent(self.intent_id, record)

    @property
    def bytes_sent(self) -> int:
        """Return the body bytes that were pulled to be sent."""
        return sum(call.bytes_sent for call in self.calls)

    @property
    def bytes_received(self) -> int:
        """Return the body bytes that came back."""
        return sum(call.bytes_received for call in self.calls)

    def _check(self, body_bytes: int, recipient: VerifiedRecipient | None) -> None:
        if not self._is_open:
            raise EgressDeniedError("the permit is closed; open another")
        if recipient is None and body_bytes:
            raise EgressDeniedError("bytes are released to a verified recipient only")
        if recipient is not None and recipient.identity_sha256 != self.intent.recipient_identity_sha256:
            raise EgressDeniedError("the recipient is not the one that the permit announced")
        released = sum(call.bytes_released for call in self.calls)
        if body_bytes < 0 or released + body_bytes > self.intent.bytes_up_bound:
            raise EgressDeniedError(f"more than the announced {self.intent.bytes_up_bound} bytes would leave")

    def _counted(
        self, body: Iterable[memoryview | bytes], call: CallRecord, body_bytes: int, *, may_be_shorter: bool
    ) -> Iterator[memoryview | bytes]:
        for piece in body:
            size = memoryview(piece).nbytes
            if not self._is_open or call.bytes_sent + size > body_bytes:
                raise EgressDeniedError("a body is longer than was released, or its permit is closed")
            call.bytes_sent += size
            yield piece
        if call.bytes_sent != body_bytes and not may_be_shorter:
            raise EgressDeniedError("a body is shorter than was released")
