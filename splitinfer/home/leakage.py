"""What evaluations measured of noised policies: a small JSON file of the state folder, by weights and policy digest."""

from __future__ import annotations

from dataclasses import asdict

from splitinfer.home.folder import Home
from splitinfer.home.json_table import JsonTable
from splitinfer.noise.certificate import Measured

__all__ = ["LeakageFile"]


class LeakageFile:
    """Measured leakage; a file that cannot be read counts as empty: the certificate then says that nothing is known."""

    def __init__(self, home: Home) -> None:
        self._table = JsonTable(home, "leakage")

    def get(self, weights_sha256: str, policy_sha256: str) -> Measured | None:
        """Return what was measured for this policy on this model, or None."""
        return _measured(self._table.load().get(f"{weights_sha256} {policy_sha256}"))

    def put(self, weights_sha256: str, policy_sha256: str, measured: Measured) -> None:
        """Store a measurement; raises StateError where the file cannot be written."""
        self._table.update(f"{weights_sha256} {policy_sha256}", lambda _: asdict(measured))


def _measured(stored: object) -> Measured | None:
    if not isinstance(stored, dict) or set(stored) != {"prior", "recovery"}:
        return None
    rates = [value for value in stored.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    return Measured(**stored) if len(rates) == 2 and all(0 <= rate <= 1 for rate in rates) else None
