"""The slabs of a cache in `ftc1`: which there are, their lengths, and what stands in them; both sides.

A slab holds the rows of one token range in all layers of one group, so that a range's first layers come first:

    first rows, as bfloat16 [S, p]         in the first slab of every group of a transfer only
    blocks                                 of 64 rows each (`planes`); codes of those first rows and of padding are zero

What no group holds (states, indexer keys, latents) has slabs of its own, as in `raw`. The length of every slab follows
from layout, artefact, level and padded token count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from splitinfer import schedule
from splitinfer.codec.layers import CacheSource, RowsOf, rows_of, shape_of, tensor_of
from splitinfer.codec.raw import RawCoder
from splitinfer.codec.transform.artefact import Artefact
from splitinfer.codec.transform.planes import BLOCK_ROWS, PLANE_BYTES, pack, plane_count, unpack
from splitinfer.errors import CodecError, LayoutMismatchError
from splitinfer.handoff import CacheLayout
from splitinfer.schedule import SlabSpec

__all__ = ["GroupSpec", "TransformSlabs"]

_FIRST_BYTES = 2
Packed = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Rows `start:stop` of all layers of a group; `parts` are the layers' own slabs of them, keys before values.

    The first `first_rows` of them stand as they are.
    """

    group: int
    start: int
    stop: int
    parts: tuple[SlabSpec, ...]
    first_rows: int

    @property
    def rows(self) -> int:
        """Return how many rows there are, padding included."""
        return self.stop - self.start

    @property
    def blocks(self) -> int:
        """Return how many blocks hold them."""
        return -(-self.rows // BLOCK_ROWS)


class TransformSlabs:
    """One packed cache's or one sink's own slabs; `layout` and level are those of both sides."""

    is_variable = False

    def __init__(self, artefact: Artefact, codec: str, layout: CacheLayout) -> None:
        artefact.require_layout(layout)
        self._artefact, self._layout = artefact, layout
        self._at = [artefact.group(index, codec) for index in range(len(artefact.groups))]
        self._group_of = {layer: index for index, group in enumerate(artefact.groups) for layer in group.layers}
        self._raw = RawCoder()

    def specs(self, padded_tokens: int, base_tokens: int = 0) -> Iterator[SlabSpec | GroupSpec]:
        """Yield the slabs in order: that of `schedule.slabs`, a group's slabs joined where its last one stands."""
        open_parts: dict[int, list[SlabSpec]] = {}
        begun: set[int] = set()
        for spec in schedule.slabs(self._layout, padded_tokens, base_tokens):
            group = self._group_of.get(spec.layer) if spec.part in ("keys", "values") else None
            if group is None:
                yield spec
                continue
            parts = open_parts.setdefault(group, [])
            parts.append(spec)
            if len(parts) == 2 * len(self._artefact.groups[group].layers):
                first = 0 if group in begun else min(self._first_tokens(spec), spec.stop - spec.start)
                begun.add(group)
                yield GroupSpec(group, spec.start, spec.stop, tuple(open_parts.pop(group)), first)

    def _first_tokens(self, spec: SlabSpec) -> int:
        # A window's oldest row is no first token once the window has moved on, and rows must not tell that.
        return self._artefact.facts.first_tokens if tensor_of(self._layout, spec).rows == "tokens" else 0

    def size_bytes(self, spec: SlabSpec | GroupSpec) -> int:
        """Return the length of a slab."""
        if isinstance(spec, SlabSpec):
            return self._raw.size_bytes(shape_of(self._layout, spec))
        group = self._at[spec.group]
        coded = spec.blocks * PLANE_BYTES * plane_count(group.widths)
        return spec.first_rows * len(group.mean) * _FIRST_BYTES + coded

    def name(self, spec: SlabSpec | GroupSpec) -> str:
        """Name a slab in an error."""
        if isinstance(spec, SlabSpec):
            return f"layer {spec.layer}, {spec.part}"
        return f"layers {spec.parts[0].layer} to {spec.parts[-1].layer}"

    def encode(self, source: CacheSource, spec: SlabSpec | GroupSpec, slab: torch.Tensor) -> int:
        """Write a slab; waits for its rows where the source still grows. Raises CodecError for NaN and infinity."""
        if isinstance(spec, SlabSpec):
            return self._raw.encode(rows_of(source, spec), slab, shape_of(self._layout, spec))
        rows = self._gathered(source, spec)
        if not bool(rows.isfinite().all()):
            raise CodecError(
                'the cache holds NaN or infinity, which a lossy codec cannot carry; write codec = "raw" or "lossless"'
            )
        first, packed = self._parts(spec, slab)
        first.zero_()
        first[: len(rows)] = rows[: spec.first_rows].to(torch.bfloat16)
        group = self._at[spec.group]
        codes = torch.zeros((group.components, spec.blocks * BLOCK_ROWS), dtype=torch.uint8)
        if len(rows) > spec.first_rows:
            coded = group.codes(group.values(rows[spec.first_rows :]))
            codes[:, spec.first_rows : len(rows)] = coded
        pack(codes.numpy(), group.widths, packed)
        return len(slab)

    def decode(self, spec: SlabSpec | GroupSpec, slab: torch.Tensor, *, rows_of: RowsOf, true_tokens: int) -> None:
        """Write a slab's rows to where `rows_of` says that each part's lie.

        Raises LayoutMismatchError for bytes that no sender writes: non-zero padding, first rows that are not finite.
        """
        if isinstance(spec, SlabSpec):
            self._raw.decode(slab, rows_of(spec), shape_of(self._layout, spec))
            return
        group, targets = self._at[spec.group], [rows_of(part) for part in spec.parts]
        held = targets[0].shape[1]
        first, packed = self._parts(spec, slab)
        codes = torch.empty((group.components, spec.blocks * BLOCK_ROWS), dtype=torch.uint8)
        unpack(packed, group.widths, codes.numpy())
        self._require_zeros(first, codes, held)
        rows = group.rows(codes[:, :held])
        rows[: spec.first_rows] = first[: min(held, spec.first_rows)].float()
        self._scatter(spec, rows, targets, true_tokens)

    def wipe(self) -> None:
        """Do nothing: no scratch memory outlives a slab."""

    def _parts(self, spec: GroupSpec, slab: torch.Tensor) -> tuple[torch.Tensor, Packed]:
        group = self._at[spec.group]
        size = spec.first_rows * len(group.mean) * _FIRST_BYTES
        first = slab[:size].view(torch.bfloat16).view(spec.first_rows, len(group.mean))
        return first, slab[size:].numpy().reshape(spec.blocks, plane_count(group.widths), PLANE_BYTES)

    def _require_zeros(self, first: torch.Tensor, codes: torch.Tensor, held: int) -> None:
        coded_from = len(first)
        padding = first[held:].contiguous().view(torch.uint8)
        if bool(codes[:, :coded_from].any()) or bool(codes[:, held:].any()) or bool(padding.any()):
            raise LayoutMismatchError("a padding row is not zero")
        if not bool(first.isfinite().all()):
            raise LayoutMismatchError("a first row is not finite")

    def _gathered(self, source: CacheSource, spec: GroupSpec) -> torch.Tensor:
        """Return the true rows [rows, p] of a group in float32, keys without rotation."""
        columns = []
        for part in spec.parts:
            rows = rows_of(source, part).float()
            if part.part == "keys":
                at = self._first_position(part, source.true_tokens)
                rows = self._artefact.rotations[part.layer].apply(rows, at, is_inverse=True)
            columns.append(rows.transpose(0, 1).reshape(rows.shape[1], -1))
        return torch.cat(columns, 1)

    def _scatter(self, spec: GroupSpec, rows: torch.Tensor, targets: list[torch.Tensor], true_tokens: int) -> None:
        at = 0
        for part, target in zip(spec.parts, targets, strict=True):
            heads, held, dim = target.shape
            own = rows[:, at : at + heads * dim].reshape(held, heads, dim).transpose(0, 1)
            at += heads * dim
            if part.part == "keys":
                position = self._first_position(part, true_tokens)
                own = self._artefact.rotations[part.layer].apply(own, position)
            limit = torch.finfo(target.dtype).max
            target.copy_(own.clamp(-limit, limit) if target.dtype == torch.float16 else own)

    def _first_position(self, spec: SlabSpec, true_tokens: int) -> int:
        """Return the position of a slab's first row: a window's oldest row stands W - 1 before the end."""
        layer = self._layout.layers[spec.layer]
        tensor = tensor_of(self._layout, spec)
        return spec.start + (true_tokens - schedule.held_rows(layer, tensor, true_tokens))
