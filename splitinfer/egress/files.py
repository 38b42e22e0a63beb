"""The file operations that the audit log stands on, as a protocol; paths and handles to bytes, device side.

The log makes every durable step through this protocol, so that tests can lose power between any two of them. A handle
is an int that only the layer that gave it understands.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from enum import StrEnum
from pathlib import Path
from typing import Protocol

__all__ = ["FileLayer", "OpenMode", "OsFiles", "SyncFailedError", "read_small", "sync", "sync_directory", "write_small"]

_TEMPORARY = "new.tmp"


class OpenMode(StrEnum):
    """How a file is opened: an existing one to read, one to read and write that is made if missing, or an empty one."""

    READ = "read"
    WRITE = "write"
    FRESH = "fresh"


class SyncFailedError(OSError):
    """An fsync failed: what the disk holds is unknown from then on, and a second fsync could lie about it."""


class FileLayer(Protocol):
    """Operations on files; each raises OSError where it fails. Files are made 0600, directories 0700."""

    def make_directory(self, path: Path) -> None:
        """Make a directory; one that is there already is left as it is."""

    def names(self, path: Path) -> list[str]:
        """Return the names in a directory."""

    def open(self, path: Path, mode: OpenMode) -> int:
        """Return a handle."""

    def close(self, handle: int) -> None:
        """Give a handle back, and the lock that it holds."""

    def size(self, handle: int) -> int:
        """Return the file's size in bytes."""

    def read_at(self, handle: int, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, fewer at the end of the file."""

    def write_at(self, handle: int, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`; a failure may leave a part of it."""

    def truncate(self, handle: int, size: int) -> None:
        """Cut the file to `size` bytes."""

    def fsync(self, handle: int) -> None:
        """Return once the file's bytes and size would survive a loss of power."""

    def fsync_directory(self, path: Path) -> None:
        """Return once the directory's entries would survive a loss of power."""

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` in one step, within one directory."""

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is missing already is no error."""

    def lock(self, handle: int, *, shared: bool = False) -> None:
        """Wait for the file's lock, which goes when the handle is closed or its process ends."""

    def try_lock(self, handle: int) -> bool:
        """Take the file's lock if nobody holds it; return whether it was taken."""

    def unlock(self, handle: int) -> None:
        """Let the lock go."""


class OsFiles:
    """The operating system's files, with `flock` locks."""

    def make_directory(self, path: Path) -> None:
        """Make the directory with mode 0700."""
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)

    def names(self, path: Path) -> list[str]:
        """Return the names in the directory, sorted."""
        return sorted(os.listdir(path))

    def open(self, path: Path, mode: OpenMode) -> int:
        """Open without following a link at the last step; new files get mode 0600."""
        flags = {
            OpenMode.READ: os.O_RDONLY,
            OpenMode.WRITE: os.O_RDWR | os.O_CREAT,
            OpenMode.FRESH: os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        }[mode]
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def close(self, handle: int) -> None:
        """Close the descriptor."""
        os.close(handle)

    def size(self, handle: int) -> int:
        """Return the size by fstat."""
        return os.fstat(handle).st_size

    def read_at(self, handle: int, offset: int, count: int) -> bytes:
        """Read by pread until `count` bytes or the end."""
        parts = []
        while count > 0 and (part := os.pread(handle, count, offset)):
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def write_at(self, handle: int, offset: int, data: bytes) -> None:
        """Write by pwrite until all is written."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(handle, rest, offset)
            rest, offset = rest[written:], offset + written

    def truncate(self, handle: int, size: int) -> None:
        """Cut by ftruncate."""
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        """Sync the descriptor."""
        os.fsync(handle)

    def fsync_directory(self, path: Path) -> None:
        """Sync the directory through a descriptor of its own."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Rename in one step of the file system."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove the entry."""
        path.unlink(missing_ok=True)

    def lock(self, handle: int, *, shared: bool = False) -> None:
        """Wait for the flock."""
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def try_lock(self, handle: int) -> bool:
        """Try for the flock."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self, handle: int) -> None:
        """Release the flock."""
        fcntl.flock(handle, fcntl.LOCK_UN)


def sync(files: FileLayer, handle: int) -> None:
    """Fsync a file; raises SyncFailedError where that fails."""
    try:
        files.fsync(handle)
    except OSError as error:
        raise SyncFailedError(error.errno, f"fsync failed: {error.strerror}") from error


def sync_directory(files: FileLayer, path: Path) -> None:
    """Fsync a directory; raises SyncFailedError where that fails."""
    try:
        files.fsync_directory(path)
    except OSError as error:
        raise SyncFailedError(error.errno, f"fsync failed: {error.strerror}") from error


def write_small(files: FileLayer, path: Path, data: bytes) -> None:
    """Replace a small file in one durable step; the caller holds the lock that covers its directory."""
    temporary = path.with_name(_TEMPORARY)
    handle = files.open(temporary, OpenMode.FRESH)
    try:
        files.write_at(handle, 0, data)
        sync(files, handle)
    finally:
        files.close(handle)
    files.rename(temporary, path)
    sync_directory(files, path.parent)


def read_small(files: FileLayer, path: Path, *, limit_bytes: int = 1 << 24) -> bytes | None:
    """Return a small file's bytes, at most `limit_bytes`, or None where there is no such file."""
    try:
        handle = files.open(path, OpenMode.READ)
    except FileNotFoundError:
        return None
    try:
        return files.read_at(handle, 0, limit_bytes)
    finally:
        files.close(handle)
