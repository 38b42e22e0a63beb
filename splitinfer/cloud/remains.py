"""What becomes of a cache when its reply is over: it is kept where that was agreed, else wiped; cloud side."""

from __future__ import annotations

import threading
from collections.abc import Callable

from splitinfer.cache.snapshot import CacheSnapshot, wipe

__all__ = ["Remains"]


class Remains:
    """A cache that a reply is made from, and its end, which comes once.

    `keep(snapshot)` takes the cache over, or returns False.
    """

    def __init__(self, snapshot: CacheSnapshot, keep: Callable[[CacheSnapshot], bool]) -> None:
        self._snapshot: CacheSnapshot | None = snapshot
        self._keep = keep
        self._lock = threading.Lock()

    def settle(self) -> int:
        """End well: return how many tokens are kept, 0 where the cache was wiped instead."""
        snapshot = self._taken()
        if snapshot is None:
            return 0
        if self._keep(snapshot):
            return snapshot.true_tokens
        wipe(snapshot)
        return 0

    def wipe(self) -> None:
        """End badly, or after `settle`: nothing more is kept."""
        snapshot = self._taken()
        if snapshot is not None:
            wipe(snapshot)

    def _taken(self) -> CacheSnapshot | None:
        with self._lock:
            snapshot, self._snapshot = self._snapshot, None
        return snapshot
