"""How fast a link, its cloud and this device were, by recipient: a small JSON file of the state folder.

Written after a run, read before the next. Every figure is a lower bound of the speed that it stands for, so a faster
one is believed at once and a slower one by a fifth at a time.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from splitinfer.home.folder import Home
from splitinfer.home.json_table import JsonTable
from splitinfer.selector import Speeds

__all__ = ["SpeedFile"]

_BELIEF = 0.2


class SpeedFile:
    """Measured speeds; a file that cannot be read counts as empty."""

    def __init__(self, home: Home) -> None:
        self._table = JsonTable(home, "speeds")

    def get(self, recipient: str) -> Speeds:
        """Return what was measured with this recipient, the defaults for what was not."""
        return replace(Speeds(), **_known(self._table.load().get(recipient)))

    def put(self, recipient: str, **measured: float) -> None:
        """Mix measured speeds in, named as the fields of `Speeds`; raises StateError where it cannot be written."""

        def mix(entry: object) -> dict[str, float]:
            known = _known(entry)
            return {**known, **{name: _mixed(name, known.get(name), value) for name, value in measured.items()}}

        self._table.update(recipient, mix)


def _known(entry: object) -> dict[str, float]:
    names = {field.name for field in fields(Speeds)}
    found = entry.items() if isinstance(entry, dict) else ()
    return {name: float(value) for name, value in found if name in names and _is_speed(value)}


def _is_speed(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _mixed(name: str, known: float | None, measured: float) -> float:
    """Return the new figure; of seconds the smaller is the better one."""
    if known is None:
        return measured
    is_better = measured < known if name.endswith(("_seconds", "_per_token")) else measured > known
    return measured if is_better else known + _BELIEF * (measured - known)
