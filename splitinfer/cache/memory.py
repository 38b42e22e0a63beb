"""What a frozen cache takes of memory: its bytes, a copy of its own, whether two share any; both sides."""

from __future__ import annotations

import torch

from splitinfer.cache.snapshot import CacheSnapshot

__all__ = ["copied", "memory_bytes", "shares_memory"]


def memory_bytes(snapshot: CacheSnapshot) -> int:
    """Return the bytes of memory behind a snapshot, rows outside its views included, each storage counted once."""
    return sum(_storages(snapshot).values())


def copied(snapshot: CacheSnapshot) -> CacheSnapshot:
    """Return a snapshot of the same contents that shares no memory with this one."""
    with torch.no_grad():
        layers = tuple(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in layer.items()}
            for layer in snapshot.layers
        )
    return CacheSnapshot(snapshot.layout, snapshot.true_tokens, layers)


def shares_memory(one: CacheSnapshot, other: CacheSnapshot) -> bool:
    """Tell whether wiping one would change the other."""
    return not _storages(one).keys().isdisjoint(_storages(other).keys())


def _storages(snapshot: CacheSnapshot) -> dict[int, int]:
    storages = (tensor.untyped_storage() for layer in snapshot.layers for tensor in layer.values())
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
