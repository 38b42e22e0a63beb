"""A simulated disk that forgets: writes and directory entries that were not fsynced may be lost, torn or reordered.

`LossyDisk` holds what is durable and what is pending; `LossyFiles` is one process's view of it, a real `FileLayer`.
Every changing operation is counted; at `power_loss_at` the power goes, and `after_power_loss(survivors)` is the disk
that the next start finds. A view can also be killed alone, in the middle of a write, with the power still on.
"""

from __future__ import annotations

import errno
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from splitinfer.egress.files import OpenMode

SECTOR_BYTES = 512
SYNC_HELPERS = {"sync", "sync_directory", "write_small", "_sync_foreign"}


class PowerLoss(BaseException):
    """The machine stopped; not an Exception, as no code survives it."""


class Killed(BaseException):
    """This process was killed with SIGKILL; the machine goes on."""


@dataclass(eq=False)
class File:
    durable: bytes = b""
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)

    def current(self) -> bytes:
        return _applied(self.durable, self.pending)


@dataclass(eq=False)
class Directory:
    durable: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[tuple[str, str, str, File | Directory | None]] = field(default_factory=list)

    def current(self) -> dict[str, File | Directory]:
        return _entries(self.durable, self.pending)


def _applied(data: bytes, operations: list[tuple[str, int, bytes]]) -> bytes:
    now = bytearray(data)
    for kind, offset, part in operations:
        if kind == "truncate":
            del now[offset:]
        else:
            now.extend(bytes(max(0, offset - len(now))))
            now[offset : offset + len(part)] = part
    return bytes(now)


def _entries(durable, operations):
    now = dict(durable)
    for kind, name, target, node in operations:
        if kind == "link":
            now[name] = node
        elif kind == "unlink":
            now.pop(name, None)
        else:
            now.pop(name, None)
            now[target] = node
    return now


