"""How far two private texts can be apart: embedding rows to a proven largest distance; on the device, numpy only.

The rows are those that the tokenizer can emit as private text, as the model's input embedding gives them out, its own
scale included. Replacing one token moves one row by at most the largest distance D between two of them, replacing k
tokens by D sqrt(k), a whole prompt of T tokens by D sqrt(T).

Rows are centred and sorted by norm. The distance of a pair is at most the sum of its norms, so blocks of pairs are
looked at in falling order of that sum. Once it falls to the largest distance found, that is exact: no other pair can be
farther apart. Where the allowance of operations ends before, the sum itself bounds every pair not looked at.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitinfer.errors import UsageError
from splitinfer.noise.stream import Float64

__all__ = ["MAX_OPERATIONS", "Distance", "ids_digest", "largest_distance"]

MAX_OPERATIONS = 4 * 10**11
"""About a minute of float64 multiplications and additions on one slow core."""
_BLOCK_ROWS = 1024
# Far more than the rounding of float64 in all that is computed here.
_ROUND_UP = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Distance:
    """The largest l2 distance between `rows` embedding rows, rounded up; a proven bound where `is_exact` is False."""

    value: float
    is_exact: bool
    rows: int


def largest_distance(rows: npt.NDArray[np.floating], *, max_operations: int = MAX_OPERATIONS) -> Distance:
    """Return the largest distance between two rows of [rows, dim]; raises UsageError for fewer than two rows."""
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise UsageError("a largest distance needs two rows of finite numbers, or more")
    centred = rows.astype(np.float64)
    centred -= centred.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    order = np.argsort(-norms)
    centred, norms = centred[order], norms[order]
    found, left = 0.0, float(max_operations)
    for most, first, second in _block_pairs(norms):
        if most <= found:
            break
        if left <= 0:
            return Distance(most * _ROUND_UP, is_exact=False, rows=len(rows))
        a, b = centred[first : first + _BLOCK_ROWS], centred[second : second + _BLOCK_ROWS]
        found = max(found, _farthest(a, b))
        left -= 2.0 * len(a) * len(b) * rows.shape[1]
    return Distance(found * _ROUND_UP, is_exact=True, rows=len(rows))


def _block_pairs(norms: Float64) -> Iterator[tuple[float, int, int]]:
    """Yield (largest sum of norms, start, start) of every pair of blocks, in falling order of that sum.

    Along each block the sum falls, so that the next pair of every block is all that need be kept.
    """
    starts = range(0, len(norms), _BLOCK_ROWS)
    waiting = [(-2.0 * float(norms[start]), start, start) for start in starts]
    heapq.heapify(waiting)
    while waiting:
        negative, first, second = heapq.heappop(waiting)
        yield -negative, first, second
        following = second + _BLOCK_ROWS
        if following < len(norms):
            heapq.heappush(waiting, (-float(norms[first] + norms[following]), first, following))


def _farthest(a: Float64, b: Float64) -> float:
    """Return the largest distance between a row of each; the farthest pair is computed again by difference."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    i, j = np.unravel_index(int(squares.argmax()), squares.shape)
    return max(float(np.linalg.norm(a[i] - b[j])), math.sqrt(max(float(squares[i, j]), 0.0)))


def ids_digest(token_ids: Iterable[int]) -> str:
    """Return the digest of a set of token ids, by which a distance is kept beside the weights digest."""
    text = ",".join(str(int(token_id)) for token_id in sorted(token_ids))
    return hashlib.sha256(text.encode()).hexdigest()
