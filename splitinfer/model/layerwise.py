"""One decode step of a Llama-like model, written out: a token and two callables -> logits; on the device, numpy.

`attend(layer, query, key, value)` and `linear(layer, name, vector)` stand for attention with the cache and for the
large matrices, which may be computed elsewhere. All that is left is here: embeddings, norms, biases, rotary positions,
the activation, and the head where it is tied to the embeddings. `LayerwiseModel` therefore needs no large matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import ModelError, PromptError, UnsupportedCacheError, UnsupportedModelError

__all__ = [
    "ARCHITECTURES",
    "Attend",
    "LayerwiseModel",
    "Linear",
    "LocalAttention",
    "LocalLinear",
    "Rows",
    "cached_rows",
    "layerwise",
    "matrices",
    "matrix_shapes",
    "require_llama_like",
]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

Rows: TypeAlias = NDArray[np.floating[Any]]
Attend: TypeAlias = Callable[[int, Rows, Rows, Rows], Rows]
"""(layer, query [heads, head_dim], key and value [kv_heads, head_dim]) -> output [heads, head_dim].

The query has its position and the softmax's scale; key and value are this token's, to be kept for later steps.
"""
Linear: TypeAlias = Callable[[int, str, Rows], Rows]
"""(layer, "qkv" | "o" | "gate_up" | "down" | "head", vector) -> matrix times vector, without bias."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Norms and biases of one layer; biases by matrix name, absent where there is none."""

    input_norm: Rows
    output_norm: Rows
    query_norm: Rows | None
    key_norm: Rows | None
    biases: Mapping[str, Rows]


