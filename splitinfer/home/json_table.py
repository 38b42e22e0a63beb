"""What was measured or found before, as one small JSON object in a file of the state folder; device side."""

from __future__ import annotations

import json
from collections.abc import Callable

from splitinfer.home.folder import Home, locked, write_private

__all__ = ["JsonTable"]


class JsonTable:
    """Entries by key in `NAME.json`, written under a lock; a file that cannot be read counts as empty."""

    def __init__(self, home: Home, name: str) -> None:
        self._file, self._lock = home.path / f"{name}.json", home.path / f".{name}.lock"

    def load(self) -> dict[str, object]:
        """Return all entries."""
        try:
            stored = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def update(self, key: str, change: Callable[[object], object]) -> None:
        """Replace what `key` holds, None where it holds nothing; raises StateError where the file cannot be written."""
        with locked(self._lock):
            stored = self.load()
            stored[key] = change(stored.get(key))
            write_private(self._file, json.dumps(stored, sort_keys=True) + "\n")
