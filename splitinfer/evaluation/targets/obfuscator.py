"""A matrix obfuscator with reused secrets, as an attack target only: rows of one head -> obfuscated blocks.

Evaluation; never a policy. It follows the description of KV-Cloak: a head's rows are cut into blocks of 16, and a block
X becomes C = S P (X M + A). S is a secret orthogonal matrix, P a fresh permutation a block, M a secret rotation that
commutes with rotary positions (an angle a pair of columns, folded into the weights there), A zero but for one row, the
beacon a. S, M and a are the same for every request: that is what `attacks.chosen_plaintext` uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from splitinfer.errors import UsageError

__all__ = ["BLOCK_ROWS", "MatrixObfuscator"]

BLOCK_ROWS = 16
_BEACON_SCALE = 3.5
_PADDING_SCALE = 1.5


@dataclass(frozen=True, slots=True)
class MatrixObfuscator:
    """The secrets of one layer, head and part, and the generator of the permutations."""

    mixing: torch.Tensor = field(repr=False)
    angles: torch.Tensor = field(repr=False)
    beacon: torch.Tensor = field(repr=False)
    padding: torch.Tensor = field(repr=False)
    draw: torch.Generator = field(repr=False)

    @classmethod
    def make(cls, *, dim: int, threshold: float, seed: int) -> MatrixObfuscator:
        """Draw the secrets; `threshold` is above the norm of every true row, so that the decoder knows the beacon."""
        if dim % 2:
            raise UsageError("the obfuscator rotates pairs of columns; the head's dimension must be even")
        draw = torch.Generator().manual_seed(seed)
        mixing = torch.linalg.qr(torch.randn(BLOCK_ROWS, BLOCK_ROWS, generator=draw, dtype=torch.float64)).Q
        angles = torch.rand(dim // 2, generator=draw, dtype=torch.float64) * 2 * torch.pi
        beacon, padding = (torch.randn(dim, generator=draw, dtype=torch.float64) for _ in range(2))
        return cls(
            mixing,
            angles,
            beacon * (_BEACON_SCALE * threshold / beacon.norm()),
            padding * (_PADDING_SCALE * threshold / padding.norm()),
            draw,
        )

    @property
    def rotation(self) -> torch.Tensor:
        """Return M [dim, dim]: columns j and j + dim/2 are turned by angle j."""
        cos, sin = self.angles.cos().diag(), self.angles.sin().diag()
        return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0)

    def protect(self, rows: torch.Tensor) -> torch.Tensor:
        """Return blocks [blocks, 16, dim] of rows [tokens, dim]; the last block is padded."""
        missing = -len(rows) % BLOCK_ROWS
        padded = torch.cat([rows.double(), self.padding.expand(missing, -1)])
        return torch.stack([self._protect_block(block) for block in torch.split(padded, BLOCK_ROWS)])

    def _protect_block(self, block: torch.Tensor) -> torch.Tensor:
        plain = block @ self.rotation
        plain[0] += self.beacon
        order = torch.randperm(BLOCK_ROWS, generator=self.draw)
        return self.mixing @ plain[order]
