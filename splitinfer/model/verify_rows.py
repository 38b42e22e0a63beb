"""Recompute rows of a received cache from its earlier rows: CacheSnapshot -> nothing, or VerificationError; device.

Row t of an honest cache is what the model makes of token t on the cache cut to t tokens. If rows are inconsistent,
the first of them differs from what is recomputed from the rows before it, so k rows drawn uniformly from T miss a
single inconsistent row with probability 1 - k/T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from splitinfer.cache.snapshot import CacheSnapshot, cut, require_rows
from splitinfer.errors import LayoutMismatchError, UsageError, VerificationError
from splitinfer.model.engine import Engine

__all__ = ["verify_rows"]


def verify_rows(
    engine: Engine, token_ids: Sequence[int], snapshot: CacheSnapshot, *, rows: Sequence[int], tolerance: float
) -> None:
    """Recompute token rows through all layers and compare them with the received ones.

    A row agrees where, in every tensor of every layer, the largest absolute difference is at most `tolerance`
    times the largest absolute recomputed element of that row. Raises VerificationError where one differs;
    UnsupportedCacheError where a layer lost the rows or states that are needed; LayoutMismatchError for another
    model's layout or fewer token ids than rows; UsageError for a row outside the cache.
    """
    if snapshot.layout != engine.layout or len(token_ids) < snapshot.true_tokens:
        raise LayoutMismatchError("the received cache does not fit the model and the prompt")
    if rows:
        require_rows(snapshot.layout, snapshot.true_tokens)
    for row in rows:
        if not 0 <= row < snapshot.true_tokens:
            raise UsageError(f"row {row} is outside the cache of {snapshot.true_tokens} tokens")
        _verify_row(engine, token_ids, snapshot, row=row, tolerance=tolerance)


def _verify_row(
    engine: Engine, token_ids: Sequence[int], snapshot: CacheSnapshot, *, row: int, tolerance: float
) -> None:
    received = cut(snapshot, row + 1)
    earlier = cut(snapshot, row) if row else None
    recomputed = engine.prefill(token_ids, steps=[(row, row + 1)], onto=earlier)
    for index, layer in enumerate(snapshot.layout.layers):
        for tensor in layer.tensors:
            ours, theirs = (side.layers[index][tensor.name] for side in (recomputed, received))
            axis = 1 + len(tensor.before)
            _require_close(index, tensor.name, ours.select(axis, -1), theirs.select(axis, -1), tolerance)


def _require_close(index: int, part: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    expected, got = ours.double(), theirs.double().to(ours.device)
    bound = tolerance * float(expected.abs().max())
    # Written so that a difference that is not a number does not pass.
    if not float((expected - got).abs().max()) <= bound:
        raise VerificationError(
            f"the {part} of layer {index} in a received row are not what this model computes; the cache is not honest"
        )
