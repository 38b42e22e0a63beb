"""How fast a link, its cloud and this device were, by recipient: a small JSON file of the state folder.

Written after a run, read before the next. Every figure is a lower bound of the speed that it stands for, so a faster
one is believed at once and a slower one by a fifth at a time.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

from splitinfer.home.folder import Home, locked, write_private
from splitinfer.selector import Speeds

__all__ = ["SpeedFile"]

_FILE, _LOCK = "speeds.json", ".speeds.lock"
_BELIEF = 0.2


class SpeedFile:
    """Measured speeds; a file that cannot be read counts as empty."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def get(self, recipient: str) -> Speeds:
        """Return what was measured with this recipient, the defaults for what was not."""
        return replace(Speeds(), **self._known(recipient))

    def put(self, recipient: str, **measured: float) -> None:
        """Mix measured speeds in, named as the fields of `Speeds`; raises StateError where it cannot be written."""
        with locked(self._home.path / _LOCK):
            stored = self._load()
            known = self._known(recipient)
            mixed = {name: _mixed(name, known.get(name), value) for name, value in measured.items()}
            stored[recipient] = {**known, **mixed}
            write_private(self._home.path / _FILE, json.dumps(stored, sort_keys=True) + "\n")

    def _known(self, recipient: str) -> dict[str, float]:
        entry = self._load().get(recipient)
        names = {field.name for field in fields(Speeds)}
        found = entry.items() if isinstance(entry, dict) else ()
        return {name: float(value) for name, value in found if name in names and _is_speed(value)}

    def _load(self) -> dict[str, object]:
        try:
            stored = json.loads((self._home.path / _FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}


def _is_speed(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _mixed(name: str, known: float | None, measured: float) -> float:
    """Return the new figure; of seconds the smaller is the better one."""
    if known is None:
        return measured
    is_better = measured < known if name.endswith(("_seconds", "_per_token")) else measured > known
    return measured if is_better else known + _BELIEF * (measured - known)
