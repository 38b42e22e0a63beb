"""What a cloud remembers of devices' mask pools, in its state folder: device key -> marks; on the cloud.

One small file a device, written by rename with every token but not synced: it is there for a device that was put back,
and a cloud that loses power may forget the last tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from splitinfer.errors import LimitExceededError, StateError
from splitinfer.home.folder import Home

__all__ = ["MarkFiles"]

_POOL_ID = re.compile(r"[0-9a-f]{32}")
_MAX_POOLS = 256


class MarkFiles:
    """The marks of all devices; safe for several threads of one process."""

    def __init__(self, home: Home) -> None:
        self._folder = home.folder("mask-marks")
        self._lock = threading.Lock()

    def __call__(self, sender: bytes) -> DeviceMarks:
        """Return the marks of the device with this public key."""
        return DeviceMarks(self._folder / f"{hashlib.sha256(sender).hexdigest()}.json", self._lock)


class DeviceMarks:
    """One device's pools; implements `masking.cloud.SeenMarks`."""

    def __init__(self, path: Path, lock: threading.Lock) -> None:
        self._path, self._lock = path, lock

    def seen(self, pool_id: str) -> int:
        """Return one more than the highest mask number seen; 0 for an unknown pool. Raises StateError."""
        with self._lock:
            return self._read().get(pool_id, 0)

    def raise_to(self, pool_id: str, mark: int) -> None:
        """Remember that masks below `mark` were seen; raises StateError, LimitExceededError for too many pools."""
        with self._lock:
            marks = self._read()
            marks[pool_id] = max(mark, marks.get(pool_id, 0))
            if len(marks) > _MAX_POOLS or not _POOL_ID.fullmatch(pool_id):
                raise LimitExceededError(
                    f"a device has at most {_MAX_POOLS} mask pools, named by 32 hexadecimal digits"
                )
            self._write(json.dumps(marks))

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(mark, int) for mark in found.values()):
            raise StateError("the marks of a device's mask pools are damaged; remove the file in mask-marks")
        return found

    def _write(self, text: str) -> None:
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text)
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise StateError(f"the marks of mask pools cannot be written: {error.strerror}") from error
