"""What a frozen cache takes of memory: its bytes, a copy of its own, whether two share any; both sides."""

from __future__ import annotations

import torch

from splitinfer.cache.snapshot import CacheSnapshot, storages

__all__ = ["copied", "memory_bytes", "shares_memory"]


def memory_bytes(snapshot: CacheSnapshot) -> int:
    """Return the bytes of memory behind a snapshot, rows outside its views included, each storage counted once."""
    return sum(storages(snapshot).values())


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
    return not storages(one).keys().isdisjoint(storages(other).keys())
