"""A day of several processes on one audit log, what it was promised, and the check that the promises were kept."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.log import AuditLog
from splitinfer.egress.verification import verify
from tests.support.lossy_files import Killed, LossyDisk, LossyFiles, PowerLoss, Survivors

DIRECTORY = Path("/home/audit")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "device.example/audit"
STATE_EVERY = 4


def numbers(start: int = 0) -> Callable[[int], bytes]:
    """Return a source of bytes that never repeat and are the same in every run."""
    counter = itertools.count(start)
    return lambda count: hashlib.shake_128(next(counter).to_bytes(8, "big")).digest(count)


@dataclass
class Promises:
    """What the log's callers asked for, and what had returned by the time it all stopped."""

    asked: set[str] = field(default_factory=set)
    at_index: dict[int, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    salts: set[str] = field(default_factory=set)
    erasing: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    cuts: int = 0


class Caller:
    """One process that uses the log and remembers what it was promised."""

    def __init__(self, disk: LossyDisk, promises: Promises, randomness: Callable[[int], bytes]) -> None:
        self.files = LossyFiles(disk)
        self.promises = promises
        self.log = open_log(self.files, randomness)

    def append(self, name: str, padding: int = 0) -> None:
        self.promises.asked.add(name)
        index = self.log.append({"type": "local", "name": name, "padding": "x" * padding})
        self.promises.at_index[index] = name

    def intent(self, name: str) -> str:
        self.promises.asked.add(name)
        intent = self.log.open_intent({"name": name, "bytes_up_bound": 700})
        self.promises.present.add(name)
        return intent

    def outcome(self, intent: str, name: str) -> None:
        self.promises.asked.add(name)
        self.promises.at_index[self.log.close_intent(intent, {"status": "done", "name": name})] = name

    def checkpoint(self) -> None:
        self.promises.notes.append(self.log.checkpoint().note)

    def commit(self) -> str:
        salt_id = self.log.commit(b"value")[1]
        self.promises.salts.add(salt_id)
        return salt_id

    def erase(self, salt_id: str) -> None:
        self.promises.erasing.add(salt_id)
        self.log.erase(salt_id)
        self.promises.erased.add(salt_id)

    def killed_in_append(self, how: str, name: str, padding: int = 0) -> None:
        self.files.kill_at_write = how
        with contextlib.suppress(Killed):
            self.append(name, padding)


def open_log(files: LossyFiles, randomness: Callable[[int], bytes]) -> AuditLog:
    return AuditLog.open(
        DIRECTORY, origin=ORIGIN, checkpoint_key=KEY, clock=lambda: 1_800_000_000.25, randomness=randomness, files=files
    )


def a_day(disk: LossyDisk, promises: Promises) -> None:
    """Use the log from seven processes, of which four are killed: in mid-write, and three between write and fsync."""
    randomness = numbers()
    first = Caller(disk, promises, randomness)
    first.append("a local answer")
    intent = first.intent("a transfer")
    first.outcome(intent, "its outcome")
    salt = first.commit()
    first.commit()
    first.checkpoint()
    second = Caller(disk, promises, randomness)
    second.intent("never closed")
    second.killed_in_append("torn", "torn", padding=600)
    first.append("after the torn one")
    promises.cuts = 1
    first.checkpoint()
    third = Caller(disk, promises, randomness)
    third.killed_in_append("whole", "written but not fsynced", padding=1500)
    first.append("after the unsynced one")
    fourth = Caller(disk, promises, randomness)
    fourth.killed_in_append("whole", "written, not fsynced, then signed")
    first.checkpoint()
    fifth = Caller(disk, promises, randomness)
    fifth.killed_in_append("whole", "written, not fsynced, then found at an opening")
    Caller(disk, promises, randomness).log.close()
    for number in range(2 * STATE_EVERY):
        first.append(f"bulk {number}")
    first.erase(salt)
    first.intent("left open at close")
    first.log.close()
    last = Caller(disk, promises, randomness)
    last.append("the next day")
    last.checkpoint()
    last.log.close()


def check_promises(disk: LossyDisk, promises: Promises) -> None:
    """Open the log on this disk; every promise holds, and nothing is there that nobody asked for."""
    log = open_log(LossyFiles(disk), numbers(start=1 << 32))
    records = list(log.records())
    names = [record["name"] for record in records if "name" in record]
    assert len(names) == len(set(names)), "a record is there twice"
    assert set(names) <= promises.asked, "a record is there that nobody appended"
    assert promises.present <= set(names), "an intent that was promised is gone"
    for index, name in promises.at_index.items():
        assert len(records) > index, "a record that was promised is gone"
        assert records[index].get("name") == name, "a record that was promised is elsewhere"
    kinds = [record["type"] for record in records if "name" not in record]
    assert set(kinds) <= {"cut", "outcome", "erased"}
    assert kinds.count("cut") >= promises.cuts, "a cut was not logged"
    report = verify(DIRECTORY, KEY.public_key(), files=LossyFiles(disk))
    assert report.open_intents == 0, "an intent of a dead process is open"
    for note in promises.notes:
        against = verify(DIRECTORY, KEY.public_key(), against=note, files=LossyFiles(disk))
        assert against.checkpoint_size is not None
        assert against.checkpoint_size >= (against.against_size or 0), "a checkpoint that was promised is gone"
    salts = set(disk.node(DIRECTORY / "salts").current())
    assert promises.salts - promises.erasing <= salts, "a salt that was promised is gone"
    assert not promises.erased & salts, "an erased salt is back"
    log.append({"type": "local", "name": "one more"})
    log.close()
    verify(DIRECTORY, KEY.public_key(), files=LossyFiles(disk))


def crashes(
    *, survivors: list[str], ignored_site: str | None = None, points: Sequence[int] | None = None
) -> Iterator[tuple[int, str, LossyDisk, Promises]]:
    """Yield the disk and the promises after a loss of power at every operation, for every choice of survivors."""
    for point in points or _shuffled(operations_of_a_day(ignored_site) + 1):
        disk, promises = LossyDisk(), Promises()
        disk.power_loss_at, disk.ignored_site = point, ignored_site
        with contextlib.suppress(PowerLoss):
            a_day(disk, promises)
        for kind in survivors:
            yield point, kind, disk.after_power_loss(Survivors(kind)), promises


def _shuffled(count: int) -> list[int]:
    """Return 1..count in a fixed order in which a broken promise is met early."""
    return random.Random(0).sample(range(1, count + 1), count)  # noqa: S311 (a repeatable order)


def operations_of_a_day(ignored_site: str | None = None) -> int:
    disk = LossyDisk()
    disk.ignored_site = ignored_site
    a_day(disk, Promises())
    return disk.operations
