"""Rotary position embeddings, taken off keys and put on again: rows [heads, rows, dim] and their positions; both sides.

A key at position m is R(m f) k with the inverse frequencies f of its layer (Su et al., RoFormer, 2021), times a factor
that some scalings have. Without it keys of one token at two positions are alike, and a basis finds them so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["STYLES", "Rotation", "Style"]

# Which two channels turn together: i and i + half of the turned ones, or neighbours.
Style = Literal["half", "interleaved", "none"]
STYLES: tuple[Style, ...] = ("half", "interleaved", "none")


@dataclass(frozen=True, slots=True)
class Rotation:
    """How one layer turns its keys: the first 2 x len(`inverse_frequencies`) channels, times `factor`."""

    style: Style
    inverse_frequencies: torch.Tensor
    factor: float = 1.0

    @property
    def channels(self) -> int:
        """Return how many channels are turned."""
        return 0 if self.style == "none" else 2 * len(self.inverse_frequencies)

    def apply(self, keys: torch.Tensor, first_position: int, *, is_inverse: bool = False) -> torch.Tensor:
        """Turn float32 rows [heads, rows, dim], the first of which stands at a position; the inverse turns them back.

        Returns new memory, or the same tensor where nothing turns.
        """
        if self.style == "none":
            return keys
        # In float32, as the models do: at large positions the rounding of the angle is part of what they compute.
        positions = torch.arange(first_position, first_position + keys.shape[1], dtype=torch.float32)
        angles = torch.outer(positions, self.inverse_frequencies)
        cosine, sine = angles.cos(), angles.sin()
        if is_inverse:
            sine = -sine
            cosine, sine = cosine / self.factor, sine / self.factor
        else:
            cosine, sine = cosine * self.factor, sine * self.factor
        turned = torch.empty_like(keys)
        first, second = self._pairs(keys)
        first_out, second_out = self._pairs(turned)
        first_out.copy_(first * cosine - second * sine)
        second_out.copy_(second * cosine + first * sine)
        turned[..., self.channels :] = keys[..., self.channels :]
        return turned

    def _pairs(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = len(self.inverse_frequencies)
        if self.style == "half":
            return rows[..., :half], rows[..., half : 2 * half]
        return rows[..., 0 : 2 * half : 2], rows[..., 1 : 2 * half : 2]
