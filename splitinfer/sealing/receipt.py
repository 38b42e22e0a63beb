"""The recipient's receipt: what it says it received and did, signed; issued in the cloud, checked on the device.

Events and their counts are the recipient's statements. The checkpoint digest it was sent anchors the device's log.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from splitinfer.errors import LimitExceededError, ManifestError
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.signing import Purpose, Signer
from splitinfer.sealing.wire import Count, Hex16, Hex32, Hex64, Seconds, Short, Version, WireModel, parse_wire

__all__ = ["RECEIPT_BYTES", "Event", "Receipt", "ReceiptBody", "read_receipt_region", "receipt_region", "sign_receipt"]

RECEIPT_BYTES = 2048


class Event(WireModel):
    """One thing that the recipient says it did; `count` in the unit of the event (chunks or tokens)."""

    event: Literal["received", "opened", "reused", "prefilled", "decoded", "kept", "erased", "refused"]
    count: Count


class ReceiptBody(WireModel):
    """What is signed."""

    version: Version
    transfer_id: Hex16
    manifest_sha256: Hex32
    ciphertext_root: Hex32
    replica_id: Hex16
    keyset_digest: Hex32
    protection: Short
    log_checkpoint: Hex32
    served_at: Seconds
    events: Annotated[list[Event], Field(max_length=8)]


class Receipt(WireModel):
    """A receipt body and the signature of the keyset's receipt key."""

    body: ReceiptBody
    signature: Hex64

    def event_count(self, name: str) -> int | None:
        """Return the count of the named event, or None where it did not happen."""
        return next((event.count for event in self.body.events if event.event == name), None)


def sign_receipt(body: ReceiptBody, *, signer: Signer) -> Receipt:
    """Sign a receipt body."""
    return Receipt(body=body, signature=signer(Purpose.RECEIPT, body.to_bytes()).hex())


def receipt_region(receipt: Receipt) -> bytes:
    """Lay out a receipt in its fixed 2,048 bytes: 4-byte length, JSON, zeros."""
    block = prefixed(receipt.to_bytes())
    if len(block) > RECEIPT_BYTES:
        raise LimitExceededError(f"a receipt has at most {RECEIPT_BYTES - 4} bytes")
    return block.ljust(RECEIPT_BYTES, b"\x00")


def read_receipt_region(block: bytes) -> Receipt:
    """Parse a receipt block; raises ManifestError. The signature is checked against the log by `egress.receipts`."""
    size = int.from_bytes(block[:4], "big")
    if size > len(block) - 4 or any(block[4 + size :]):
        raise ManifestError("the receipt block is malformed")
    return parse_wire(Receipt, block[4 : 4 + size], what="receipt")
