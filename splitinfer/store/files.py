"""The file operations that the store stands on: those of the audit log, and a file's size, mode and time; device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitinfer.egress.files import FileLayer, OsFiles

__all__ = ["OsStoreFiles", "Status", "StoreFiles"]


@dataclass(frozen=True, slots=True)
class Status:
    """A file's size, permission bits, and when it was last used."""

    size_bytes: int
    mode: int
    used_at_ns: int


class StoreFiles(FileLayer, Protocol):
    """Operations on files; each raises OSError where it fails."""

    def status(self, path: Path) -> Status:
        """Return what is known of a file or directory, without following a link."""

    def touch(self, path: Path, time_ns: int) -> None:
        """Note when a file was last used, in Unix nanoseconds."""


class OsStoreFiles(OsFiles):
    """The operating system's files; the time of use is the time of modification, which every file system keeps."""

    def status(self, path: Path) -> Status:
        """Return it by lstat."""
        found = path.lstat()
        return Status(found.st_size, found.st_mode & 0o777, found.st_mtime_ns)

    def touch(self, path: Path, time_ns: int) -> None:
        """Set the file's times."""
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
