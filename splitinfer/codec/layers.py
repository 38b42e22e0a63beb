"""Which coder writes which part of a layer, and where its rows lie: SlabSpec -> coder, shape, rows; both sides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec.coder import SlabCoder, SlabShape
from splitinfer.codec.raw import RawCoder
from splitinfer.errors import CodecError, LayoutMismatchError
from splitinfer.handoff import CacheLayout, LayerLayout
from splitinfer.schedule import SlabSpec

__all__ = ["Coders", "MakeCoder", "heads_and_dim", "require_counts", "rows_of", "shape_of"]

MakeCoder = Callable[[], SlabCoder]


@dataclass(frozen=True, slots=True)
class Coders:
    """One packed cache's or one sink's own coders, with their scratch memory."""

    keys: SlabCoder
    values: SlabCoder
    other: SlabCoder

    @classmethod
    def make(cls, keys: MakeCoder, values: MakeCoder) -> Coders:
        """Make a codec's coders. What is neither keys nor values is never rounded: a state is fed to itself."""
        is_variable = keys().is_variable
        return cls(keys(), values(), keys() if is_variable else RawCoder())

    def of(self, part: str) -> SlabCoder:
        """Return the coder of a part of a layer."""
        return {"keys": self.keys, "values": self.values}.get(part, self.other)

    def size_bytes(self, layout: CacheLayout, spec: SlabSpec) -> int:
        """Return the length of a slab, or the most that it can have where it is variable."""
        return self.of(spec.part).size_bytes(shape_of(layout, spec))

    def wipe(self) -> None:
        """Zero the scratch memory."""
        for coder in (self.keys, self.values, self.other):
            coder.wipe()


def shape_of(layout: CacheLayout, spec: SlabSpec) -> SlabShape:
    """Return the shape of a slab's rows, padding included."""
    layer = layout.layers[spec.layer]
    heads, dim = heads_and_dim(layer, spec.part)
    return SlabShape(heads, spec.stop - spec.start, dim, layer.dtype)


def heads_and_dim(layer: LayerLayout, part: str) -> tuple[int, int]:
    """Return heads and dim of a layer's keys or values."""
    return (layer.key_heads, layer.key_dim) if part == "keys" else (layer.value_heads, layer.value_dim)


def rows_of(snapshot: CacheSnapshot, spec: SlabSpec) -> torch.Tensor:
    """Return the true rows [heads, rows, dim] of a slab, as a view."""
    tensors = snapshot.layers[spec.layer]
    return (tensors.keys if spec.part == "keys" else tensors.values)[0, :, spec.start : spec.stop]


def require_counts(true_tokens: int, padded_tokens: int) -> None:
    """Refuse impossible token counts, and machines whose bytes are in another order than the wire's."""
    if not 0 < true_tokens <= padded_tokens:
        raise LayoutMismatchError(f"{true_tokens} tokens cannot be padded to {padded_tokens}")
    if sys.byteorder != "little":
        raise CodecError("this machine is big-endian; caches are packed on little-endian machines only")
