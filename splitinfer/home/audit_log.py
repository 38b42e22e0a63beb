"""The audit log of a state folder, opened with its checkpoint key; on the device."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from splitinfer.egress.log import AuditLog
from splitinfer.home.folder import Home

__all__ = ["open_log"]


def open_log(home: Home, directory: Path | None = None) -> AuditLog:
    """Open the folder's log, or the one in `directory`; raises AuditLogError and BrokenLogError."""
    return AuditLog.open(
        directory or home.audit,
        origin=home.log_origin,
        checkpoint_key=home.key("checkpoint"),
        clock=time.time,
        randomness=secrets.token_bytes,
    )
