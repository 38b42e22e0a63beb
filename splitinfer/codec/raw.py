"""The `raw` codec, bit-exact: rows as they are, little-endian, C order [heads, rows, dim], zero rows as padding.

CacheSnapshot -> slabs (sender), slabs -> CacheSnapshot (recipient); order and lengths are `schedule.slabs`.
Memory: either side holds the cache and one slab. A slab of a token range is not contiguous in [heads, tokens, dim], so
it is received in one staging buffer and moved to its place when the next is asked for, while later bytes are still on
the way; final tensors are made when their first slab arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Literal

import torch

from splitinfer import schedule
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, LayerTensors, held_rows
from splitinfer.cache.snapshot import wipe as wipe_snapshot
from splitinfer.errors import CodecError, LayoutMismatchError, TruncatedError
from splitinfer.handoff import CacheLayout, LayerLayout
from splitinfer.schedule import SlabSpec

__all__ = ["RawPacked", "RawSink", "pack", "sink"]

Part = Literal["keys", "values"]


def pack(snapshot: CacheSnapshot, *, padded_tokens: int) -> RawPacked:
    """Pack a snapshot, padded to `padded_tokens` rows; raises LayoutMismatchError where that is below its tokens."""
    return RawPacked(snapshot, padded_tokens=padded_tokens)


def sink(layout: CacheLayout, *, true_tokens: int, padded_tokens: int) -> RawSink:
    """Make the memory for a cache of this layout; raises LayoutMismatchError for impossible token counts."""
    return RawSink(layout, true_tokens=true_tokens, padded_tokens=padded_tokens)


class RawPacked:
    """A snapshot as slabs, made one at a time in one scratch buffer; implements `handoff.PackedCache`."""

    def __init__(self, snapshot: CacheSnapshot, *, padded_tokens: int) -> None:
        _require_counts(snapshot.true_tokens, padded_tokens)
        self._snapshot: CacheSnapshot | None = snapshot
        self._layout = snapshot.layout
        self._true_tokens = snapshot.true_tokens
        self._specs = tuple(schedule.slabs(snapshot.layout, padded_tokens))
        self._scratch = torch.empty(max(spec.size_bytes for spec in self._specs), dtype=torch.uint8)

    @property
    def layout(self) -> CacheLayout:
        """Return the layout that was packed."""
        return self._layout

    @property
    def true_tokens(self) -> int:
        """Return how many rows are tokens; later rows are zero padding."""
        return self._true_tokens

    def slabs(self) -> Iterator[memoryview]:
        """Yield every slab, in order, read-only; a slab is valid until the next one is asked for.

        Can be called again, for a resend. Raises CodecError after `wipe`.
        """
        for spec in self._specs:
            if self._snapshot is None:
                raise CodecError("this packed cache was wiped; pack the cache again")
            yield self._write(spec, self._snapshot)

    def wipe(self) -> None:
        """Zero the scratch buffer and the snapshot that is held, and refuse further use."""
        self._scratch.zero_()
        if self._snapshot is not None:
            wipe_snapshot(self._snapshot)
        self._snapshot = None

    def _write(self, spec: SlabSpec, snapshot: CacheSnapshot) -> memoryview:
        tensors = snapshot.layers[spec.layer]
        source = (tensors.keys if spec.part == "keys" else tensors.values)[0, :, spec.start : spec.stop]
        slab = self._scratch[: spec.size_bytes]
        rows = _as_rows(slab, self._layout.layers[spec.layer], spec)
        with torch.inference_mode():
            rows[:, : source.shape[1]] = source
            rows[:, source.shape[1] :] = 0
        return _memory(slab).toreadonly()


class RawSink:
    """One staging slab in front of the cache's final tensors, in schedule order; implements `handoff.Sink`."""

    def __init__(self, layout: CacheLayout, *, true_tokens: int, padded_tokens: int) -> None:
        _require_counts(true_tokens, padded_tokens)
        self._layout = layout
        self._true_tokens = true_tokens
        specs = tuple(schedule.slabs(layout, padded_tokens))
        self._pending = iter(specs)
        self._filling: SlabSpec | None = None
        self._staging = torch.empty(max(spec.size_bytes for spec in specs), dtype=torch.uint8)
        self._parts: dict[tuple[int, Part], torch.Tensor] = {}
        self._padding_fault: int | None = None
        self._is_closed = False

    def slab(self) -> memoryview:
        """Return the writable memory of the next slab; it is valid until the next one is asked for.

        What was written to the slab before it is moved to its place by this call. Raises LayoutMismatchError when
        all were given out.
        """
        self._require_open()
        self._place()
        self._filling = next(self._pending, None)
        if self._filling is None:
            raise LayoutMismatchError("there are more slabs than the cache layout has")
        return _memory(self._staging[: self._filling.size_bytes])

    def finish(self) -> CacheSnapshot:
        """Drop the padding and return the snapshot.

        Raises TruncatedError where slabs are missing and LayoutMismatchError where a padding row is not zero; what
        was received is then wiped.
        """
        self._require_open()
        try:
            self._place()
            if next(self._pending, None) is not None:
                raise TruncatedError("the cache ended before its last slab")
            if self._padding_fault is not None:
                raise LayoutMismatchError(f"a padding row of layer {self._padding_fault} is not zero")
            parts, self._parts = self._parts, {}
        finally:
            self.wipe()
        layers = (LayerTensors(parts[i, "keys"], parts[i, "values"]) for i in range(len(self._layout.layers)))
        return CacheSnapshot(self._layout, self._true_tokens, tuple(layers))

    def wipe(self) -> None:
        """Zero and drop everything that was received and not handed over by `finish`; idempotent."""
        for tensor in (self._staging, *self._parts.values()):
            tensor.zero_()
        self._parts.clear()
        self._filling = None
        self._is_closed = True

    def _place(self) -> None:
        spec, self._filling = self._filling, None
        if spec is None:
            return
        layer = self._layout.layers[spec.layer]
        received = _as_rows(self._staging[: spec.size_bytes], layer, spec)
        target = self._part(spec)[0, :, spec.start : spec.stop]
        target.copy_(received[:, : target.shape[1]])
        padding = received[:, target.shape[1] :].contiguous()
        # Compared as bits: a negative zero is not the zero that `pack` writes.
        if padding.numel() and bool(padding.view(torch.uint8).any()):
            self._padding_fault = spec.layer

    def _part(self, spec: SlabSpec) -> torch.Tensor:
        """Return the final tensor [1, heads, true rows, dim] of a slab's part, made when its first slab arrives."""
        key = (spec.layer, spec.part)
        if key not in self._parts:
            layer = self._layout.layers[spec.layer]
            heads, dim = _heads_and_dim(layer, spec.part)
            shape = (1, heads, held_rows(layer, self._true_tokens), dim)
            self._parts[key] = torch.empty(shape, dtype=DTYPES[layer.dtype])
        return self._parts[key]

    def _require_open(self) -> None:
        if self._is_closed:
            raise CodecError("this sink was finished or wiped; make a new one")


def _require_counts(true_tokens: int, padded_tokens: int) -> None:
    if not 0 < true_tokens <= padded_tokens:
        raise LayoutMismatchError(f"{true_tokens} tokens cannot be padded to {padded_tokens}")
    if sys.byteorder != "little":
        raise CodecError("this machine is big-endian; the raw codec runs on little-endian machines only")


def _heads_and_dim(layer: LayerLayout, part: Part) -> tuple[int, int]:
    return (layer.key_heads, layer.key_dim) if part == "keys" else (layer.value_heads, layer.value_dim)


def _as_rows(memory: torch.Tensor, layer: LayerLayout, spec: SlabSpec) -> torch.Tensor:
    """View a slab's bytes as [heads, rows, dim]."""
    heads, dim = _heads_and_dim(layer, spec.part)
    return memory.view(DTYPES[layer.dtype]).view(heads, spec.stop - spec.start, dim)


def _memory(slab: torch.Tensor) -> memoryview:
    return slab.numpy().data
