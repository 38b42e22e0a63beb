"""What codecs were measured to cost models: a small JSON file of the state folder, by weights digest and codec."""

from __future__ import annotations

from dataclasses import asdict, fields

from splitinfer.home.folder import Home
from splitinfer.home.json_table import JsonTable
from trust_models.codecs import Loss

__all__ = ["LossFile"]


class LossFile:
    """Measured losses; a file that cannot be read counts as empty, so that a policy with a floor refuses."""

    def __init__(self, home: Home) -> None:
        self._table = JsonTable(home, "losses")

    def get(self, weights_sha256: str, codec: str) -> Loss | None:
        """Return what this codec was measured to cost this model, or None."""
        entry = self._table.load().get(weights_sha256)
        return _loss(entry.get(codec)) if isinstance(entry, dict) else None

    def put(self, weights_sha256: str, codec: str, loss: Loss) -> None:
        """Store a measurement; raises StateError where the file cannot be written."""
        self._table.update(
            weights_sha256, lambda entry: {**(entry if isinstance(entry, dict) else {}), codec: asdict(loss)}
        )


def _loss(stored: object) -> Loss | None:
    if not isinstance(stored, dict) or set(stored) != {field.name for field in fields(Loss)}:
        return None
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in stored.values())
    return Loss(**stored) if numbers else None
