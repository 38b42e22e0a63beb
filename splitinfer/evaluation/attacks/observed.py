"""What of a cache an attacker holds: CacheSnapshot -> CapturedCache, whole or in part.

Evaluation. A slab is the rows of one layer's keys or values; a partial release is a capture of fewer slabs, heads or
rows. Attacks take nothing else, so that what is attacked is what was exposed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import UsageError

__all__ = ["PARTS", "CapturedCache", "CapturedSlab", "Part"]

Part = Literal["keys", "values"]
PARTS: tuple[Part, ...] = ("keys", "values")


@dataclass(frozen=True, slots=True)
class CapturedSlab:
    """Rows [heads, held, dim] of one layer, of the positions from `first` on; `heads` numbers them in the model."""

    layer: int
    part: Part
    heads: tuple[int, ...]
    first: int
    rows: torch.Tensor = field(repr=False)

    @property
    def stop(self) -> int:
        """Return the position after the last one that is held."""
        return self.first + int(self.rows.shape[1])

    def at(self, position: int) -> torch.Tensor:
        """Return the row [heads, dim] of a position that is held."""
        return self.rows[:, position - self.first]

    def holds(self, position: int) -> bool:
        """Tell whether there is a row of this position."""
        return self.first <= position < self.stop


@dataclass(frozen=True, slots=True)
class CapturedCache:
    """The slabs that one seat saw of a cache of `tokens` tokens; the count itself is seen by whoever sees a row."""

    tokens: int
    slabs: tuple[CapturedSlab, ...]

    @classmethod
    def of(cls, snapshot: CacheSnapshot) -> CapturedCache:
        """Capture all keys and values of a snapshot; other states are left out. A window holds its last rows."""
        slabs = [
            _slab(index, part, tensors[part], snapshot.true_tokens)
            for index, tensors in enumerate(snapshot.layers)
            for part in PARTS
            if part in tensors and tensors[part].dim() == 4
        ]
        if not slabs:
            raise UsageError("this cache has no keys or values of tokens; there is nothing to capture")
        return cls(snapshot.true_tokens, tuple(slabs))

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> CapturedCache:
        """Capture keys and values [1, heads, tokens, dim] of layers from 0 on, as a forward gives them."""
        tokens = int(rows[0][0].shape[2])
        slabs = [
            _slab(layer, part, tensor, tokens)
            for layer, pair in enumerate(rows)
            for part, tensor in zip(PARTS, pair, strict=True)
        ]
        return cls(tokens, tuple(slabs))

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers of which something is held, in order."""
        return tuple(sorted({slab.layer for slab in self.slabs}))

    def only(
        self,
        *,
        layers: Collection[int] | None = None,
        heads: Collection[int] | None = None,
        parts: Collection[str] | None = None,
        last_tokens: int | None = None,
    ) -> CapturedCache:
        """Return a partial release: only these layers, heads, parts, and rows of the last tokens.

        Raises UsageError where nothing is left.
        """
        kept = [
            slab
            for slab in self.slabs
            if (layers is None or slab.layer in layers) and (parts is None or slab.part in parts)
        ]
        if heads is not None:
            kept = [_with_heads(slab, heads) for slab in kept if set(slab.heads) & set(heads)]
        if last_tokens is not None:
            kept = [_from(slab, self.tokens - last_tokens) for slab in kept]
        kept = [slab for slab in kept if slab.rows.numel()]
        if not kept:
            raise UsageError("this partial release holds no row; name a layer, head and part that the cache has")
        return CapturedCache(self.tokens, tuple(kept))

    def mapped(self, change: Callable[[CapturedSlab], torch.Tensor]) -> CapturedCache:
        """Return a capture whose every slab has the rows that `change` makes of it."""
        return CapturedCache(self.tokens, tuple(replace(slab, rows=change(slab)) for slab in self.slabs))

    def find(self, layer: int, part: Part) -> CapturedSlab | None:
        """Return a slab, or None where it is not held."""
        return next((slab for slab in self.slabs if slab.layer == layer and slab.part == part), None)


def _slab(layer: int, part: Part, tensor: torch.Tensor, tokens: int) -> CapturedSlab:
    rows = tensor[0].float()
    return CapturedSlab(layer, part, tuple(range(rows.shape[0])), tokens - rows.shape[1], rows)


def _with_heads(slab: CapturedSlab, heads: Collection[int]) -> CapturedSlab:
    kept = [place for place, head in enumerate(slab.heads) if head in heads]
    return replace(slab, heads=tuple(slab.heads[place] for place in kept), rows=slab.rows[kept])


def _from(slab: CapturedSlab, first: int) -> CapturedSlab:
    skipped = max(0, first - slab.first)
    return replace(slab, first=slab.first + skipped, rows=slab.rows[:, skipped:])
