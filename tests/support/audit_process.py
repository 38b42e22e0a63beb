"""A process on a real audit log, run as a script: appends, holds an intent open, or is killed at every operation."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.files import OpenMode, OsFiles
from splitinfer.egress.log import AuditLog
from splitinfer.egress.verification import verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "device.example/audit"


class KillingFiles(OsFiles):
    """Kills its own process at the n-th changing operation, in the middle of it where it is a write."""

    def __init__(self, kill_at: int) -> None:
        self._left = kill_at

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def make_directory(self, path: Path) -> None:
        self._count()
        super().make_directory(path)

    def open(self, path: Path, mode: OpenMode) -> int:
        if mode is not OpenMode.READ:
            self._count()
        return super().open(path, mode)

    def write_at(self, handle: int, offset: int, data: bytes) -> None:
        if self._left == 1:
            os.pwrite(handle, data[: len(data) // 2], offset)
        self._count()
        super().write_at(handle, offset, data)
        self._count()

    def truncate(self, handle: int, size: int) -> None:
        self._count()
        super().truncate(handle, size)

    def fsync(self, handle: int) -> None:
        self._count()
        super().fsync(handle)

    def fsync_directory(self, path: Path) -> None:
        self._count()
        super().fsync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


def open_real(directory: Path, files: OsFiles | None = None) -> AuditLog:
    return AuditLog.open(
        directory, origin=ORIGIN, checkpoint_key=KEY, clock=time.time, randomness=secrets.token_bytes, files=files
    )


def _work(directory: Path, files: OsFiles, promised: int) -> None:
    """Use the log twice; every name is written to `promised` only after the call for it returned."""

    def say(name: str) -> None:
        os.write(promised, f"{name}\n".encode())

    for part in ("first", "second"):
        log = open_real(directory, files)
        log.append({"type": "local", "name": f"{part} local"})
        say(f"{part} local")
        intent = log.open_intent({"name": f"{part} intent", "bytes_up_bound": 10})
        say(f"{part} intent")
        log.close_intent(intent, {"status": "done", "name": f"{part} outcome"})
        say(f"{part} outcome")
        log.checkpoint()
        say("checkpoint")
        log.open_intent({"name": f"{part} left open", "bytes_up_bound": 10})
        say(f"{part} left open")
        if part == "second":
            log.close()


def _killed_at(directory: Path, point: int) -> tuple[bool, list[str]]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(directory, KillingFiles(point), writer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        names = lines.read().split("\n")[:-1]
    status = os.waitpid(child, 0)[1]
    if status not in {0, signal.SIGKILL}:
        raise SystemExit(f"the child ended with {status} at operation {point}")
    return status == signal.SIGKILL, names


def _check(directory: Path, names: list[str], point: int) -> None:
    log = open_real(directory)
    found = [record["name"] for record in log.records() if "name" in record]
    report = verify(directory, KEY.public_key())
    log.close()
    missing = [name for name in names if name != "checkpoint" and name not in found]
    if missing or report.open_intents or len(found) > len(names) + 1:
        raise SystemExit(f"after a kill at operation {point}: missing {missing}, {report}")
    if "checkpoint" in names and report.checkpoint_size is None:
        raise SystemExit(f"after a kill at operation {point}: the checkpoint is gone")


def kill_everywhere(base: Path) -> None:
    """Kill a child at operation 1, 2, ... until one ends by itself; check the log after each."""
    point, is_killed = 0, True
    while is_killed:
        point += 1
        with tempfile.TemporaryDirectory(dir=base) as home:
            is_killed, names = _killed_at(Path(home) / "audit", point)
            if is_killed and not (Path(home) / "audit").exists():
                continue
            _check(Path(home) / "audit", names, point)
    sys.stdout.write(json.dumps({"killed_points": point - 1}))


def append_many(directory: Path, name: str, count: int) -> None:
    log = open_real(directory)
    for number in range(count):
        log.append({"type": "local", "name": f"{name} {number}"})
    log.close()


def hold(directory: Path) -> None:
    """Open an intent, say so, and wait for a line before closing it."""
    log = open_real(directory)
    intent = log.open_intent({"bytes_up_bound": 99})
    sys.stdout.write(f"{intent}\n")
    sys.stdout.flush()
    sys.stdin.readline()
    log.close_intent(intent, {"status": "done"})
    log.close()


if __name__ == "__main__":
    command, target, *rest = sys.argv[1:]
    if command == "kill-everywhere":
        kill_everywhere(Path(target))
    elif command == "append":
        append_many(Path(target), rest[0], int(rest[1]))
    else:
        hold(Path(target))
