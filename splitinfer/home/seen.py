"""The highest epochs and generations that this device accepted, so that an older keyset is refused; on the device."""

from __future__ import annotations

import json

from splitinfer.errors import StateError
from splitinfer.home.folder import Home, locked, write_private

__all__ = ["SeenFile"]


class SeenFile:
    """`seen.json` under a lock; a file that cannot be read refuses rather than forgets."""

    def __init__(self, home: Home) -> None:
        self._path = home.path / "seen.json"

    def highest_epoch(self, replica_id: str) -> int:
        """Return the highest epoch accepted of this replica, or 0."""
        return self._read()["epochs"].get(replica_id, 0)

    def highest_generation(self, identity_sha256: str) -> int:
        """Return the highest generation accepted of this identity, or 0."""
        return self._read()["generations"].get(identity_sha256, 0)

    def remember(self, *, identity_sha256: str, generation: int, replica_id: str, epoch: int) -> None:
        """Record what was accepted; never lowers a number."""
        with locked(self._path.with_suffix(".lock")):
            seen = self._read()
            before = json.dumps(seen)
            epochs, generations = seen["epochs"], seen["generations"]
            epochs[replica_id] = max(epoch, epochs.get(replica_id, 0))
            generations[identity_sha256] = max(generation, generations.get(identity_sha256, 0))
            if json.dumps(seen) != before:
                write_private(self._path, json.dumps(seen, sort_keys=True) + "\n")

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            return {name: _counts(value[name]) for name in ("epochs", "generations")}
        except FileNotFoundError:
            return {"epochs": {}, "generations": {}}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateError("seen.json cannot be read; restore it, or remove it to forget all keysets seen") from error


def _counts(value: dict[str, object]) -> dict[str, int]:
    counts = {name: count for name, count in value.items() if isinstance(count, int) and not isinstance(count, bool)}
    if len(counts) != len(value):
        raise ValueError
    return counts
