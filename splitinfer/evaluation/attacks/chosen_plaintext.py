"""Chosen plaintext against secrets that are reused: the obfuscator's blocks -> its secrets -> the victim's tokens.

Threat: a tenant who reads the store of protected caches, his own and the victim's, and has the weights. Source: the
audit "Fresh Shuffles, Reused Secrets". A prompt of one repeated token gives blocks C_j = u w' + s_j a' with u = S 1 and
w = M' v: only the place of the beacon differs. Their differences (s_i - s_j) a' give a, what is orthogonal to a gives u
and w, then every s_j; the pair (v, w) gives the angles of M. A victim's block is opened with each s_j in turn, and the
one whose rows are tokens' rows is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from splitinfer.errors import UsageError
from splitinfer.evaluation.targets.obfuscator import BLOCK_ROWS

__all__ = ["ObfuscatorSecrets", "match_columns", "probe_tokens", "recover_secrets"]

_SAME = 1e-3
_SHARPNESS = 16


@dataclass(frozen=True, slots=True)
class ObfuscatorSecrets:
    """What was found of one head's secrets, up to a common sign of all three, which changes nothing."""

    mixing: torch.Tensor = field(repr=False)
    rotation: torch.Tensor = field(repr=False)
    beacon: torch.Tensor = field(repr=False)

    def open(self, block: torch.Tensor, dictionary: torch.Tensor) -> tuple[int, ...]:
        """Return the tokens of a victim's block [16, dim], in the block's shuffled order.

        `dictionary` is [vocabulary, dim], the head's unprotected row of every token. A padding row gives some token.
        """
        table = torch.nn.functional.normalize(dictionary.double(), dim=1)
        best, tokens = -1.0, torch.zeros(BLOCK_ROWS, dtype=torch.long)
        for column in self.mixing.T:
            plain = self.mixing.T @ (block - column[:, None] * self.beacon) @ self.rotation.T
            cosines = torch.nn.functional.normalize(plain, dim=1) @ table.T
            nearest = cosines.max(1)
            # Rows that are tokens' rows count, and padding does not: a high power of the cosine.
            fit = float(nearest.values.clamp_min(0).pow(_SHARPNESS).sum())
            if fit > best:
                best, tokens = fit, nearest.indices
        return tuple(int(token) for token in tokens)


def probe_tokens() -> int:
    """Return how many times to repeat the chosen token: the expected blocks until all 16 places were seen, doubled."""
    harmonic = sum(1 / count for count in range(1, BLOCK_ROWS + 1))
    return 2 * BLOCK_ROWS * int(BLOCK_ROWS * harmonic + 1)


def recover_secrets(blocks: torch.Tensor, row: torch.Tensor) -> ObfuscatorSecrets:
    """Find the secrets from the protected blocks [blocks, 16, dim] of a prompt that repeats one token.

    `row` [dim] is that token's unprotected row. Raises UsageError where fewer than all 16 different blocks are there.
    """
    distinct = _distinct(blocks)
    if len(distinct) != BLOCK_ROWS:
        raise UsageError(f"{len(distinct)} of {BLOCK_ROWS} different blocks were seen; repeat the token more often")
    beacon = _beacon(distinct)
    power = beacon @ beacon
    across = distinct[0] - torch.outer(distinct[0] @ beacon, beacon) / power
    left, sizes, right = torch.linalg.svd(across, full_matrices=False)
    ones, inputs = left[:, 0] * BLOCK_ROWS**0.5, right[0] * sizes[0] / BLOCK_ROWS**0.5
    along = distinct @ beacon / power
    # The sum of all s_j is S 1 = u, so the mean of (w.a / a.a) u + s_j gives w's part along a. The sign of u is free in
    # the decomposition; the right one leaves w with the lengths of v, pair by pair.
    mean = along.mean(0) @ ones / BLOCK_ROWS
    found = [(sign * (inputs + share * beacon), share) for sign in (1, -1) for share in [mean - sign / BLOCK_ROWS]]
    turned, share = min(found, key=lambda pair: _mismatch(row.double(), pair[0]))
    return ObfuscatorSecrets((along - share * ones).T, _rotation(row.double(), turned), beacon)


def match_columns(protected: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Find the order of a head's columns from rows [tokens, dim] of the attacker's own prompt: nearest columns."""
    return torch.cdist(protected.T.double(), plain.T.double()).argmin(1)


def _distinct(blocks: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    scale = float(blocks[0].norm())
    for block in blocks:
        if all(float((block - other).norm()) > _SAME * scale for other in found):
            found.append(block)
    return torch.stack(found)


def _beacon(distinct: torch.Tensor) -> torch.Tensor:
    """Return a: (s_i - s_j) a' has the single direction a, and the size sqrt(2) |a|."""
    differences = distinct[1:] - distinct[0]
    direction: torch.Tensor = torch.linalg.svd(differences.flatten(0, 1), full_matrices=False).Vh[0]
    size = float(torch.linalg.matrix_norm(differences).mean()) / 2**0.5
    return direction * size


def _mismatch(row: torch.Tensor, turned: torch.Tensor) -> float:
    half = len(row) // 2
    lengths = [torch.hypot(pairs[:half], pairs[half:]) for pairs in (row, turned)]
    return float((lengths[0] - lengths[1]).norm())


def _rotation(row: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """Return M from w = M' v, pair by pair of columns."""
    half = len(row) // 2
    before, after = torch.complex(row[:half], row[half:]), torch.complex(turned[:half], turned[half:])
    quotient = after / before
    quotient = quotient / quotient.abs()
    cos, sin = quotient.real.diag(), quotient.imag.diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0)
