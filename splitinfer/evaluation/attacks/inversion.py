"""Inversion by least squares: keys and values of layer 0 -> token ids, by linear algebra on the weights.

Threat: a reader of the first layer who has the weights. Source: the public code of the KV-Cloak authors. Undo the
rotation of the keys, solve W_k x = k and W_v x = v for the normed input, average, divide by the norm's weight, and take
the embedding of largest cosine. Grouped heads make either system under-determined: with 2 W rows for h unknowns less is
known than the dictionary uses, which is why this one is weaker.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from splitinfer.errors import UnsupportedModelError, UsageError
from splitinfer.evaluation.attacks.observed import CapturedCache, CapturedSlab
from splitinfer.evaluation.attacks.posterior import Recovered

__all__ = ["invert"]


def invert(model: PreTrainedModel, capture: CapturedCache) -> Recovered:
    """Return the token of largest cosine for every position that layer 0 holds, -1 for the others.

    Raises UnsupportedModelError for a model without Llama's names, UsageError without layer 0.
    """
    layer = _first_layer(model)
    slabs = [slab for slab in capture.slabs if slab.layer == 0]
    if not slabs or len({slab.first for slab in slabs}) != 1:
        raise UsageError("inversion needs the same rows of layer 0's keys and values; capture that layer")
    with torch.inference_mode():
        inputs = torch.stack([_solved(model, layer, slab) for slab in slabs]).mean(0)
        directions = inputs / layer.input_layernorm.weight.float()
        table = torch.nn.functional.normalize(model.get_input_embeddings().weight.float(), dim=1)
        tokens = (torch.nn.functional.normalize(directions, dim=1) @ table.T).argmax(1)
    found = [-1] * capture.tokens
    found[slabs[0].first : slabs[0].stop] = tokens.tolist()
    return Recovered(tuple(found))


def _first_layer(model: PreTrainedModel) -> Any:
    layers = getattr(model.base_model, "layers", None)
    layer = layers[0] if layers is not None and len(layers) else None
    names = ("k_proj", "v_proj")
    if layer is None or not all(hasattr(getattr(layer, "self_attn", None), name) for name in names):
        raise UnsupportedModelError("inversion by least squares needs a model of Llama's form (k_proj, v_proj)")
    if hasattr(layer.self_attn, "k_norm") or not hasattr(model.base_model, "rotary_emb"):
        raise UnsupportedModelError("inversion by least squares needs keys that are rotated and not normed")
    return layer


def _solved(model: PreTrainedModel, layer: Any, slab: CapturedSlab) -> torch.Tensor:
    """Return the least-norm inputs [held, hidden] that the projection turns into the slab's rows."""
    projection = layer.self_attn.k_proj if slab.part == "keys" else layer.self_attn.v_proj
    rows = _unrotated(model, slab) if slab.part == "keys" else slab.rows
    dim = rows.shape[2]
    kept = torch.cat([torch.arange(head * dim, (head + 1) * dim) for head in slab.heads])
    target = rows.transpose(0, 1).flatten(1)
    if projection.bias is not None:
        target = target - projection.bias.float()[kept]
    solved: torch.Tensor = torch.linalg.lstsq(projection.weight.float()[kept], target.T, driver="gelsd").solution
    return solved.T


def _unrotated(model: PreTrainedModel, slab: CapturedSlab) -> torch.Tensor:
    positions = torch.arange(slab.first, slab.stop)[None]
    cos, sin = model.base_model.rotary_emb(slab.rows[:1], positions)
    half = slab.rows.shape[2] // 2
    turned = torch.cat([-slab.rows[..., half:], slab.rows[..., :half]], dim=2)
    # The inverse rotation: the sine's sign is turned. The scale of the rotation, where there is one, is taken off.
    undone: torch.Tensor = (slab.rows * cos - turned * sin) / (cos.square() + sin.square())
    return undone
