"""Verify a log offline: a directory and a public key to a report; device side, or an auditor's machine.

Everything stored is computed again: every record's frame and canonical form, the tree, the saved state, the last
checkpoint and its signature, the salts' ids. Nothing is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from splitinfer.egress.checkpoint import Checkpoint, open_checkpoint, read_unverified
from splitinfer.egress.commitments import SaltStore
from splitinfer.egress.files import FileLayer, OpenMode, OsFiles, read_small
from splitinfer.egress.records import Frame, Record, frames, parse_record
from splitinfer.egress.state import LogState
from splitinfer.egress.storage import CHECKPOINT_NAME, LOG_NAME, SALTS_NAME, STATE_NAME
from splitinfer.errors import AuditLogError, BrokenLogError

__all__ = ["LogReport", "Stored", "read_records", "stored_log", "verify"]


@dataclass(frozen=True, slots=True)
class LogReport:
    """What a verified log is: `against_size` is the size of the older checkpoint that it extends, where one was given.

    `checkpoint_size` is None for a log without a checkpoint, of which a rewritten one could not be told.
    """

    origin: str
    size: int
    root: bytes
    log_bytes: int
    checkpoint_size: int | None
    against_size: int | None
    open_intents: int
    cuts: int
    salts: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored parts of a log at one moment: an iterator over frames up to `log_bytes`, state and checkpoint."""

    frames: Iterator[Frame]
    log_bytes: int
    state: LogState | None
    note: str | None

    def origin(self) -> str:
        """Return the log's origin as its state or checkpoint names it, or an empty text."""
        if self.state is not None:
            return self.state.origin
        return read_unverified(self.note).origin if self.note is not None else ""


@contextlib.contextmanager
def stored_log(directory: Path, *, files: FileLayer | None = None) -> Iterator[Stored]:
    """Open a log's files for reading, as they are at one moment; raises AuditLogError where that is not possible."""
    files = files or OsFiles()
    try:
        handle = files.open(directory / LOG_NAME, OpenMode.READ)
        try:
            files.lock(handle, shared=True)
            state, note = (read_small(files, directory / name) for name in (STATE_NAME, CHECKPOINT_NAME))
            stop = files.size(handle)
            # What is there now stays as it is: a reader that takes its time must not hold up an append.
            files.unlock(handle)
            yield Stored(
                frames=frames(files, handle, start=0, stop=stop),
                log_bytes=stop,
                state=None if state is None else LogState.from_bytes(state),
                note=None if note is None else note.decode(errors="replace"),
            )
        finally:
            files.close(handle)
    except OSError as error:
        raise AuditLogError(f"no audit log can be read there ({error.strerror})") from error


def read_records(directory: Path, since: int = 0, *, files: FileLayer | None = None) -> Iterator[Record]:
    """Yield the records of a log from index `since` on, without checking more than their frames."""
    with stored_log(directory, files=files) as stored:
        for index, frame in enumerate(stored.frames):
            if index >= since:
                yield parse_record(frame.payload)


def verify(
    directory: Path, public_key: Ed25519PublicKey, *, against: str | None = None, files: FileLayer | None = None
) -> LogReport:
    """Check all of a log, and with `against` that it extends that older signed checkpoint.

    Raises BrokenLogError where any stored byte was changed, the log was cut or rewritten, or a record is incomplete
    (opening the log cuts that and records the cut); AuditLogError where there is no readable log.
    """
    files = files or OsFiles()
    with stored_log(directory, files=files) as stored:
        origin = stored.origin()
        last = None if stored.note is None else open_checkpoint(stored.note, public_key, origin=origin)
        older = None if against is None else open_checkpoint(against, public_key, origin=origin or None)
        _check_not_rolled_back(stored.state, last)
        replayed, cuts = _replay(stored, [one for one in (last, older) if one is not None])
        salts = SaltStore(directory / SALTS_NAME, files).verify()
    return LogReport(
        origin=origin,
        size=replayed.size,
        root=replayed.frontier.root(),
        log_bytes=replayed.log_bytes,
        checkpoint_size=None if last is None else last.size,
        against_size=None if older is None else older.size,
        open_intents=len(replayed.open_intents),
        cuts=cuts,
        salts=salts,
    )


def _check_not_rolled_back(state: LogState | None, last: Checkpoint | None) -> None:
    if state is not None and (-1 if last is None else last.size) < state.checkpoint_size:
        raise BrokenLogError("the audit log's last checkpoint is missing or was replaced by an older one")


def _replay(stored: Stored, heads: list[Checkpoint]) -> tuple[LogState, int]:
    replayed, cuts = LogState(origin=stored.origin()), 0
    _check_heads(replayed, stored.state, heads)
    for frame in stored.frames:
        cuts += replayed.absorb(frame).get("type") == "cut"
        _check_heads(replayed, stored.state, heads)
    if replayed.log_bytes != stored.log_bytes:
        raise BrokenLogError("the audit log ends in an incomplete record; opening it cuts that and records the cut")
    longest = max([head.size for head in heads] + ([stored.state.size] if stored.state else []), default=0)
    if longest > replayed.size:
        raise BrokenLogError(f"the audit log is cut: {replayed.size} of at least {longest} records are left")
    return replayed, cuts


def _check_heads(replayed: LogState, saved: LogState | None, heads: list[Checkpoint]) -> None:
    for head in heads:
        if head.size == replayed.size and head.root != replayed.frontier.root():
            raise BrokenLogError(f"the audit log's first {head.size} records are not those of the checkpoint")
    if saved is not None and saved.size == replayed.size and not _is_same(replayed, saved):
        raise BrokenLogError(f"the audit log's saved state does not follow from its first {saved.size} records")


def _is_same(replayed: LogState, saved: LogState) -> bool:
    return (
        replayed.frontier.to_bytes() == saved.frontier.to_bytes()
        and replayed.log_bytes == saved.log_bytes
        and replayed.open_intents == saved.open_intents
    )