@dataclass(frozen=True, slots=True)
class LayerwiseModel:
    """What the device keeps of a model: embeddings [vocabulary, hidden], norms, biases, rotary frequencies."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    is_tied: bool
    embedding: Rows = field(repr=False)
    layers: tuple[_Layer, ...] = field(repr=False)
    norm: Rows = field(repr=False)
    frequencies: Rows = field(repr=False)
    rotary_scale: float = 1.0

    def step(self, token_id: int, position: int, *, attend: Attend, linear: Linear) -> Rows:
        """Feed one token at a position, counted from 0; return logits [vocabulary].

        Raises PromptError for an id outside the vocabulary, ModelError where the logits are not finite, and whatever
        the callables raise.
        """
        return self._logits(self.feed(token_id, position, attend=attend, linear=linear), linear)

    def feed(self, token_id: int, position: int, *, attend: Attend, linear: Linear) -> Rows:
        """Feed one token of a prompt, of which no logits are wanted; returns the last layer's output [hidden].

        Raises as `step` does.
        """
        if not 0 <= token_id < len(self.embedding):
            raise PromptError(f"the token's id is outside the model's vocabulary of {len(self.embedding)}")
        hidden: Rows = self.embedding[token_id].astype(np.float64)
        turn = self._rotation(position)
        for index in range(len(self.layers)):
            hidden = hidden + self._attention(index, hidden, turn, attend=attend, linear=linear)
            hidden = hidden + self._feed_forward(index, hidden, linear=linear)
        return hidden

    def _rotation(self, position: int) -> tuple[Rows, Rows]:
        # In float32, as transformers computes it.
        angles = np.float32(position) * self.frequencies
        both = np.concatenate([angles, angles])
        return np.cos(both) * self.rotary_scale, np.sin(both) * self.rotary_scale

    def _attention(self, index: int, hidden: Rows, turn: tuple[Rows, Rows], *, attend: Attend, linear: Linear) -> Rows:
        layer = self.layers[index]
        normed = _normed(hidden, layer.input_norm, self.epsilon)
        rows = _with_bias(layer, "qkv", linear(index, "qkv", normed)).reshape(-1, self.head_dim)
        query, key, value = np.split(rows, [self.heads, self.heads + self.kv_heads])
        if layer.query_norm is not None and layer.key_norm is not None:
            query = _normed(query, layer.query_norm, self.epsilon)
            key = _normed(key, layer.key_norm, self.epsilon)
        scaled = _turned(query, turn) * self.head_dim**-0.5
        output = attend(index, scaled, _turned(key, turn), value)
        return _with_bias(layer, "o", linear(index, "o", output.reshape(-1)))

    def _feed_forward(self, index: int, hidden: Rows, *, linear: Linear) -> Rows:
        layer = self.layers[index]
        normed = _normed(hidden, layer.output_norm, self.epsilon)
        gate, up = np.split(_with_bias(layer, "gate_up", linear(index, "gate_up", normed)), 2)
        # The sigmoid as a tanh does not overflow.
        inner = gate * 0.5 * (1 + np.tanh(gate / 2)) * up
        return _with_bias(layer, "down", linear(index, "down", inner))

    def _logits(self, hidden: Rows, linear: Linear) -> Rows:
        normed = _normed(hidden, self.norm, self.epsilon)
        head = self.embedding @ normed.astype(np.float32) if self.is_tied else linear(len(self.layers), "head", normed)
        if not np.all(np.isfinite(head)):
            raise ModelError("the model's logits are not finite")
        return head


def _normed(rows: Rows, weight: Rows, epsilon: float) -> Rows:
    """Return the RMS norm over the last axis (Zhang and Sennrich, 2019)."""
    normed: Rows = rows / np.sqrt((rows * rows).mean(axis=-1, keepdims=True) + epsilon) * weight
    return normed


def _turned(rows: Rows, turn: tuple[Rows, Rows]) -> Rows:
    """Apply rotary positions to [heads, head_dim] (Su et al., 2021; halves, as transformers pairs them)."""
    first, second = np.split(rows, 2, axis=-1)
    turned: Rows = rows * turn[0] + np.concatenate([-second, first], axis=-1) * turn[1]
    return turned


def _with_bias(layer: _Layer, name: str, rows: Rows) -> Rows:
    return rows + layer.biases[name] if name in layer.biases else rows


# --- from transformers ----------------------------------------------------------------------------------------

_PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def layerwise(model: PreTrainedModel) -> LayerwiseModel:
    """Return what the step needs of a loaded model; raises UnsupportedModelError, naming what is not Llama-like."""
    config = model.config.get_text_config()
    require_llama_like(config)
    base, attention = model.base_model, model.base_model.layers[0].self_attn
    return LayerwiseModel(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        epsilon=config.rms_norm_eps,
        is_tied=bool(config.tie_word_embeddings),
        embedding=_array(base.embed_tokens.weight),
        layers=tuple(_layer(layer) for layer in base.layers),
        norm=_array(base.norm.weight),
        frequencies=_array(base.rotary_emb.inv_freq),
        rotary_scale=float(base.rotary_emb.attention_scaling),
    )


def matrices(model: PreTrainedModel) -> dict[tuple[int, str], Rows]:
    """Return the matrices of `linear` by layer and name, float32 [outputs, inputs]; "head" only where it is not tied.

    Raises UnsupportedModelError as `layerwise` does.
    """
    config = model.config.get_text_config()
    require_llama_like(config)
    found = {
        (index, name): np.concatenate([_array(layer.get_submodule(part).weight) for part in parts])
        for index, layer in enumerate(model.base_model.layers)
        for name, parts in _PARTS.items()
    }
    if not config.tie_word_embeddings:
        found[len(model.base_model.layers), "head"] = _array(model.get_output_embeddings().weight)
    return found


def matrix_shapes(model: PreTrainedModel) -> dict[tuple[int, str], tuple[int, int]]:
    """Return [outputs, inputs] of the same matrices, which need not be loaded; raises as `matrices`."""
    config = model.config.get_text_config()
    require_llama_like(config)
    found = {}
    for index, layer in enumerate(model.base_model.layers):
        for name, parts in _PARTS.items():
            shapes = [layer.get_submodule(part).weight.shape for part in parts]
            found[index, name] = (sum(shape[0] for shape in shapes), shapes[0][1])
    if not config.tie_word_embeddings:
        found[len(model.base_model.layers), "head"] = tuple(model.get_output_embeddings().weight.shape)
    return found


def require_llama_like(config: PreTrainedConfig) -> None:
    """Raise UnsupportedModelError, naming what is not Llama-like, for a model whose step is not written out."""
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"a step of {config.model_type!r} is not written out; supported are {', '.join(ARCHITECTURES)}"
        )
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (config.model_type == "mistral" and window is not None):
        raise UnsupportedModelError(
            f"{config.model_type} with sliding windows is not supported; its layers must be full"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise UnsupportedModelError(f"the activation {config.hidden_act!r} is not supported, expected 'silu'")
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise UnsupportedModelError(f"rotary positions of type {kind!r} are not one of {', '.join(_ROPE_TYPES)}")


def _layer(layer: Any) -> _Layer:
    attention = layer.self_attn
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    query_norm, key_norm = (None if norm is None else _array(norm.weight) for norm in norms)
    biases: dict[str, Rows] = {}
    for name, parts in _PARTS.items():
        modules = [layer.get_submodule(part) for part in parts]
        if any(module.bias is not None for module in modules):
            biases[name] = np.concatenate([_bias(module) for module in modules])
    return _Layer(
        _array(layer.input_layernorm.weight),
        _array(layer.post_attention_layernorm.weight),
        query_norm,
        key_norm,
        biases,
    )


def _bias(module: Any) -> Rows:
    return np.zeros(module.out_features, np.float32) if module.bias is None else _array(module.bias)


def _array(tensor: torch.Tensor) -> Rows:
    array: Rows = tensor.detach().to(torch.float32).cpu().numpy()
    return array


def cached_rows(snapshot: CacheSnapshot) -> list[tuple[Rows, Rows]]:
    """Return every layer's keys and values, [tokens, kv_heads, head_dim] float32.

    Raises UnsupportedCacheError, naming the kind, for a layer that holds anything but all tokens' keys and values.
    """
    found = []
    for index, (layout, tensors) in enumerate(zip(snapshot.layout.layers, snapshot.layers, strict=True)):
        if layout.kind != "full":
            raise UnsupportedCacheError(f"layer {index} of the cache is {layout.kind}, expected full")
        keys, values = (_array(tensors[name][0]).swapaxes(0, 1) for name in ("keys", "values"))
        found.append((keys, values))
    return found


# --- both callables in the clear ------------------------------------------------------------------------------


class LocalAttention:
    """`attend` with the whole cache here; what the other modes are compared with."""

    def __init__(self, layers: int) -> None:
        self._rows: list[tuple[list[Rows], list[Rows]]] = [([], []) for _ in range(layers)]

    def load(self, layer: int, keys: Rows, values: Rows) -> None:
        """Take a prefix's rows [tokens, kv_heads, head_dim]."""
        held = self._rows[layer]
        held[0].extend(keys)
        held[1].extend(values)

    def attend(self, layer: int, query: Rows, key: Rows, value: Rows) -> Rows:
        """Return one token's output; an `Attend`."""
        self.load(layer, key[None], value[None])
        group = len(query) // len(key)
        keys, values = (np.repeat(np.array(rows, np.float64), group, axis=1) for rows in self._rows[layer])
        scores = np.einsum("hd,nhd->hn", query, keys)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        output: Rows = np.einsum("hn,nhd->hd", weights / weights.sum(axis=1, keepdims=True), values)
        return output


class LocalLinear:
    """`linear` with the matrices here."""

    def __init__(self, held: Mapping[tuple[int, str], Rows]) -> None:
        self._matrices = held

    def linear(self, layer: int, name: str, vector: Rows) -> Rows:
        """Return matrix times vector; a `Linear`."""
        return self._matrices[layer, name] @ vector.astype(np.float32)
