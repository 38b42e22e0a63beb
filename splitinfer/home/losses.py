"""What codecs were measured to cost models: a small JSON file of the state folder, by weights digest and codec."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

from splitinfer.home.folder import Home, locked, write_private
from trust_models.codecs import Loss

__all__ = ["LossFile"]

_FILE, _LOCK = "losses.json", ".losses.lock"


class LossFile:
    """Measured losses; a file that cannot be read counts as empty, so that a policy with a floor refuses."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def get(self, weights_sha256: str, codec: str) -> Loss | None:
        """Return what this codec was measured to cost this model, or None."""
        entry = self._load().get(weights_sha256)
        return _loss(entry.get(codec)) if isinstance(entry, dict) else None

    def put(self, weights_sha256: str, codec: str, loss: Loss) -> None:
        """Store a measurement; raises StateError where the file cannot be written."""
        with locked(self._home.path / _LOCK):
            stored = self._load()
            entry = stored.get(weights_sha256)
            kept = entry if isinstance(entry, dict) else {}
            stored[weights_sha256] = {**kept, codec: asdict(loss)}
            write_private(self._home.path / _FILE, json.dumps(stored, sort_keys=True) + "\n")

    def _load(self) -> dict[str, object]:
        try:
            stored = json.loads((self._home.path / _FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}


def _loss(stored: object) -> Loss | None:
    if not isinstance(stored, dict) or set(stored) != {field.name for field in fields(Loss)}:
        return None
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in stored.values())
    return Loss(**stored) if numbers else None
