"""Caches without tensors for tests of the store: bytes that pack and sink, prefixes, facts, and disks that are full."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splitinfer.errors import TruncatedError
from splitinfer.handoff import CacheLayout, Label, LayerLayout, ModelIdentity, Numerics, PromptTokens, TensorLayout
from splitinfer.sealing.manifest import ModelWire
from splitinfer.store import CacheStore, Facts, PublicPrefix, Stored, public_prefix
from splitinfer.store.files import OsStoreFiles

STORE_KEY = bytes(range(32))
MODEL = ModelIdentity("a" * 64, "b" * 64, "c" * 64)
NUMERICS = Numerics("2.13.0", "cpu", "float32", "sdpa", 1)
_PARTS = tuple(TensorLayout(name, "float32", "tokens", (2,), (32,)) for name in ("keys", "values"))
LAYOUT = CacheLayout((LayerLayout("full", _PARTS),))
PIN = "d" * 64
LARGE = 1 << 40
FACTS = Facts(
    model=ModelWire.of(MODEL),
    tokens=3,
    recipient=PIN,
    generation=1,
    transfer_id="e" * 32,
    received_root="f" * 64,
    verified_rows=2,
    is_exact=True,
    stored_at=1_800_000_000,
)


def prefix_of(*token_ids: int, **changes: Any) -> PublicPrefix:
    """Make the prefix of a prompt of these public tokens and one private one."""
    count = len(token_ids)
    prompt = PromptTokens((*token_ids, 9), (count, 1), (Label.PUBLIC, Label.PRIVATE))
    fields = {
        "steps": [(0, count)],
        "model": MODEL,
        "numerics": NUMERICS,
        "layout": LAYOUT,
        "codec": "raw",
        "recipient_identity_sha256": PIN,
    }
    return public_prefix(prompt, **{**fields, **changes})


class BytesPacked:
    """A packed cache that is these bytes, in slabs of one size."""

    def __init__(self, data: bytes, *, true_tokens: int = 3, slab_bytes: int = 1000) -> None:
        self._data, self.true_tokens, self._slab_bytes = data, true_tokens, slab_bytes

    @property
    def layout(self) -> CacheLayout:
        return LAYOUT

    def slabs(self) -> Iterator[memoryview]:
        for at in range(0, len(self._data), self._slab_bytes):
            yield memoryview(self._data[at : at + self._slab_bytes])

    def wipe(self) -> None:
        self._data = b""


class BytesSink:
    """Slabs of one size up to `data_bytes`; `finish` gives the bytes back."""

    def __init__(self, data_bytes: int, *, slab_bytes: int = 777) -> None:
        self._data, self._slab_bytes, self._at = bytearray(data_bytes), slab_bytes, 0
        self.is_wiped = False

    def slab(self) -> memoryview:
        view = memoryview(self._data)[self._at : self._at + self._slab_bytes]
        if not view:
            raise TruncatedError("there are no more slabs")
        self._at += len(view)
        return view

    def finish(self) -> bytes:
        if self._at < len(self._data):
            raise TruncatedError("slabs are missing")
        return bytes(self._data)

    def wipe(self) -> None:
        self.is_wiped = True


class FullDisk(OsStoreFiles):
    """A disk with room for so many bytes more; then writes are cut short and fail as a full disk makes them fail."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes

    def write_at(self, handle: int, offset: int, data: bytes) -> None:
        super().write_at(handle, offset, data[: self.room_bytes])
        self.room_bytes -= len(data)
        if self.room_bytes < 0:
            self.room_bytes = 0
            raise OSError(errno.ENOSPC, "No space left on device")


def ticking(start: int = 1_800_000_000) -> Callable[[], float]:
    """Return a clock that goes a second further at every look."""
    seconds = itertools.count(start)
    return lambda: float(next(seconds))


def open_store(directory: Path, *, max_bytes: int = LARGE, key: bytes = STORE_KEY, files: Any = None) -> CacheStore:
    """Open a store with a ticking clock."""
    return CacheStore.open(
        directory, store_key=key, max_bytes=max_bytes, clock=ticking(), randomness=os.urandom, files=files
    )


def get(store: CacheStore, prefix: PublicPrefix, data_bytes: int) -> Stored[bytes] | None:
    """Look for a cache of so many bytes."""
    return store.get(prefix, lambda: BytesSink(data_bytes))


def cache_files(directory: Path) -> list[Path]:
    """Return the store's files but its lock, the oldest first."""
    paths = [path for path in directory.iterdir() if path.name != "lock"]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)
