"""The device's encrypted store of caches of public text: PackedCache bytes in, the same bytes out; no tensor in it."""

from splitinfer.store.entry import Facts
from splitinfer.store.prefix import PublicPrefix, public_prefix
from splitinfer.store.store import CacheStore, Entry, Stored

__all__ = ["CacheStore", "Entry", "Facts", "PublicPrefix", "Stored", "public_prefix"]
