"""What becomes of a cache when its reply is over: it is kept where that was agreed, else wiped; cloud side."""

from __future__ import annotations

import threading
from collections.abc import Callable

from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot, wipe

__all__ = ["Remains"]


class Remains:
    """A cache that a reply is made from, finished or growing, and its end, which comes once.

    `keep(snapshot)` takes the cache over, or returns False. `base` is what the cache grows on; it ends with it.
    """

    def __init__(
        self,
        cache: CacheSnapshot | GrowingCache,
        keep: Callable[[CacheSnapshot], bool],
        *,
        base: CacheSnapshot | None = None,
    ) -> None:
        self._cache: CacheSnapshot | GrowingCache | None = cache
        self._keep, self._base = keep, base
        self._lock = threading.Lock()

    def settle(self) -> int:
        """End well: return how many tokens are kept, 0 where the cache was wiped instead. Raises as a prefill does."""
        cache = self._taken()
        if cache is None:
            return 0
        snapshot = cache.hand_over() if isinstance(cache, GrowingCache) else cache
        self._drop_base()
        if self._keep(snapshot):
            return snapshot.true_tokens
        wipe(snapshot)
        return 0

    def wipe(self) -> None:
        """End badly, or after `settle`: nothing more is kept."""
        cache = self._taken()
        if isinstance(cache, GrowingCache):
            cache.wipe()
        elif cache is not None:
            wipe(cache)
        if cache is not None:
            self._drop_base()

    def _drop_base(self) -> None:
        if self._base is not None:
            wipe(self._base)
        self._base = None

    def _taken(self) -> CacheSnapshot | GrowingCache | None:
        with self._lock:
            cache, self._cache = self._cache, None
        return cache
