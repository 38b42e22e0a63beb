"""The store: caches of public text by what they are of, least recently used out first; a folder of the device.

A folder (0700) holds one file a cache, named by a keyed hash, and `lock`. A cache is written to a temporary file that
its writer keeps locked, and takes its name when it is durable, so that other processes see a whole file or none. What
does not open for any reason is removed and counts as not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Self, TypeVar

from splitinfer.egress.files import OpenMode, sync, sync_directory
from splitinfer.errors import CodecError, StoreError, UsageError, VerificationError
from splitinfer.handoff import PackedCache, Sink
from splitinfer.store import entry
from splitinfer.store.entry import Facts, OpenedEntry
from splitinfer.store.files import OsStoreFiles, StoreFiles
from splitinfer.store.keys import STORE_KEY_BYTES, StoreKeys
from splitinfer.store.prefix import PublicPrefix

__all__ = ["CacheStore", "Entry", "Stored"]

T = TypeVar("T")
_NAME = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = ".part"
_LOCK = "lock"
_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A cache that was found: what the sink finished, and what is known of it."""

    cache: T = field(repr=False)
    facts: Facts


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the store; `facts` is None where it does not open with this store's key."""

    name: str
    size_bytes: int
    used_at_seconds: float
    facts: Facts | None


class CacheStore:
    """An open store; made by `open`, safe beside other processes on the same folder."""

    def __init__(
        self,
        directory: Path,
        *,
        keys: StoreKeys,
        max_bytes: int,
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
        files: StoreFiles,
    ) -> None:
        """Take the parts; `open` is the way to make one."""
        self._directory, self._keys, self.max_bytes = directory, keys, max_bytes
        self._clock, self._randomness, self._files = clock, randomness, files

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        store_key: bytes,
        max_bytes: int,
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
        files: StoreFiles | None = None,
    ) -> Self:
        """Open the store in `directory`, made if missing, and remove what a crash left of writing.

        `clock` returns Unix seconds, `randomness(n)` n random bytes. Raises StoreError for a folder that cannot be
        used or that others can read.
        """
        if len(store_key) != STORE_KEY_BYTES:
            raise UsageError(f"a store key has {STORE_KEY_BYTES} bytes")
        keys = StoreKeys.of(store_key)
        files = files or OsStoreFiles()
        store = cls(directory, keys=keys, max_bytes=max_bytes, clock=clock, randomness=randomness, files=files)
        with _translated():
            files.make_directory(directory)
            sync_directory(files, directory.parent)
            if files.status(directory).mode & _OTHERS:
                raise StoreError(f"the folder {directory} can be read by others; run chmod 700 {directory}")
            with store._locked():
                store._sweep()
        return store

    def get(self, prefix: PublicPrefix, make_sink: Callable[[], Sink[T]]) -> Stored[T] | None:
        """Return the cache of this prefix, decrypted into a sink, or None where there is none that opens."""
        name = self._name(prefix)
        try:
            handle = self._files.open(self._directory / name, OpenMode.READ)
        except OSError:
            return None
        try:
            stored = self._read(handle, name, make_sink())
        finally:
            self._files.close(handle)
        with suppress(OSError):
            if stored is None:
                self._files.unlink(self._directory / name)
            else:
                self._files.touch(self._directory / name, self._now_ns())
        return stored

    def put(self, prefix: PublicPrefix, packed: PackedCache, facts: Facts) -> None:
        """Store the cache of this prefix in place of an earlier one, and remove the least recently used over the limit.

        Raises StoreError where it is larger than the limit or the disk is full; no part of it stays then. Raises
        UsageError for a cache of another number of tokens.
        """
        if packed.true_tokens != len(prefix.token_ids):
            raise UsageError("the cache to store is not of the tokens that it is stored under")
        name = self._name(prefix)
        with _translated(), self._temporary() as (handle, temporary):
            size = entry.write(
                self._files,
                handle,
                packed.slabs(),
                name=name,
                wrap_key=self._keys.wrap_key,
                facts=facts,
                max_bytes=self.max_bytes,
                randomness=self._randomness,
            )
            sync(self._files, handle)
            self._files.touch(temporary, self._now_ns())
            with self._locked():
                self._make_room(size, besides=name)
                self._files.rename(temporary, self._directory / name)
            sync_directory(self._files, self._directory)

    def forget(self, prefix: PublicPrefix) -> None:
        """Remove the cache of this prefix, if there is one; raises StoreError."""
        with _translated():
            self._files.unlink(self._directory / self._name(prefix))

    def entries(self) -> list[Entry]:
        """Return what is stored, the least recently used first; raises StoreError."""
        with _translated():
            return [self._entry(name, size, used_ns) for used_ns, name, size in self._listed()]

    def clear(self) -> list[Entry]:
        """Remove every cache, whichever key it was stored under, and return what was removed; raises StoreError."""
        with _translated():
            gone = self.entries()
            with self._locked():
                for found in gone:
                    self._files.unlink(self._directory / found.name)
                self._sweep()
            sync_directory(self._files, self._directory)
        return gone

    def _name(self, prefix: PublicPrefix) -> str:
        return prefix.name(self._keys.name_key)

    def _now_ns(self) -> int:
        return int(self._clock() * 1_000_000_000)

    def _read(self, handle: int, name: str, sink: Sink[T]) -> Stored[T] | None:
        try:
            opened = self._open(handle, name)
            entry.fill(sink, opened.chunks(self._files, handle))
            return Stored(sink.finish(), opened.facts)
        except (VerificationError, CodecError, OSError):
            sink.wipe()
            return None

    def _open(self, handle: int, name: str) -> OpenedEntry:
        return entry.open_entry(self._files, handle, name=name, wrap_key=self._keys.wrap_key)

    def _entry(self, name: str, size_bytes: int, used_at_ns: int) -> Entry:
        facts = None
        with suppress(VerificationError, OSError):
            handle = self._files.open(self._directory / name, OpenMode.READ)
            try:
                facts = self._open(handle, name).facts
            finally:
                self._files.close(handle)
        return Entry(name, size_bytes, used_at_ns / 1_000_000_000, facts)

    def _listed(self) -> list[tuple[int, str, int]]:
        """Return (time of use, name, bytes) of every cache, oldest first; one that goes meanwhile is left out."""
        found = []
        for name in self._files.names(self._directory):
            if _NAME.fullmatch(name):
                with suppress(FileNotFoundError):
                    status = self._files.status(self._directory / name)
                    found.append((status.used_at_ns, name, status.size_bytes))
        return sorted(found)

    # --- under the lock ---------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = self._files.open(self._directory / _LOCK, OpenMode.WRITE)
        try:
            self._files.lock(handle)
            yield
        finally:
            self._files.close(handle)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        """Lend a new file, locked so that no other process takes it for a dead one; gone at the end unless renamed."""
        path = self._directory / f"{self._randomness(16).hex()}{_TEMPORARY}"
        with self._locked():
            handle = self._files.open(path, OpenMode.FRESH)
            self._files.lock(handle)
        try:
            yield handle, path
        finally:
            self._files.close(handle)
            self._files.unlink(path)

    def _sweep(self) -> None:
        """Remove temporary files whose writer is gone."""
        for name in self._files.names(self._directory):
            if name.endswith(_TEMPORARY):
                path = self._directory / name
                handle = self._files.open(path, OpenMode.WRITE)
                try:
                    if self._files.try_lock(handle):
                        self._files.unlink(path)
                finally:
                    self._files.close(handle)

    def _make_room(self, size_bytes: int, *, besides: str) -> None:
        """Remove the least recently used caches until `size_bytes` more fit under the limit."""
        others = [(name, size) for _, name, size in self._listed() if name != besides]
        excess = size_bytes + sum(size for _, size in others) - self.max_bytes
        for name, size in others:
            if excess <= 0:
                return
            self._files.unlink(self._directory / name)
            excess -= size


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreError(f"the store of public caches cannot be used ({reason})") from error
