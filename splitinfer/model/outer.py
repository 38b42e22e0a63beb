"""Loads a model without its large matrices: a directory -> embeddings, norms and biases; on the device.

What is loaded is named: the input embeddings (and with them a head that is tied to them) and every vector. All other
parameters stay without memory. Nothing can be computed with such a model but what `layerwise` writes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from splitinfer.cache.snapshot import layout_of
from splitinfer.errors import UnsupportedModelError
from splitinfer.handoff import CacheLayout
from splitinfer.model.identity import weight_files
from splitinfer.model.layerwise import require_llama_like

__all__ = ["load_outer", "loaded_names"]


def load_outer(directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, CacheLayout]:
    """Return the model, and the layout that its cache would have, which a forward can no longer find.

    Raises UnsupportedModelError for another architecture, naming it, and for weights that lack a tensor.
    """
    require_llama_like(config.get_text_config())
    with torch.device("meta"):
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False))
        model = model.requires_grad_(False).eval()
        layout = layout_of(model)
    wanted = list(_outer_names(model))
    found = _tensors(directory, wanted)
    if len(found) < len(wanted):
        raise UnsupportedModelError(
            f"the weights lack {len(wanted) - len(found)} of the model's embeddings, norms and biases; get the whole "
            'model, or write linear = "device"'
        )
    for name, tensor in found.items():
        owner, _, attribute = name.rpartition(".")
        if model.get_parameter(name).shape != tensor.shape:
            raise UnsupportedModelError(f"{name} has another shape than config.json says; get the whole model")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor.to(dtype), requires_grad=False))
    base = model.base_model
    # Rotary frequencies are no parameters: they are computed from the configuration.
    base.rotary_emb = type(base.rotary_emb)(config=config.get_text_config())
    if config.get_text_config().tie_word_embeddings:
        model.set_output_embeddings(_head(model))
    return model, layout


def loaded_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the parameters that take memory, sorted."""
    return tuple(sorted(name for name, parameter in model.named_parameters() if not parameter.is_meta))


def _outer_names(model: PreTrainedModel) -> Iterator[str]:
    embeddings = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter is embeddings or parameter.ndim == 1:
            yield name


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    head.weight = model.get_input_embeddings().weight
    return cast(nn.Module, head)


def _tensors(directory: Path, names: list[str]) -> Mapping[str, torch.Tensor]:
    found = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                held = set(file.keys())
                found.update({name: file.get_tensor(name) for name in names if name in held})
        except (SafetensorError, OSError) as error:
            raise UnsupportedModelError(f"{path.name} is no readable safetensors file; get the whole model") from error
    return found
