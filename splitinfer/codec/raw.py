"""The `raw` codec, bit-exact: rows as they are, little-endian, C order [before, rows, after], zero rows as padding.

CacheSnapshot -> slabs (sender), slabs -> CacheSnapshot (recipient); order and lengths are `schedule.slabs`.
Memory: either side holds the cache and one slab. A slab of a token range is not contiguous in its tensor, so it is
received in one staging buffer and moved to its place when the next is asked for, while later bytes are still on the
way; final tensors are made when their first slab arrives.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch

from splitinfer import schedule
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.cache.snapshot import wipe as wipe_snapshot
from splitinfer.errors import CodecError, LayoutMismatchError, TruncatedError
from splitinfer.handoff import CacheLayout, TensorLayout, TensorName
from splitinfer.schedule import SlabSpec

__all__ = ["RawPacked", "RawSink", "pack", "sink"]


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
        self._scratch = torch.empty(max((spec.size_bytes for spec in self._specs), default=0), dtype=torch.uint8)

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
        tensor = _tensor_of(self._layout, spec)
        source = _rows_of(snapshot.layers[spec.layer][spec.part], tensor)[:, spec.start : spec.stop]
        slab = self._scratch[: spec.size_bytes]
        rows = _as_rows(slab, tensor, spec)
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
        self._staging = torch.empty(max((spec.size_bytes for spec in specs), default=0), dtype=torch.uint8)
        self._parts: dict[tuple[int, TensorName], torch.Tensor] = {}
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
            layers = tuple(
                {tensor.name: self._part(index, tensor) for tensor in layer.tensors}
                for index, layer in enumerate(self._layout.layers)
            )
            self._parts = {}
        finally:
            self.wipe()
        return CacheSnapshot(self._layout, self._true_tokens, layers)

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
        tensor = _tensor_of(self._layout, spec)
        received = _as_rows(self._staging[: spec.size_bytes], tensor, spec)
        target = _rows_of(self._part(spec.layer, tensor), tensor)[:, spec.start : spec.stop]
        target.copy_(received[:, : target.shape[1]])
        padding = received[:, target.shape[1] :].contiguous()
        # Compared as bits: a negative zero is not the zero that `pack` writes.
        if padding.numel() and bool(padding.view(torch.uint8).any()):
            self._padding_fault = spec.layer

    def _part(self, index: int, tensor: TensorLayout) -> torch.Tensor:
        """Return the final tensor, made when its first slab arrives; one without rows has no slab."""
        key = (index, tensor.name)
        if key not in self._parts:
            shape = shape_of(self._layout.layers[index], tensor, self._true_tokens)
            self._parts[key] = torch.empty(shape, dtype=DTYPES[tensor.dtype])
        return self._parts[key]

    def _require_open(self) -> None:
        if self._is_closed:
            raise CodecError("this sink was finished or wiped; make a new one")


def _require_counts(true_tokens: int, padded_tokens: int) -> None:
    if not 0 < true_tokens <= padded_tokens:
        raise LayoutMismatchError(f"{true_tokens} tokens cannot be padded to {padded_tokens}")
    if sys.byteorder != "little":
        raise CodecError("this machine is big-endian; the raw codec runs on little-endian machines only")


def _tensor_of(layout: CacheLayout, spec: SlabSpec) -> TensorLayout:
    return next(tensor for tensor in layout.layers[spec.layer].tensors if tensor.name == spec.part)


def _rows_of(tensor: torch.Tensor, layout: TensorLayout) -> torch.Tensor:
    """Return a tensor as [before, rows, after], a view where it is contiguous; a fixed state is one row."""
    rows = 1 if layout.rows == "fixed" else tensor.shape[1 + len(layout.before)]
    return tensor.reshape(math.prod(layout.before), rows, math.prod(layout.after))


def _as_rows(memory: torch.Tensor, layout: TensorLayout, spec: SlabSpec) -> torch.Tensor:
    """View a slab's bytes as [before, rows, after]."""
    shape = (math.prod(layout.before), spec.stop - spec.start, math.prod(layout.after))
    return memory.view(DTYPES[layout.dtype]).view(shape)


def _memory(slab: torch.Tensor) -> memoryview:
    return slab.numpy().data
