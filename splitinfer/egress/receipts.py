"""The recipient's receipt against the device's own account of the transfer; on the device. A mismatch is an error."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from splitinfer.egress.commitments import SaltStore
from splitinfer.egress.files import OsFiles
from splitinfer.egress.gate import CallRecord, Permit
from splitinfer.egress.records import Record
from splitinfer.egress.storage import SALTS_NAME
from splitinfer.errors import AuditLogError, BrokenLogError, VerificationError
from splitinfer.handoff import VerifiedRecipient
from splitinfer.sealing.receipt import Receipt
from splitinfer.sealing.signing import Purpose, verify

__all__ = ["check_kept_receipts", "check_receipt", "check_signature"]


def check_signature(receipt: Receipt, recipient: VerifiedRecipient) -> None:
    """Raise AuthenticationError where the receipt key of the keyset that was sealed to did not sign this."""
    signature = bytes.fromhex(receipt.signature)
    verify(recipient.receipt_public_key, Purpose.RECEIPT, receipt.body.to_bytes(), signature)


def check_receipt(
    receipt: Receipt,
    *,
    permit: Permit,
    call: CallRecord,
    recipient: VerifiedRecipient,
    manifest_sha256: str,
    is_refusal: bool = False,
) -> None:
    """Check signature and every field that the log also knows.

    A refusal may have been made before the request was read to its end, so its ciphertext root and the checkpoint in
    its sealed manifest are not compared.

    Raises AuthenticationError as `check_signature` does, VerificationError where it is signed, but of something else
    than what was sent; names the field.
    """
    check_signature(receipt, recipient)
    body = receipt.body
    known = {
        "transfer_id": call.transfer_id,
        "manifest_sha256": manifest_sha256,
        "replica_id": recipient.replica_id,
        "keyset_digest": recipient.keyset_digest.hex(),
        "protection": permit.intent.protection,
    }
    if not is_refusal:
        known |= {"ciphertext_root": call.sent_root, "log_checkpoint": permit.checkpoint_commitment}
    for field, value in known.items():
        if getattr(body, field) != value:
            raise VerificationError(f"the receipt and the audit log disagree on {field}; keep both and ask the cloud")


def check_kept_receipts(log_directory: Path, receipts: Path, records: Iterable[Record]) -> int:
    """Check every kept receipt against the commitment in its outcome record, offline, and return how many there are.

    Receipts whose file or salt was erased are passed over. Raises BrokenLogError for one that was changed.
    """
    salts, checked = SaltStore(log_directory / SALTS_NAME, OsFiles()), 0
    for record in records:
        commitment, salt_id = record.get("receipt_commitment"), record.get("receipt_salt")
        path = receipts / f"{record.get('intent')}.json"
        if not isinstance(commitment, str) or not isinstance(salt_id, str) or not path.is_file():
            continue
        if not (log_directory / SALTS_NAME / salt_id).exists():
            continue
        try:
            salts.check(path.read_bytes(), commitment=commitment, salt_id=salt_id)
        except (AuditLogError, OSError) as error:
            raise BrokenLogError(
                f"the receipt of intent {record.get('intent')} is not the one that was logged"
            ) from error
        checked += 1
    return checked
