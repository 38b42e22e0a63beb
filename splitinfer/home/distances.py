"""Largest distances between embedding rows found before: a small JSON file of the state folder; device side."""

from __future__ import annotations

import math

from splitinfer.home.folder import Home
from splitinfer.home.json_table import JsonTable
from splitinfer.noise.sensitivity import Distance

__all__ = ["DistanceFile"]


class DistanceFile:
    """Distances by weights digest and digest of the token ids; a file that cannot be read counts as empty."""

    def __init__(self, home: Home) -> None:
        self._table = JsonTable(home, "distances")

    def get(self, weights_sha256: str, ids_sha256: str) -> Distance | None:
        """Return what was found for these rows of this model, or None."""
        return _distance(self._table.load().get(f"{weights_sha256} {ids_sha256}"))

    def put(self, weights_sha256: str, ids_sha256: str, distance: Distance) -> None:
        """Store a distance; raises StateError where the file cannot be written."""
        entry = {"value": distance.value.hex(), "is_exact": distance.is_exact, "rows": distance.rows}
        self._table.update(f"{weights_sha256} {ids_sha256}", lambda _: entry)


def _distance(stored: object) -> Distance | None:
    if not isinstance(stored, dict) or set(stored) != {"value", "is_exact", "rows"}:
        return None
    value, is_exact, rows = stored["value"], stored["is_exact"], stored["rows"]
    if not isinstance(value, str) or not isinstance(is_exact, bool) or not isinstance(rows, int):
        return None
    try:
        number = float.fromhex(value)
    except (ValueError, OverflowError):
        return None
    return Distance(number, is_exact, rows) if 0 < number < math.inf and rows >= 2 else None
