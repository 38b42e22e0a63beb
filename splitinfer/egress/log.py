"""The audit log: records in, durable and numbered on return; the device's account of what left it.

A directory (0700) holds `log` (the records), `state` (saved frontier), `checkpoint` (the last signed head), `owners/`
(a locked file for every process that has the log open) and `salts/`. Every call takes the log's lock, reads what other
processes appended, does its work and lets the lock go. Before `append` returns, its record would survive a loss of
power; where that cannot be had, it raises AuditLogError, and then nothing may be sent.

An fsync that failed is never tried again: what the disk holds is unknown from then on, so the object only reads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.checkpoint import Checkpoint, check_origin
from splitinfer.egress.commitments import SaltStore
from splitinfer.egress.files import FileLayer, OsFiles, SyncFailedError
from splitinfer.egress.owners import Owner, Owners
from splitinfer.egress.records import Record, checked
from splitinfer.egress.state import LogState
from splitinfer.egress.storage import OWNERS_NAME, SALTS_NAME, LogStore
from splitinfer.errors import AuditLogError

__all__ = ["AuditLog"]

_ID_BYTES = 16
_STAMPED = frozenset({"seq", "time"})
_OWN_TYPES = frozenset({"intent", "outcome", "cut", "erased"})


class AuditLog:
    """An open log; made by `open`, safe for several threads and beside other processes on the same directory."""

    def __init__(
        self, directory: Path, *, store: LogStore, randomness: Callable[[int], bytes], files: FileLayer
    ) -> None:
        """Take the parts; `open` is the way to make one."""
        self._store, self._randomness, self._files = store, randomness, files
        self._owners = Owners(directory / OWNERS_NAME, files)
        self._salts = SaltStore(directory / SALTS_NAME, files)
        self._mutex = threading.Lock()
        self._owner: Owner | None = None
        self._is_read_only = False
        self._is_closed = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        origin: str,
        checkpoint_key: Ed25519PrivateKey,
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
        files: FileLayer | None = None,
    ) -> AuditLog:
        """Open the log in `directory`, made if missing, in time that does not depend on its size.

        Intents whose process is gone are closed as `unknown`, and a record that a crash left incomplete is cut; both
        are logged. `clock` returns Unix seconds, `randomness(n)` n random bytes. Raises AuditLogError where the
        directory cannot be written, BrokenLogError where the log was changed, cut or does not fit its checkpoint.
        """
        check_origin(origin)
        files = files or OsFiles()
        try:
            store = LogStore(directory, origin=origin, key=checkpoint_key, clock=clock, files=files)
        except OSError as error:
            raise _unusable(error) from error
        log = cls(directory, store=store, randomness=randomness, files=files)
        try:
            log._start()
        except BaseException:
            log._give_back()
            raise
        return log

    def append(self, record: Record) -> int:
        """Append a record and return its index; it is durable on return, with `seq` and `time` (Unix ms) added.

        A record has a `type` that is not one of the log's own (intent, outcome, cut, erased). Raises AuditLogError.
        """
        fields = _typed(record)
        with self._locked(writing=True):
            return self._store.append(fields)

    def append_if(self, build: Callable[[Iterator[Record]], Record]) -> int:
        """Append what `build(records so far)` returns and return its index; where it raises, nothing is appended.

        `build` runs under the lock, so that no other record comes between; it must not call the log.
        """
        with self._locked(writing=True) as state:
            return self._store.append(_typed(build(self._read(0, state.log_bytes))))

    def open_intent(self, record: Record) -> str:
        """Append an intent and return its random id; nothing may leave before this returned.

        The record states `bytes_up_bound`, the most bytes that may leave under it, or AuditLogError is raised.
        """
        fields = checked(record, reserved=_STAMPED | {"type", "intent", "owner"})
        bound = fields.get("bytes_up_bound")
        if not isinstance(bound, int) or isinstance(bound, bool) or bound < 0:
            raise AuditLogError("an intent states bytes_up_bound, the most bytes that may leave under it")
        with self._locked(writing=True):
            intent = self._randomness(_ID_BYTES).hex()
            self._store.append({**fields, "type": "intent", "intent": intent, "owner": self._own_name()})
            return intent

    def close_intent(self, intent_id: str, record: Record) -> int:
        """Append the outcome of an intent that this object opened, and return its index; raises AuditLogError."""
        fields = checked(record, reserved=_STAMPED | {"type", "intent"})
        if not isinstance(fields.get("status"), str):
            raise AuditLogError("an outcome states its status as text")
        with self._locked(writing=True) as state:
            known = state.open_intents.get(intent_id)
            if known is None or known.owner != self._own_name():
                raise AuditLogError(f"the intent {intent_id} is not open here")
            return self._store.append({**fields, "type": "outcome", "intent": intent_id})

    def checkpoint(self) -> Checkpoint:
        """Sign the log's present head and return it; both the records and the checkpoint are durable on return."""
        with self._locked(writing=True):
            return self._store.checkpoint()

    def commit(self, value: bytes) -> tuple[str, str]:
        """Return (commitment, salt id) of a value, both hex; the salt is durable in the side store on return."""
        with self._locked(writing=True):
            return self._salts.commit(value, randomness=self._randomness)

    def check_commitment(self, value: bytes, *, commitment: str, salt_id: str) -> None:
        """Check that a commitment is to this value; raises AuditLogError where not, or where its salt was erased."""
        with self._locked(writing=False):
            self._salts.check(value, commitment=commitment, salt_id=salt_id)

    def erase(self, salt_id: str) -> int:
        """Erase a salt, then log that; return the index of that record. The commitment means nothing from then on."""
        with self._locked(writing=True):
            self._salts.erase(salt_id)
            return self._store.append({"type": "erased", "salt": salt_id})

    @property
    def size(self) -> int:
        """Return the number of records, those of other processes included."""
        with self._locked(writing=False) as state:
            return state.size

    @property
    def root(self) -> bytes:
        """Return the tree's root over all records, those of other processes included."""
        with self._locked(writing=False) as state:
            return state.frontier.root()

    def records(self, since: int = 0) -> Iterator[Record]:
        """Yield the records there are now, from index `since` on."""
        with self._locked(writing=False) as state:
            stop = state.log_bytes
        return self._read(since, stop)

    def close(self) -> None:
        """Close the log; intents of this object without an outcome are logged as `unknown`. Idempotent."""
        if self._is_closed:
            return
        try:
            if not self._is_read_only:
                self._finish()
        finally:
            self._give_back()

    # --- under the lock -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, *, writing: bool) -> Iterator[LogState]:
        with self._mutex, self._translated():
            if self._is_closed:
                raise AuditLogError("the audit log is closed")
            if writing and self._is_read_only:
                raise AuditLogError("an fsync of the audit log failed earlier; open it again once the disk is sound")
            self._files.lock(self._store.handle)
            try:
                torn_bytes = self._store.catch_up()
                if writing and torn_bytes:
                    self._store.cut(torn_bytes)
                yield self._store.state
            finally:
                self._files.unlock(self._store.handle)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._is_read_only |= isinstance(error, SyncFailedError)
            raise _unusable(error) from error

    def _start(self) -> None:
        with self._translated():
            self._files.lock(self._store.handle)
            try:
                self._store.load()
            finally:
                self._files.unlock(self._store.handle)
        with self._locked(writing=True):
            self._owner = self._owners.claim(self._randomness)
            self._close_dead_intents()
            # Whoever made the files may have died before their names were durable: this fsyncs the directory.
            self._store.save_state()

    def _finish(self) -> None:
        with self._locked(writing=True):
            self._release_owner()
            self._close_dead_intents()
            self._store.save_state()

    def _close_dead_intents(self) -> None:
        living = self._owners.living()
        for intent_id, intent in list(self._store.state.open_intents.items()):
            if intent.owner not in living:
                bound = intent.bytes_up_bound
                outcome = {"type": "outcome", "intent": intent_id, "status": "unknown", "bytes_up_at_most": bound}
                self._store.append(outcome)

    def _own_name(self) -> str:
        return "" if self._owner is None else self._owner.name

    def _read(self, since: int, stop: int) -> Iterator[Record]:
        try:
            yield from self._store.read(since, stop)
        except OSError as error:
            raise _unusable(error) from error

    # --- handles --------------------------------------------------------------------------------------------------

    def _release_owner(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            self._owners.release(owner)

    def _give_back(self) -> None:
        self._is_closed = True
        with self._translated():
            self._files.close(self._store.handle)
            if self._owner is not None:
                self._files.close(self._owner.handle)


def _typed(record: Mapping[str, object]) -> dict[str, object]:
    fields = checked(record, reserved=_STAMPED)
    kind = fields.get("type")
    if not isinstance(kind, str) or not kind or kind in _OWN_TYPES:
        raise AuditLogError(
            f"a record has a type as text that is none of the log's own: {', '.join(sorted(_OWN_TYPES))}"
        )
    return fields


def _unusable(error: OSError) -> AuditLogError:
    reason = error.strerror or type(error).__name__
    return AuditLogError(f"the audit log cannot be used ({reason}); nothing may leave without it")
