"""A log's files under its lock: catch up, append, cut, sign, save; the rules by which nothing is lost, device side.

All calls are made while the caller holds the log's lock. What survives a loss of power rests on four orders: a record
is fsynced before it is counted; nothing is written behind, signed over or saved about a record that may not be durable;
a small file is durable before it takes its name; a cut leaves a byte until its own record lies over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from splitinfer.egress.files import FileLayer, OpenMode, read_small, sync, sync_directory, write_small
from splitinfer.egress.records import Frame, Record, framed, frames, parse_record, record_bytes
from splitinfer.egress.state import LogState
from splitinfer.errors import AuditLogError, BrokenLogError

__all__ = ["CHECKPOINT_NAME", "LOG_NAME", "OWNERS_NAME", "SALTS_NAME", "STATE_EVERY", "STATE_NAME", "LogStore"]

LOG_NAME, STATE_NAME, CHECKPOINT_NAME = "log", "state", "checkpoint"
OWNERS_NAME, SALTS_NAME = "owners", "salts"
STATE_EVERY = 64


class LogStore:
    """The log file, its saved state and its checkpoint; raises OSError where a file operation fails."""

    def __init__(
        self,
        directory: Path,
        *,
        origin: str,
        key: Ed25519PrivateKey,
        clock: Callable[[], float],
        files: FileLayer,
    ) -> None:
        """Make what is missing and open the log file; `load` comes next, under the lock."""
        self._directory, self._key, self._clock, self._files = directory, key, clock, files
        self.handle = self._make()
        self.state = LogState(origin=origin)
        self._saved_size = 0
        self._is_synced = False
        self._is_checked = False

    def _make(self) -> int:
        self._files.make_directory(self._directory)
        sync_directory(self._files, self._directory.parent)
        self._files.make_directory(self._directory / OWNERS_NAME)
        self._files.make_directory(self._directory / SALTS_NAME)
        return self._files.open(self._directory / LOG_NAME, OpenMode.WRITE)

    def load(self) -> None:
        """Start from the saved state, where there is one; raises AuditLogError where it is of another origin."""
        saved = read_small(self._files, self._directory / STATE_NAME)
        if saved is None:
            return
        state = LogState.from_bytes(saved)
        if state.origin != self.state.origin:
            raise AuditLogError("this audit log was made under another origin")
        self.state, self._saved_size = state, state.size

    def catch_up(self) -> int:
        """Take in what was appended since and return how many bytes of an incomplete last record follow.

        Raises BrokenLogError where the log is shorter than, or does not fit, its saved state or checkpoint.
        """
        stop = self._files.size(self.handle)
        if stop < self.state.log_bytes:
            raise BrokenLogError(f"the audit log is cut: {stop} bytes of at least {self.state.log_bytes} are left")
        if stop > self.state.log_bytes or not self._is_checked:
            self._take_in(stop, self._last_checkpoint())
            self._is_checked = True
        return stop - self.state.log_bytes

    def _take_in(self, stop: int, checkpoint: Checkpoint | None) -> None:
        self._check_head(checkpoint)
        for frame in frames(self._files, self.handle, start=self.state.log_bytes, stop=stop):
            self.state.absorb(frame)
            self._is_synced = False
            self._check_head(checkpoint)
        if checkpoint is not None and checkpoint.size > self.state.size:
            raise BrokenLogError(f"the audit log has {self.state.size} records, its checkpoint {checkpoint.size}")

    def _check_head(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None or checkpoint.size != self.state.size:
            return
        if checkpoint.root != self.state.frontier.root():
            raise BrokenLogError(f"the audit log's first {checkpoint.size} records are not those of its checkpoint")

    def _last_checkpoint(self) -> Checkpoint | None:
        note = read_small(self._files, self._directory / CHECKPOINT_NAME)
        found = None if note is None else open_checkpoint(_text(note), self._key.public_key(), origin=self.state.origin)
        if (-1 if found is None else found.size) < self.state.checkpoint_size:
            raise BrokenLogError("the audit log's last checkpoint is missing or was replaced by an older one")
        return found

    def cut(self, torn_bytes: int) -> None:
        """Cut an incomplete last record of `torn_bytes` bytes and log the cut."""
        # One byte stays until the record of the cut lies over it, so that no crash makes a cut that is not logged.
        self._files.truncate(self.handle, self.state.log_bytes + 1)
        self._is_synced = False
        self.append({"type": "cut", "bytes": torn_bytes})

    def append(self, fields: dict[str, object]) -> int:
        """Stamp and append a record and return its index; durable on return."""
        index = self.state.size
        payload = record_bytes({**fields, "seq": index, "time": int(self._clock() * 1000)})
        if index - self._saved_size >= STATE_EVERY:
            self.save_state()
        self._sync_foreign()
        frame = framed(payload)
        self._files.write_at(self.handle, self.state.log_bytes, frame)
        sync(self._files, self.handle)
        self.state.absorb(Frame(payload=payload, end=self.state.log_bytes + len(frame)))
        return index

    def _sync_foreign(self) -> None:
        # A process may have been killed between its write and its fsync: nothing is built on such a record.
        if not self._is_synced:
            sync(self._files, self.handle)
            self._is_synced = True

    def checkpoint(self) -> Checkpoint:
        """Sign the present head; the records and the checkpoint are durable on return."""
        self._sync_foreign()
        root = self.state.frontier.root()
        signed = sign_checkpoint(self._key, origin=self.state.origin, size=self.state.size, root=root)
        write_small(self._files, self._directory / CHECKPOINT_NAME, signed.note.encode())
        self.save_state()
        return signed

    def save_state(self) -> None:
        """Save what the next opening starts from; fsyncs the directory too, whoever made the files in it."""
        self._sync_foreign()
        checkpoint = self._last_checkpoint()
        self.state.checkpoint_size = -1 if checkpoint is None else checkpoint.size
        write_small(self._files, self._directory / STATE_NAME, self.state.to_bytes())
        self._saved_size = self.state.size

    def read(self, since: int, stop: int) -> Iterator[Record]:
        """Yield the records from index `since` on that end at byte `stop` or before."""
        for index, frame in enumerate(frames(self._files, self.handle, start=0, stop=stop)):
            if index >= since:
                yield parse_record(frame.payload)


def _text(note: bytes) -> str:
    try:
        return note.decode()
    except UnicodeDecodeError:
        raise BrokenLogError("the audit log's checkpoint is not text") from None
