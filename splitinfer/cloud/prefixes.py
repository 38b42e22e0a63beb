"""Caches of public text that the cloud keeps for the device that sent it: token ids and steps -> snapshot; cloud side.

Only requests whose sealed manifest says that all their tokens are public come here. Names are HMAC-SHA256 under a
secret of the process and the device's key, so that no device finds, by hit or by time, what another one has sent.
Memory only; each device has its quota, all have one together, the least recently used goes first and is wiped.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from splitinfer.cache.memory import copied, memory_bytes
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.handoff import ModelIdentity, Numerics
from splitinfer.sealing.encoding import canonical, prefixed

__all__ = ["PrefixLimits", "Prefixes"]

_SECRET_LABEL = b"splitinfer/v1/prefixes\x00"


@dataclass(frozen=True, slots=True)
class PrefixLimits:
    """How many bytes the caches of one device may take, and those of all; 0 in all keeps nothing."""

    max_bytes: int = 1024**3
    max_device_bytes: int = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class _Kept:
    sender: bytes
    snapshot: CacheSnapshot = field(repr=False)
    size_bytes: int


class Prefixes:
    """The prefix cache of one model; safe for several threads. What it hands out is a copy of the caller's own."""

    def __init__(
        self,
        limits: PrefixLimits,
        *,
        model: ModelIdentity,
        numerics: Numerics,
        randomness: Callable[[int], bytes],
    ) -> None:
        self._limits, self._secret = limits, randomness(32)
        self._about = prefixed(canonical({"model": asdict(model), "numerics": asdict(numerics)}))
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        """Return how many caches are kept."""
        with self._lock:
            return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of memory that they take."""
        with self._lock:
            return self._sum_bytes()

    def find(self, sender: bytes, token_ids: Sequence[int], steps: Sequence[tuple[int, int]]) -> CacheSnapshot | None:
        """Return the cache of as many of the first steps of this text as this device's earlier texts had, or None."""
        if not self._limits.max_bytes:
            return None
        names = list(self._names(sender, token_ids, steps))
        with self._lock:
            for name in reversed(names):
                if name in self._kept:
                    self._kept.move_to_end(name)
                    return copied(self._kept[name].snapshot)
        return None

    def put(
        self, sender: bytes, token_ids: Sequence[int], steps: Sequence[tuple[int, int]], snapshot: CacheSnapshot
    ) -> bool:
        """Keep the cache of these steps, which is this store's from now on; False where there is no room for it."""
        size, limits = memory_bytes(snapshot), self._limits
        *_, name = self._names(sender, token_ids, steps)
        with self._lock:
            if self._is_closed or size > min(limits.max_bytes, limits.max_device_bytes):
                return False
            if name in self._kept:
                wipe(self._kept.pop(name).snapshot)
            self._kept[name] = _Kept(sender, snapshot, size)
            while self._sum_bytes(sender) > limits.max_device_bytes:
                self._drop_oldest(sender)
            while self._sum_bytes() > limits.max_bytes:
                self._drop_oldest()
        return True

    def close(self) -> None:
        """Wipe everything and keep nothing from now on."""
        with self._lock:
            self._is_closed = True
            while self._kept:
                self._drop_oldest()

    def _names(self, sender: bytes, token_ids: Sequence[int], steps: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Yield the name of the text up to the end of each step; one pass over the text."""
        secret = hmac.digest(self._secret, _SECRET_LABEL + sender, hashlib.sha256)
        running = hmac.new(secret, self._about, hashlib.sha256)
        for start, stop in steps:
            running.update(struct.pack(f">II{stop - start}I", start, stop, *token_ids[start:stop]))
            yield running.copy().digest()

    def _sum_bytes(self, sender: bytes | None = None) -> int:
        return sum(kept.size_bytes for kept in self._kept.values() if sender in (None, kept.sender))

    def _drop_oldest(self, sender: bytes | None = None) -> None:
        name = next(name for name, kept in self._kept.items() if sender in (None, kept.sender))
        wipe(self._kept.pop(name).snapshot)
