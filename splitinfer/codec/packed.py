"""A cache as slabs of bytes, in the order of `schedule.slabs`: CacheSource -> PackedCache, on the sending side.

`FixedPacked` makes a slab when it is asked for, and waits for its rows where the cache still grows; `VariablePacked`
makes all of them at once, because a stream's length is sealed in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from splitinfer import schedule
from splitinfer.codec.layers import CacheSource, Slabs, require_counts
from splitinfer.errors import CodecError
from splitinfer.handoff import CacheLayout
from splitinfer.schedule import LENGTH_BYTES

__all__ = ["FixedPacked", "VariablePacked"]

_ZEROS = bytes(64 * 1024)


class _Packed:
    """What both kinds have: the source and how it is written, the slabs that there are, and whose the source is."""

    def __init__(
        self, source: CacheSource, slabs: Slabs, *, padded_tokens: int, base_tokens: int, is_shared: bool
    ) -> None:
        require_counts(source.true_tokens, padded_tokens, base_tokens)
        self._source: CacheSource | None = source
        self._layout, self._true_tokens, self._slabs = source.layout, source.true_tokens, slabs
        self._is_shared = is_shared
        self._specs = tuple(slabs.specs(padded_tokens, base_tokens))

    @property
    def layout(self) -> CacheLayout:
        """Return the layout that was packed."""
        return self._layout

    @property
    def true_tokens(self) -> int:
        """Return how many rows are tokens; later rows are padding, and zero."""
        return self._true_tokens

    def _let_go(self) -> None:
        """Drop the source, zeroed unless it is shared."""
        if self._source is not None and not self._is_shared:
            self._source.wipe()
        self._source = None


class FixedPacked(_Packed):
    """Slabs whose lengths follow from the layout, made one at a time; implements `handoff.PackedCache`.

    Memory: the source's cache and one slab.
    """

    is_variable = False

    def __init__(
        self,
        source: CacheSource,
        slabs: Slabs,
        *,
        padded_tokens: int,
        base_tokens: int = 0,
        is_shared: bool = False,
    ) -> None:
        super().__init__(source, slabs, padded_tokens=padded_tokens, base_tokens=base_tokens, is_shared=is_shared)
        self._sizes = [slabs.size_bytes(spec) for spec in self._specs]
        self._scratch = torch.empty(max(self._sizes, default=0), dtype=torch.uint8)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all slabs."""
        return sum(self._sizes)

    def slabs(self) -> Iterator[memoryview]:
        """Yield every slab, in order, read-only; a slab is valid until the next one is asked for.

        Can be called again, for a resend. Raises CodecError after `wipe`, and for rows that the codec cannot carry;
        what a source that grows raises passes through.
        """
        for spec, size in zip(self._specs, self._sizes, strict=True):
            if self._source is None:
                raise CodecError("this packed cache was wiped; pack the cache again")
            slab = self._scratch[:size]
            _encode(self._source, self._slabs, spec, slab)
            yield slab.numpy().data.toreadonly()

    def wipe(self) -> None:
        """Zero the scratch memory and the source, unless that is shared, and refuse further use."""
        self._let_go()
        self._scratch.zero_()
        self._slabs.wipe()


class VariablePacked(_Packed):
    """Slabs whose lengths depend on their contents, made at once; implements `handoff.PackedCache`.

    A slab is its 4-byte little-endian length and so many bytes; after the last, zeros fill the size class of them all.
    Memory: the source's cache and its coded bytes, until `wipe`.
    """

    is_variable = True

    def __init__(
        self,
        source: CacheSource,
        slabs: Slabs,
        *,
        padded_tokens: int,
        base_tokens: int = 0,
        is_shared: bool = False,
    ) -> None:
        super().__init__(source, slabs, padded_tokens=padded_tokens, base_tokens=base_tokens, is_shared=is_shared)
        self._coded: list[bytearray] | None = []
        scratch = torch.empty(max(map(slabs.size_bytes, self._specs), default=0), dtype=torch.uint8)
        try:
            for spec in self._specs:
                size = _encode(source, slabs, spec, scratch[: slabs.size_bytes(spec)])
                slab = bytearray(size.to_bytes(LENGTH_BYTES, "little"))
                slab += scratch[:size].numpy().data
                self._coded.append(slab)
        finally:
            scratch.zero_()
            slabs.wipe()
        self._used_bytes = sum(map(len, self._coded))

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all slabs, rounded up to their size class."""
        return schedule.padme(self._used_bytes)

    def slabs(self) -> Iterator[memoryview]:
        """Yield every slab, in order, read-only, then zeros. Can be called again. Raises CodecError after `wipe`."""
        for index in range(len(self._held())):
            yield memoryview(self._held()[index]).toreadonly()
        left = self.size_bytes - self._used_bytes
        while left:
            zeros = memoryview(_ZEROS)[:left]
            yield zeros
            left -= len(zeros)

    def _held(self) -> list[bytearray]:
        if self._coded is None:
            raise CodecError("this packed cache was wiped; pack the cache again")
        return self._coded

    def wipe(self) -> None:
        """Zero the coded bytes and the source, unless that is shared, and refuse further use."""
        for slab in self._coded or []:
            slab[:] = bytes(len(slab))
        self._let_go()
        self._coded = None


def _encode(source: CacheSource, slabs: Slabs, spec: Any, slab: torch.Tensor) -> int:
    with torch.no_grad():
        return slabs.encode(source, spec, slab)
