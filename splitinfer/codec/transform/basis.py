"""One group of layers at one level: rows x [rows, p] <-> codes [components, rows]; both sides.

    z = ((x - mean) / scale) U / deviation          x' = mean + scale (U (deviation q(z)))

U [p, r] holds the first components as int8 with one unit a column; both sides use the same rounded U. The scale of a
channel is its deviation over the root of its weight, so that the error that U spreads is small where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from splitinfer.codec.transform.planes import Width, widths_of
from splitinfer.codec.transform.tables import Cells

__all__ = ["Group", "GroupAtLevel"]

_BEYOND = 2.0


@dataclass(frozen=True, slots=True)
class Group:
    """What was calibrated of some layers. Channels are layer after layer, its keys [heads, dim], then its values.

    `mean` and `scale` [p] float32, `basis` [p, r] int8, `unit` and `deviation` [r] float32, `bits` [levels, r] uint8,
    falling along the components.
    """

    layers: tuple[int, ...]
    mean: torch.Tensor = field(repr=False)
    scale: torch.Tensor = field(repr=False)
    basis: torch.Tensor = field(repr=False)
    unit: torch.Tensor = field(repr=False)
    deviation: torch.Tensor = field(repr=False)
    bits: torch.Tensor = field(repr=False)

    @property
    def channels(self) -> int:
        """Return p."""
        return len(self.mean)

    def at(self, level: int, centroids: Sequence[torch.Tensor]) -> GroupAtLevel:
        """Return the group's coder at the level of this index; `centroids[b]` are those of b bits."""
        bits = self.bits[level].tolist()
        used = sum(1 for held in bits if held)
        columns = self.basis[:, :used].float() * self.unit[:used]
        encoder = (columns / self.scale.unsqueeze(1) / self.deviation[:used]).T.contiguous()
        decoder = columns * self.scale.unsqueeze(1) * self.deviation[:used]
        widths = widths_of(bits)
        return GroupAtLevel(
            widths=widths,
            encoder=encoder,
            bias=-(encoder.double() @ self.mean.double()).float().unsqueeze(1),
            decoder=decoder,
            mean=self.mean,
            centroids=tuple(centroids[width.bits] for width in widths),
            cells=tuple(Cells.of(centroids[width.bits]) for width in widths),
        )


@dataclass(frozen=True, slots=True)
class GroupAtLevel:
    """The matrices of one group at one level: encoder [r, p], decoder [p, r], and the widths of its components."""

    widths: tuple[Width, ...]
    encoder: torch.Tensor = field(repr=False)
    bias: torch.Tensor = field(repr=False)
    decoder: torch.Tensor = field(repr=False)
    mean: torch.Tensor = field(repr=False)
    centroids: tuple[torch.Tensor, ...] = field(repr=False)
    cells: tuple[Cells, ...] = field(repr=False)

    @property
    def components(self) -> int:
        """Return r."""
        return len(self.encoder)

    def values(self, rows: torch.Tensor) -> torch.Tensor:
        """Return z [r, rows] of float32 rows [rows, p]."""
        return torch.addmm(self.bias, self.encoder, rows.T)

    def codes(self, values: torch.Tensor) -> torch.Tensor:
        """Return the codes [r, rows] of values [r, rows]."""
        codes = torch.empty(values.shape, dtype=torch.uint8)
        for width, cells in zip(self.widths, self.cells, strict=True):
            part = slice(width.start, width.stop)
            cells.codes(values[part], codes[part])
        return codes

    def rows(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the rows [rows, p] of codes [r, rows]."""
        values = torch.empty(codes.shape)
        for width, centroids in zip(self.widths, self.centroids, strict=True):
            part = slice(width.start, width.stop)
            # numpy takes from a small table several times faster.
            np.take(centroids.numpy(), codes[part].numpy(), out=values[part].numpy(), mode="clip")
        return torch.addmm(self.mean, values.T, self.decoder.T)

    def saturated(self, values: torch.Tensor) -> int:
        """Count the values that lie more than two deviations beyond the outermost centroid."""
        count = 0
        for width, centroids in zip(self.widths, self.centroids, strict=True):
            part = values[width.start : width.stop]
            count += int(((part < centroids[0] - _BEYOND) | (part > centroids[-1] + _BEYOND)).sum())
        return count
