"""Which coder writes which part of a layer, and where its rows lie: SlabSpec -> coder, shape, rows; both sides.

`Slabs` is what a packed cache or a sink asks of a codec; `TensorSlabs` writes one tensor's rows a slab, as codecs do
whose slabs are those of `schedule.slabs`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from splitinfer import schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cache.snapshot import wipe as wipe_snapshot
from splitinfer.codec.coder import SlabCoder, SlabShape
from splitinfer.codec.raw import RawCoder
from splitinfer.errors import CodecError, LayoutMismatchError
from splitinfer.handoff import CacheLayout, TensorLayout
from splitinfer.schedule import SlabSpec

__all__ = [
    "CacheSource",
    "Coders",
    "MakeCoder",
    "RowsOf",
    "Slabs",
    "SnapshotSource",
    "TensorSlabs",
    "as_rows",
    "require_counts",
    "rows_of",
    "shape_of",
    "tensor_of",
]

MakeCoder = Callable[[], SlabCoder]
RowsOf = Callable[[SlabSpec], torch.Tensor]
"""Where a sink wants the true rows [heads, rows, dim] of a part of a layer."""


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


class Slabs(Protocol):
    """One packed cache's or one sink's slabs in one codec. A spec is what `specs` yields; it has `start` and `stop`."""

    @property
    def is_variable(self) -> bool:
        """Tell whether the lengths depend on the contents."""

    def specs(self, padded_tokens: int, base_tokens: int = 0) -> Iterator[Any]:
        """Yield the slabs in order."""

    def size_bytes(self, spec: Any) -> int:
        """Return the length of a slab, or the most that it can have where it is variable."""

    def name(self, spec: Any) -> str:
        """Name a slab in an error."""

    def encode(self, source: CacheSource, spec: Any, slab: torch.Tensor) -> int:
        """Write a slab and return its length; waits for its rows where the source still grows.

        Raises CodecError for rows that this codec cannot carry.
        """

    def decode(self, spec: Any, slab: torch.Tensor, *, rows_of: RowsOf, true_tokens: int) -> None:
        """Write a slab's true rows to where they lie; raises LayoutMismatchError for bytes that no sender writes."""

    def wipe(self) -> None:
        """Zero the scratch memory."""


@dataclass(frozen=True, slots=True)
class TensorSlabs:
    """Slabs of one tensor's rows each; implements `Slabs`."""

    layout: CacheLayout
    coders: Coders

    @property
    def is_variable(self) -> bool:
        """Tell whether the lengths depend on the contents."""
        return self.coders.keys.is_variable

    def specs(self, padded_tokens: int, base_tokens: int = 0) -> Iterator[SlabSpec]:
        """Yield the slabs of `schedule.slabs`."""
        return schedule.slabs(self.layout, padded_tokens, base_tokens)

    def size_bytes(self, spec: SlabSpec) -> int:
        """Return the length of a slab, or the most that it can have where it is variable."""
        return self.coders.size_bytes(self.layout, spec)

    def name(self, spec: SlabSpec) -> str:
        """Name a slab in an error."""
        return f"layer {spec.layer}, {spec.part}"

    def encode(self, source: CacheSource, spec: SlabSpec, slab: torch.Tensor) -> int:
        """Write a slab and return its length."""
        return self.coders.of(spec.part).encode(rows_of(source, spec), slab, shape_of(self.layout, spec))

    def decode(self, spec: SlabSpec, slab: torch.Tensor, *, rows_of: RowsOf, true_tokens: int) -> None:  # noqa: ARG002
        """Write a slab's true rows to where they lie."""
        self.coders.of(spec.part).decode(slab, rows_of(spec), shape_of(self.layout, spec))

    def wipe(self) -> None:
        """Zero the scratch memory."""
        self.coders.wipe()


class CacheSource(Protocol):
    """Where a packed cache takes its rows from: a finished snapshot, or a cache that still grows."""

    @property
    def layout(self) -> CacheLayout:
        """Return the cache's layout."""

    @property
    def true_tokens(self) -> int:
        """Return how many tokens the cache holds, or will hold."""

    def tensor(self, spec: SlabSpec) -> torch.Tensor:
        """Return the tensor in which a slab's true rows stand, once they do and may leave."""

    def wipe(self) -> None:
        """Zero the cache; idempotent."""


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """A finished cache as a `CacheSource`."""

    snapshot: CacheSnapshot

    @property
    def layout(self) -> CacheLayout:
        """Return the snapshot's layout."""
        return self.snapshot.layout

    @property
    def true_tokens(self) -> int:
        """Return the snapshot's tokens."""
        return self.snapshot.true_tokens

    def tensor(self, spec: SlabSpec) -> torch.Tensor:
        """Return a tensor of the snapshot."""
        return self.snapshot.layers[spec.layer][spec.part]

    def wipe(self) -> None:
        """Zero the snapshot."""
        wipe_snapshot(self.snapshot)


def tensor_of(layout: CacheLayout, spec: SlabSpec) -> TensorLayout:
    """Return the layout of the tensor that a slab belongs to."""
    return next(tensor for tensor in layout.layers[spec.layer].tensors if tensor.name == spec.part)


def shape_of(layout: CacheLayout, spec: SlabSpec) -> SlabShape:
    """Return the shape of a slab's rows, padding included."""
    tensor = tensor_of(layout, spec)
    return SlabShape(math.prod(tensor.before), spec.stop - spec.start, math.prod(tensor.after), tensor.dtype)


def as_rows(tensor: torch.Tensor, layout: TensorLayout) -> torch.Tensor:
    """Return a tensor as [heads, rows, dim], a view where it is contiguous; a fixed state is one row."""
    rows = 1 if layout.rows == "fixed" else tensor.shape[1 + len(layout.before)]
    return tensor.reshape(math.prod(layout.before), rows, math.prod(layout.after))


def rows_of(source: CacheSource, spec: SlabSpec) -> torch.Tensor:
    """Return the true rows [heads, rows, dim] of a slab, once the source has them."""
    return as_rows(source.tensor(spec), tensor_of(source.layout, spec))[:, spec.start : spec.stop]


def require_counts(true_tokens: int, padded_tokens: int, base_tokens: int = 0) -> None:
    """Refuse impossible token counts, and machines whose bytes are in another order than the wire's."""
    if not 0 <= base_tokens < true_tokens <= padded_tokens:
        onto = f" on a base of {base_tokens}" if base_tokens else ""
        raise LayoutMismatchError(f"{true_tokens} tokens{onto} cannot be padded to {padded_tokens}")
    if sys.byteorder != "little":
        raise CodecError("this machine is big-endian; caches are packed on little-endian machines only")