class Survivors:
    """Chooses what of the pending operations reached the disk."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._random = random.Random(kind)  # noqa: S311 (a repeatable choice)

    def file_operations(self, operations):
        if self.kind == "none":
            return []
        if self.kind == "all":
            return operations
        return [
            self._mangled(one) for one in operations if self.kind in {"torn", "zeros"} or self._random.random() < 0.6
        ]

    def entry_operations(self, operations):
        if self.kind == "none":
            return []
        if self.kind in {"all", "torn", "zeros"}:
            return operations
        return [one for one in operations if self._random.random() < 0.6]

    def _mangled(self, operation):
        kind, offset, data = operation
        how = self.kind if self.kind in {"torn", "zeros"} else self._random.choice(["whole", "whole", "torn", "zeros"])
        if kind == "truncate" or how == "whole":
            return operation
        if how == "torn":
            return kind, offset, data[: self._random.randrange(len(data))]
        # The file grew, but some sectors of the write, here at least one, never came.
        sectors = sorted({at // SECTOR_BYTES for at in range(offset, offset + len(data))})
        lost = {self._random.choice(sectors)} if self.kind != "zeros" else set(sectors)
        kept = bytes(0 if (offset + at) // SECTOR_BYTES in lost else byte for at, byte in enumerate(data))
        return kind, offset, kept


class LossyDisk:
    def __init__(self, root: Directory | None = None) -> None:
        self.root = root or Directory(durable={"home": Directory()})
        self.operations = 0
        self.power_loss_at: int | None = None
        self.is_off = False
        self.bytes_read: Counter[str] = Counter()
        self.locks: dict[int, tuple[LossyFiles, int]] = {}
        self.sync_sites: set[str] = set()
        self.ignored_site: str | None = None

    def node(self, path: Path):
        node: File | Directory = self.root
        for name in path.parts[1:]:
            entries = node.current() if isinstance(node, Directory) else {}
            if name not in entries:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            node = entries[name]
        return node

    def count(self) -> bool:
        """Count a changing operation; return whether the power goes now."""
        if self.is_off:
            raise PowerLoss
        self.operations += 1
        self.is_off = self.operations == self.power_loss_at
        return self.is_off

    def after_power_loss(self, survivors: Survivors) -> LossyDisk:
        made: dict[int, File | Directory] = {}
        return LossyDisk(root=self._survived(self.root, survivors, made))

    def _survived(self, node, survivors, made):
        if id(node) not in made:
            if isinstance(node, File):
                made[id(node)] = File(durable=_applied(node.durable, survivors.file_operations(node.pending)))
            else:
                entries = _entries(node.durable, survivors.entry_operations(node.pending))
                made[id(node)] = Directory({k: self._survived(v, survivors, made) for k, v in entries.items()})
        return made[id(node)]


class LossyFiles:
    """One process on a lossy disk; `kill_at` n kills it at its n-th changing operation, a write half done."""

    def __init__(self, disk: LossyDisk) -> None:
        self.disk = disk
        self.kill_at_write: str | None = None
        self.fail_at: dict[str, OSError] = {}
        self._is_dead = False
        self._handles: dict[int, tuple[File, str]] = {}
        self._next = 3

    def kill(self) -> None:
        self._is_dead = True
        self.disk.locks = {key: held for key, held in self.disk.locks.items() if held[0] is not self}

    def _step(self, name: str) -> bool:
        self._check_alive()
        if name in self.fail_at:
            raise self.fail_at[name]
        return self.disk.count()

    def _check_alive(self) -> None:
        if self.disk.is_off:
            raise PowerLoss
        if self._is_dead:
            raise Killed

    def _change_entry(self, path: Path, operation) -> None:
        is_last = self._step(operation[0])
        self.disk.node(path.parent).pending.append(operation)
        if is_last:
            raise PowerLoss

    def make_directory(self, path: Path) -> None:
        if path.name not in self.disk.node(path.parent).current():
            self._change_entry(path, ("link", path.name, "", Directory()))

    def names(self, path: Path) -> list[str]:
        self._check_alive()
        return sorted(self.disk.node(path).current())

    def open(self, path: Path, mode: OpenMode) -> int:
        self._check_alive()
        if "open" in self.fail_at and mode is not OpenMode.READ:
            raise self.fail_at["open"]
        if mode is not OpenMode.READ and path.name not in self.disk.node(path.parent).current():
            self._change_entry(path, ("link", path.name, "", File()))
        node = self.disk.node(path)
        if mode is OpenMode.FRESH and node.current():
            node.pending.append(("truncate", 0, b""))
        self._next += 1
        self._handles[self._next] = (node, path.name)
        return self._next

    def close(self, handle: int) -> None:
        self._check_alive()
        self.unlock(handle)
        del self._handles[handle]

    def size(self, handle: int) -> int:
        self._check_alive()
        return len(self._handles[handle][0].current())

    def read_at(self, handle: int, offset: int, count: int) -> bytes:
        self._check_alive()
        node, name = self._handles[handle]
        data = node.current()[offset : offset + count]
        self.disk.bytes_read[name] += len(data)
        return data

    def write_at(self, handle: int, offset: int, data: bytes) -> None:
        node, name = self._handles[handle]
        if f"write {name}" in self.fail_at:
            node.pending.append(("write", offset, data[: len(data) // 2]))
            raise self.fail_at[f"write {name}"]
        is_last = self._step("write")
        is_killed = self.kill_at_write is not None and name == "log"
        part = data[: len(data) * 3 // 4] if is_killed and self.kill_at_write == "torn" else data
        node.pending.append(("write", offset, part))
        if is_last:
            raise PowerLoss
        if is_killed:
            self.kill()
            raise Killed

    def truncate(self, handle: int, size: int) -> None:
        is_last = self._step("truncate")
        self._handles[handle][0].pending.append(("truncate", size, b""))
        if is_last:
            raise PowerLoss

    def _sync(self, node: File | Directory) -> None:
        if self._step("fsync"):
            raise PowerLoss
        site = _site()
        self.disk.sync_sites.add(site)
        if site != self.disk.ignored_site:
            node.durable, node.pending = node.current(), []

    def fsync(self, handle: int) -> None:
        self._sync(self._handles[handle][0])

    def fsync_directory(self, path: Path) -> None:
        self._sync(self.disk.node(path))

    def rename(self, source: Path, target: Path) -> None:
        self._change_entry(target, ("rename", source.name, target.name, self.disk.node(source)))

    def unlink(self, path: Path) -> None:
        if path.name in self.disk.node(path.parent).current():
            self._change_entry(path, ("unlink", path.name, "", None))

    def lock(self, handle: int, *, shared: bool = False) -> None:  # noqa: ARG002
        if not self.try_lock(handle):
            raise RuntimeError("a single thread would wait for a lock for ever")

    def try_lock(self, handle: int) -> bool:
        self._check_alive()
        held = self.disk.locks.setdefault(id(self._handles[handle][0]), (self, handle))
        return held == (self, handle)

    def unlock(self, handle: int) -> None:
        self._check_alive()
        key = id(self._handles[handle][0])
        if self.disk.locks.get(key) == (self, handle):
            del self.disk.locks[key]


def _site() -> str:
    """Name the product's call site of an fsync: the helpers passed through, then the function that wanted it."""
    frame, names = sys._getframe(3), []
    while frame.f_code.co_name in SYNC_HELPERS:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return " < ".join([*names, frame.f_code.co_name])
