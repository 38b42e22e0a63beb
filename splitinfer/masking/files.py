"""The durable writes that the pool stands on: small files by rename, appends with fsync, a lock; on the device."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["append", "locked", "make_folder", "write_small"]


def make_folder(path: Path) -> None:
    """Make a folder with mode 0700, durable in its parent; one that is there stays."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sync(path.parent)


def write_small(path: Path, data: bytes) -> None:
    """Write a file (0600) whole or not at all; durable on return."""
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(path)
    _sync(path.parent)


def append(path: Path, data: bytes, *, at: int) -> None:
    """Cut a file (0600, made if missing) to `at` bytes and write after them; durable on return."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, at)
        os.lseek(handle, at, os.SEEK_SET)
        _write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on this file, made if missing, against other processes and threads."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
