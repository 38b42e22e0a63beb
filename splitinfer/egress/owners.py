"""Owner files: how a process tells the others that it lives; a directory of locked files, device side.

Every open log holds the lock of one file of its own. The system lets a lock go when its process ends, however it ends.
All calls are made under the log's lock, so that no file is seen between its creation and its locking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitinfer.egress.files import FileLayer, OpenMode

__all__ = ["Owner", "Owners"]

_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Owner:
    """A locked owner file."""

    name: str
    handle: int


@dataclass(frozen=True, slots=True)
class Owners:
    """The owner files of one log.

    Their directory is never fsynced: after a loss of power no process lives, and a missing file says just that.
    """

    directory: Path
    files: FileLayer

    def claim(self, randomness: Callable[[int], bytes]) -> Owner:
        """Make and lock an owner file with a random name."""
        name = randomness(_NAME_BYTES).hex()
        handle = self.files.open(self.directory / name, OpenMode.WRITE)
        self.files.lock(handle)
        return Owner(name=name, handle=handle)

    def release(self, owner: Owner) -> None:
        """Remove an owner file and let its lock go."""
        self.files.unlink(self.directory / owner.name)
        self.files.close(owner.handle)

    def living(self) -> frozenset[str]:
        """Return the names whose locks are held; the files of the dead are removed."""
        return frozenset(name for name in self.files.names(self.directory) if self._is_held(name))

    def _is_held(self, name: str) -> bool:
        handle = self.files.open(self.directory / name, OpenMode.READ)
        try:
            is_free = self.files.try_lock(handle)
            if is_free:
                self.files.unlink(self.directory / name)
        finally:
            self.files.close(handle)
        return not is_free
