"""The store of public caches of a state folder, opened with its key; on the device."""

from __future__ import annotations

import secrets
import time

from splitinfer.home.folder import Home
from splitinfer.store import CacheStore

__all__ = ["open_store"]


def open_store(home: Home, *, max_bytes: int) -> CacheStore:
    """Open the folder's store; raises StateError for an unusable key and StoreError for an unusable folder."""
    return CacheStore.open(
        home.path / "store",
        store_key=home.secret("store"),
        max_bytes=max_bytes,
        clock=time.time,
        randomness=secrets.token_bytes,
    )
