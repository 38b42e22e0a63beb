"""The offline pass: a pool and the model's matrices -> more masks in the pool; on the device, in idle time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import StateError
from splitinfer.masking.fixed_point import FixedMatrix
from splitinfer.masking.layout import MatrixKey
from splitinfer.masking.pool import MaskPool
from splitinfer.masking.ring import Words, products, to_mask_bytes

__all__ = ["BATCH", "prepare"]

BATCH = 64
Progress = Callable[[int, int], None]


def prepare(
    pool: MaskPool,
    matrices: Mapping[MatrixKey, FixedMatrix],
    *,
    tokens: int,
    limit_bytes: int,
    progress: Progress = lambda done, total: None,  # noqa: ARG005 - the protocol's names
) -> int:
    """Prepare masks until `tokens` of them are left; returns how many were made. Each batch is kept if the next fails.

    Raises StateError where the products would take more than `limit_bytes`, or the matrices are not the pool's.
    """
    layout = pool.layout
    shapes = {key: (place.outputs, place.inputs) for key, place in layout.places.items()}
    if {key: matrix.integers.shape for key, matrix in matrices.items()} != shapes:
        raise StateError("the mask pool was made for another model; prepare a new pool")
    first, wanted = pool.prepared, pool.used + tokens
    if wanted * layout.product_bytes > limit_bytes:
        raise StateError(
            f"{wanted} masks take {wanted * layout.product_bytes:,} bytes, above the limit of {limit_bytes:,}; "
            "prepare fewer or raise the limit"
        )
    weights = {key: matrix.integers.astype(np.float64) for key, matrix in matrices.items()}
    for at in range(first, wanted, BATCH):
        numbers = range(at, min(at + BATCH, wanted))
        pool.append(_rows(pool, weights, numbers), first=at)
        progress(numbers.stop - first, wanted - first)
    return max(0, wanted - first)


def _rows(pool: MaskPool, weights: Mapping[MatrixKey, NDArray[np.float64]], numbers: range) -> bytes:
    masks = np.stack([pool.words(number) for number in numbers], axis=1)
    parts: list[Words] = []
    for key, place in pool.layout.places.items():
        parts.append(products(weights[key], masks[place.input_at :][: place.inputs]))
    return to_mask_bytes(np.concatenate(parts).T)
