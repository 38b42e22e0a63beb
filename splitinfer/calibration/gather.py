"""A model and one piece of text -> its cache, and how much the loss feels each element of it; no rounding here.

The weights are those of the diagonal Fisher information: labels are drawn from the model's own predictions, so that no
right answer is needed (Amari 1998; here for a cache instead of parameters). One forward and one backward a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from splitinfer.cache.live import feed, layers_of, logits_of, new_cache
from splitinfer.calibration.sequences import Piece
from splitinfer.codec.transform.rotation import Rotation
from splitinfer.model.loading import LoadedModel

__all__ = ["Gathered", "LayerRows", "gather", "rows_of_layer"]


@dataclass(frozen=True, slots=True)
class LayerRows:
    """One layer of one piece: rows [tokens, channels] of all tokens, and their gradients where asked for."""

    rows: torch.Tensor = field(repr=False)
    gradients: torch.Tensor | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The layers of one piece, by index."""

    layers: dict[int, LayerRows] = field(repr=False)


def gather(
    loaded: LoadedModel,
    piece: Piece,
    *,
    layers: Sequence[int],
    rotations: dict[int, Rotation],
    first_tokens: int,
    generator: torch.Generator,
    is_weighted: bool,
) -> Gathered:
    """Run a piece; returns float32 rows without the first tokens, keys without their rotation."""
    cache = new_cache(loaded.model.config)
    ids, split = piece.token_ids, piece.context_tokens
    with torch.no_grad():
        feed(loaded.model.base_model, ids[:split], cache)
    leaves: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    if is_weighted:
        for index in layers:
            layer = layers_of(cache)[index]
            layer.keys = layer.keys.detach().clone().requires_grad_(True)
            layer.values = layer.values.detach().clone().requires_grad_(True)
            leaves[index] = (layer.keys, layer.values)
    with torch.set_grad_enabled(is_weighted):
        logits = logits_of(loaded.model, ids[split:], cache)
        if is_weighted:
            torch.autograd.backward(_sampled_loss(logits.float(), generator))
    found = {}
    for index in layers:
        layer = layers_of(cache)[index]
        rotation, end = rotations[index], len(ids)
        rows = rows_of_layer(layer.keys.detach(), layer.values.detach(), rotation, end_position=end)
        gradients = None
        if index in leaves:
            grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves[index]]
            # With k = a R k0 the derivative by k0 is a R^T that by k, and the inverse below gives R^T / a.
            grads[0] = grads[0] * rotation.factor**2
            gradients = rows_of_layer(grads[0], grads[1], rotation, end_position=split)
            gradients = gradients[_skipped(split, len(gradients), first_tokens) :]
        found[index] = LayerRows(rows[_skipped(end, len(rows), first_tokens) :], gradients)
    return Gathered(found)


def rows_of_layer(keys: Any, values: Any, rotation: Rotation, *, end_position: int) -> torch.Tensor:
    """Return the rows [tokens, channels] of a layer's keys and values [1, heads, tokens, dim] in float32."""
    keys, values = keys[0].float(), values[0].float()
    plain = rotation.apply(keys, end_position - keys.shape[1], is_inverse=True)
    return torch.cat([part.transpose(0, 1).reshape(part.shape[1], -1) for part in (plain, values)], 1)


def _skipped(end: int, rows: int, first_tokens: int) -> int:
    """Return how many of the rows up to a position belong to the first tokens."""
    return max(0, first_tokens - (end - rows))


def _sampled_loss(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    log_probabilities = torch.log_softmax(logits, -1)
    drawn = torch.multinomial(log_probabilities.detach().exp(), 1, generator=generator)
    return -log_probabilities.gather(1, drawn).sum()
