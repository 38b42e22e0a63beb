"""The recipient's receipt against the device's own account of the transfer; on the device. A mismatch is an error."""

from __future__ import annotations

from splitinfer.egress.gate import CallRecord, Permit
from splitinfer.errors import VerificationError
from splitinfer.handoff import VerifiedRecipient
from splitinfer.sealing.receipt import Receipt
from splitinfer.sealing.signing import Purpose, verify

__all__ = ["check_receipt"]


def check_receipt(
    receipt: Receipt, *, permit: Permit, call: CallRecord, recipient: VerifiedRecipient, manifest_sha256: str
) -> None:
    """Check signature and every field that the log also knows.

    Raises:
        AuthenticationError: not signed by the receipt key of the keyset that was sealed to.
        VerificationError: signed, but of something else than what was sent; names the field.
    """
    body = receipt.body
    verify(recipient.receipt_public_key, Purpose.RECEIPT, body.to_bytes(), bytes.fromhex(receipt.signature))
    known = {
        "transfer_id": call.transfer_id,
        "manifest_sha256": manifest_sha256,
        "ciphertext_root": call.sent_root,
        "replica_id": recipient.replica_id,
        "keyset_digest": recipient.keyset_digest.hex(),
        "protection": permit.intent.protection,
        "log_checkpoint": permit.checkpoint_commitment,
    }
    for field, value in known.items():
        if getattr(body, field) != value:
            raise VerificationError(f"the receipt and the audit log disagree on {field}; keep both and ask the cloud")
