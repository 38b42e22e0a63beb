"""One run's use of the store: the cache of its public prefix from an earlier transfer, or the one just received.

PublicPrefix -> CacheSnapshot, CacheSnapshot -> PackedCache -> the store; on the device. Who decides whether a stored
cache may be used, and logs that it is, is `flow`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import StoreError
from splitinfer.handoff import Sink
from splitinfer.store import CacheStore, Facts, PublicPrefix, Stored

__all__ = ["Shelf"]

# Whatever the transfer's codec: what it lost is not lost twice, and the length follows from the layout.
_CODEC = "raw"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The place of one public prefix in the store. Files are padded as transfers are, so that only a class shows."""

    store: CacheStore
    prefix: PublicPrefix

    def find(self, *, lowest_generation: int) -> Stored[CacheSnapshot] | None:
        """Return what is stored, or None; what a recipient of a lower, retired generation sent is forgotten."""
        stored = self.store.get(self.prefix, self._sink)
        if stored is not None and stored.facts.generation < lowest_generation:
            self.forget()
            return None
        return stored

    def keep(self, snapshot: CacheSnapshot, facts: Facts) -> None:
        """Store a cache that was verified, as it was received; raises StoreError."""
        packed = codec.pack(snapshot, codec=_CODEC, padded_tokens=self._padded_tokens)
        self.store.put(self.prefix, packed, facts)

    def forget(self) -> None:
        """Remove what is stored, if that can be done: what stays is refused again the next time."""
        with suppress(StoreError):
            self.store.forget(self.prefix)

    @property
    def _padded_tokens(self) -> int:
        return schedule.pad_tokens(len(self.prefix.token_ids))

    def _sink(self) -> Sink[CacheSnapshot]:
        return codec.sink(
            self.prefix.layout,
            codec=_CODEC,
            true_tokens=len(self.prefix.token_ids),
            padded_tokens=self._padded_tokens,
        )
