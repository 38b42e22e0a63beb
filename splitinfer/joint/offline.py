"""The offline pass of `masked`: a loaded model and a state folder -> more one-time masks in its pool; on the device."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from splitinfer.errors import ModelMismatchError
from splitinfer.home import Home
from splitinfer.home.masks import anchors_folder, masks_folder, open_masks
from splitinfer.masking.fixed_point import FixedMatrix, fixed_matrix
from splitinfer.masking.layout import MatrixKey
from splitinfer.masking.pool import MaskPool
from splitinfer.masking.prepare import prepare
from splitinfer.model.engine import Engine

__all__ = ["prepare_pool"]


def prepare_pool(
    home: Home,
    engine: Engine,
    *,
    tokens: int,
    max_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MaskPool, int]:
    """Prepare masks until `tokens` of them are left, one a token; returns the pool and how many were made.

    A pool is made where there is none. What was prepared before an interruption stays. Raises UnsupportedModelError,
    StateError (no room within `max_bytes`, a damaged pool), MasksExhaustedError for a pool that must not be used.
    """
    identity = engine.identity
    matrices: dict[MatrixKey, FixedMatrix] = {key: fixed_matrix(matrix) for key, matrix in engine.operations().items()}
    folder = masks_folder(home, identity)
    if (folder / "pool.json").exists():
        pool = open_masks(home, identity)
    else:
        pool = MaskPool.create(
            folder,
            matrices,
            anchors=anchors_folder(),
            weights_sha256=identity.weights_sha256,
            randomness=secrets.token_bytes,
        )
    if pool.weights_sha256 != identity.weights_sha256:
        raise ModelMismatchError("the mask pool was made for other weights; remove it and prepare a new one")
    report = progress or (lambda _done, _total: None)
    return pool, prepare(pool, matrices, tokens=tokens, limit_bytes=max_bytes, progress=report)
