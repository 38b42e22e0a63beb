"""The audit log of a state folder, opened with its checkpoint key; on the device."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

from splitinfer.egress.log import AuditLog
from splitinfer.home.folder import Home, write_private

__all__ = ["open_log", "receipt_keeper"]


def open_log(home: Home, directory: Path | None = None) -> AuditLog:
    """Open the folder's log, or the one in `directory`; raises AuditLogError and BrokenLogError."""
    return AuditLog.open(
        directory or home.audit,
        origin=home.log_origin,
        checkpoint_key=home.key("checkpoint"),
        clock=time.time,
        randomness=secrets.token_bytes,
    )


def receipt_keeper(home: Home) -> Callable[[str, bytes], None]:
    """Return what keeps receipts in `receipts/INTENT.json`; the log holds only commitments to them."""

    def keep(intent_id: str, receipt: bytes) -> None:
        write_private(home.folder("receipts") / f"{intent_id}.json", receipt.decode())

    return keep
