"""Slabs of bytes -> CacheSnapshot, on the receiving side; implements `handoff.CacheSink`.

A slab of a token range is not contiguous in [heads, tokens, dim], so it is received in one staging buffer and decoded
to its place when the next is asked for, while later bytes are still on the way; final tensors are made when their first
slab arrives. Memory: the cache and one slab. Faults in slabs are told by `finish`, after the stream's own checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from splitinfer import schedule
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, cut
from splitinfer.cache.snapshot import shape_of as tensor_shape_of
from splitinfer.codec.layers import Slabs, as_rows, require_counts, tensor_of
from splitinfer.errors import CodecError, LayoutMismatchError, TruncatedError
from splitinfer.handoff import CacheLayout, TensorLayout, TensorName
from splitinfer.schedule import LENGTH_BYTES, SlabSpec

__all__ = ["CacheSink"]

_STAGING_BYTES = 4096


class _Assembly:
    """The final tensors as they fill, and the first fault that was met."""

    def __init__(
        self, layout: CacheLayout, slabs: Slabs, *, true_tokens: int, base: CacheSnapshot | None = None
    ) -> None:
        self._layout, self._slabs, self._true_tokens, self._base = layout, slabs, true_tokens, base
        self._parts: dict[tuple[int, TensorName], torch.Tensor] = {}
        self.fault: LayoutMismatchError | None = None
        self.placed = 0

    def place(self, spec: Any, slab: torch.Tensor) -> None:
        """Decode a slab to its place; after a fault nothing more is decoded."""
        self.placed += 1
        if self.fault is not None:
            return
        try:
            with torch.no_grad():
                self._slabs.decode(spec, slab, rows_of=self._rows, true_tokens=self._true_tokens)
        except LayoutMismatchError as error:
            self.fault = LayoutMismatchError(f"{self._slabs.name(spec)}: {error}")

    def _rows(self, spec: SlabSpec) -> torch.Tensor:
        """Return where the true rows of a part of a layer lie."""
        tensor = tensor_of(self._layout, spec)
        return as_rows(self._part(spec.layer, tensor), tensor)[:, spec.start : spec.stop]

    def require_zeros(self, padding: memoryview) -> None:
        """Note a fault where the bytes after the last slab are not zero."""
        if any(padding):
            self.fault = self.fault or LayoutMismatchError("the cache is not padded with zeros")

    def part(self, tokens: int) -> CacheSnapshot:
        """Hand over the first tokens; raises the first fault."""
        return cut(self.finish(), tokens)

    def finish(self) -> CacheSnapshot:
        """Hand the tensors over; raises the first fault."""
        if self.fault is not None:
            raise self.fault
        layers = tuple(
            {tensor.name: self._part(index, tensor) for tensor in layer.tensors}
            for index, layer in enumerate(self._layout.layers)
        )
        self._parts = {}
        return CacheSnapshot(self._layout, self._true_tokens, layers)

    def wipe(self) -> None:
        """Zero and drop what was not handed over."""
        for tensor in self._parts.values():
            tensor.zero_()
        self._parts.clear()
        self._slabs.wipe()

    def _part(self, index: int, tensor: TensorLayout) -> torch.Tensor:
        """Return the final tensor, made when its first slab arrives; one without rows has no slab."""
        key = (index, tensor.name)
        if key not in self._parts:
            shape = tensor_shape_of(self._layout.layers[index], tensor, self._true_tokens)
            self._parts[key] = part = torch.empty(shape, dtype=DTYPES[tensor.dtype])
            if self._base is not None and tensor.rows in ("tokens", "entries"):
                held = as_rows(self._base.layers[index][tensor.name], tensor)
                as_rows(part, tensor)[:, : held.shape[1]].copy_(held)
        return self._parts[key]


class CacheSink:
    """Memory that is offered piece by piece, settled when the next piece is asked for.

    A piece is a slab; where lengths vary, a slab's 4-byte length, then its bytes, and after the last one zeros.
    """

    def __init__(
        self,
        layout: CacheLayout,
        slabs: Slabs,
        *,
        true_tokens: int,
        padded_tokens: int,
        coded_bytes: int | None,
        base: CacheSnapshot | None = None,
    ) -> None:
        base_tokens = base.true_tokens if base else 0
        require_counts(true_tokens, padded_tokens, base_tokens)
        if base is not None and base.layout != layout:
            raise LayoutMismatchError("the base is the cache of another layout than the rest")
        self._layout, self._slabs = layout, slabs
        self._true_tokens = true_tokens
        self._specs = tuple(slabs.specs(padded_tokens, base_tokens))
        sizes = [slabs.size_bytes(spec) for spec in self._specs]
        self._size_bytes = sum(sizes) if coded_bytes is None else coded_bytes
        self._staging = torch.empty(max([*sizes, _STAGING_BYTES]), dtype=torch.uint8)
        self._assembly = _Assembly(layout, slabs, true_tokens=true_tokens, base=base)
        self._pieces = self._fixed() if coded_bytes is None else self._variable()
        self._offered: memoryview | None = None
        self._is_closed = False

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all pieces."""
        return self._size_bytes

    def sizes(self) -> Iterator[int]:
        """Yield the length of each piece just before `slab` gives its memory out.

        Raises LayoutMismatchError for a length that no slab can have here.
        """
        while (memory := self._next()) is not None:
            self._offered = memory
            yield len(memory)

    def slab(self) -> memoryview:
        """Return the writable memory of the next piece; it is valid until the next one is asked for.

        What was written before is moved to its place. Raises LayoutMismatchError when all were given out, and for a
        length that no slab can have here.
        """
        memory, self._offered = self._offered if self._offered is not None else self._next(), None
        if memory is None:
            raise LayoutMismatchError("there are more slabs than the cache layout has")
        return memory

    def salvage(self, ends: Sequence[int]) -> CacheSnapshot | None:
        """Return the first tokens, up to the last of `ends`, whose slabs have all come; the rest is dropped.

        For a cache whose transfer broke off. None where no end was reached, and for a layout with anything but rows of
        tokens: a window or a state is that of the last token. Raises LayoutMismatchError for what `finish` refuses in
        the slabs that came. The sink is closed afterwards.
        """
        try:
            whole = self._whole_tokens()
            end = max((end for end in ends if end <= whole), default=0)
            return self._assembly.part(end) if end else None
        finally:
            self.wipe()

    def _whole_tokens(self) -> int:
        """Return how many tokens have all their rows, in all layers; 0 where tokens do not have rows of their own."""
        tensors = [tensor for layer in self._layout.layers for tensor in layer.tensors]
        if any(tensor.rows != "tokens" for tensor in tensors):
            return 0
        missing = self._specs[self._assembly.placed :]
        return missing[0].start if missing else self._true_tokens

    def finish(self) -> CacheSnapshot:
        """Drop the padding and return the snapshot.

        Raises TruncatedError where slabs are missing and LayoutMismatchError where a slab holds what no sender
        writes (a padding row that is not zero, a scale that is not finite); what was received is then wiped.
        """
        try:
            if self._next() is not None:
                raise TruncatedError("the cache ended before its last slab")
            return self._assembly.finish()
        finally:
            self.wipe()

    def wipe(self) -> None:
        """Zero and drop everything that was received and not handed over by `finish`; idempotent."""
        self._staging.zero_()
        self._assembly.wipe()
        self._is_closed = True

    def _next(self) -> memoryview | None:
        if self._is_closed:
            raise CodecError("this sink was finished or wiped; make a new one")
        try:
            return next(self._pieces, None)
        except LayoutMismatchError:
            # Nothing that is in place by now may be finished as if it were all.
            self.wipe()
            raise

    def _fixed(self) -> Iterator[memoryview]:
        for spec in self._specs:
            size = self._slabs.size_bytes(spec)
            yield self._memory(size)
            self._assembly.place(spec, self._staging[:size])

    def _variable(self) -> Iterator[memoryview]:
        left = self._size_bytes
        for spec in self._specs:
            yield self._memory(LENGTH_BYTES)
            size = int.from_bytes(self._memory(LENGTH_BYTES), "little")
            left -= LENGTH_BYTES + size
            # The bound of one slab, and of what was announced for all: nothing is allocated by a declared length.
            if size > self._slabs.size_bytes(spec) or left < 0:
                raise LayoutMismatchError(f"{self._slabs.name(spec)}: a slab is longer than it can be")
            yield self._memory(size)
            self._assembly.place(spec, self._staging[:size])
        if schedule.padme(self._size_bytes - left) != self._size_bytes:
            raise LayoutMismatchError("the cache's coded bytes are not the size class of its slabs")
        while left:
            zeros = self._memory(min(left, _STAGING_BYTES))
            yield zeros
            self._assembly.require_zeros(zeros)
            left -= len(zeros)

    def _memory(self, size_bytes: int) -> memoryview:
        return self._staging[:size_bytes].numpy().data
