"""Remembers weights digests by the files' stat: a small JSON file of mode 0600; both sides."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from splitinfer.errors import StateError

__all__ = ["DigestCache"]

_HEX = re.compile(r"[0-9a-f]{64}")
_MAX_ENTRIES = 256


class DigestCache:
    """Weights digests by device, inode, size, mtime and ctime of every file; a corrupt file counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def key(self, files: Sequence[Path]) -> str:
        """Return the key of these files as they stand now."""
        stats = [path.stat() for path in files]
        rows = [
            [path.name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]
            for path, s in zip(files, stats, strict=True)
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """Return the digest stored under `key`, or None."""
        return self._load().get(key)

    def put(self, key: str, digest: str) -> None:
        """Store a digest, replacing the file in one step; raises StateError where it cannot be written."""
        entries = self._load()
        entries.pop(key, None)
        entries[key] = digest
        newest = dict(list(entries.items())[-_MAX_ENTRIES:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # mkstemp makes the file with mode 0600.
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(newest, file)
            Path(temporary).replace(self._path)
        except OSError as error:
            raise StateError(f"the digest cache {self._path.name} cannot be written; check the state folder") from error

    def _load(self) -> dict[str, str]:
        try:
            stored = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(stored, dict):
            return {}
        return {k: v for k, v in stored.items() if isinstance(v, str) and _HEX.fullmatch(v) and _HEX.fullmatch(k)}
