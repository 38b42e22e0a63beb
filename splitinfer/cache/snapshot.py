"""Live cache <-> CacheSnapshot, by a closed table of layer kinds; both sides.

In: the `DynamicCache` that a forward filled (batch 1). Out: a frozen `CacheSnapshot`, and from it a cache that
continues as if it had never moved. Tensors are shared, not copied: a live layer never changes its tensors, every
update makes new ones. A layer kind outside the table, or an attribute that the table does not list, is refused by
name, because state that is not carried along gives wrong tokens without any error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from splitinfer.errors import LayoutMismatchError, UnsupportedCacheError
from splitinfer.handoff import CacheLayout, LayerKind, LayerLayout

__all__ = [
    "DTYPES",
    "CacheSnapshot",
    "LayerTensors",
    "cut",
    "held_rows",
    "layout_of",
    "new_cache",
    "restore",
    "take",
    "wipe",
    "wipe_live",
]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_FULL_ATTRIBUTES = frozenset({"keys", "values", "is_initialized", "dtype", "device"})
_SLIDING_ATTRIBUTES = frozenset({"sliding_window", "cumulative_length", "_sliding_window_tensor", "record_past"})
_CACHE_ATTRIBUTES = frozenset({"layers", "layer_class_to_replicate", "offloading"})


@dataclass(frozen=True, slots=True)
class _Kind:
    layer_class: type[Any]
    attributes: frozenset[str]


_KINDS: dict[LayerKind, _Kind] = {
    "full": _Kind(DynamicLayer, _FULL_ATTRIBUTES),
    "sliding": _Kind(DynamicSlidingWindowLayer, _FULL_ATTRIBUTES | _SLIDING_ATTRIBUTES),
}


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One layer's state: `keys` and `values` are [1, heads, rows, dim]; `rows` is `held_rows(layer, true_tokens)`."""

    keys: torch.Tensor = field(repr=False)
    values: torch.Tensor = field(repr=False)


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The frozen cache of `true_tokens` tokens. Only `wipe` changes its tensors."""

    layout: CacheLayout
    true_tokens: int
    layers: tuple[LayerTensors, ...] = field(repr=False)


def held_rows(layer: LayerLayout, tokens: int) -> int:
    """Return how many rows a layer holds after `tokens` tokens: all, or the last W - 1 for a sliding layer."""
    return tokens if layer.kind == "full" else min(tokens, layer.window - 1)


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """Make the empty live cache of a model; raises UnsupportedCacheError for a kind outside the table."""
    try:
        cache = DynamicCache(config=config)
    except KeyError as error:
        raise UnsupportedCacheError(f"the model has cache layers of type {error}, which cannot travel") from None
    for index, layer in enumerate(cache.layers):
        _kind_of(index, layer)
    return cache


def take(cache: DynamicCache, *, true_tokens: int) -> CacheSnapshot:
    """Freeze a live cache that holds `true_tokens` tokens, without copying.

    Raises UnsupportedCacheError for a layer kind that is not in the table, or a layer that was never filled;
    LayoutMismatchError where the cache holds another number of tokens.
    """
    _require_known_cache(cache)
    layouts, tensors = [], []
    for index, layer in enumerate(cache.layers):
        layouts.append(_layer_layout(index, layer))
        tensors.append(LayerTensors(layer.keys, layer.values))
        if layer.get_seq_length() != true_tokens:
            raise LayoutMismatchError(f"layer {index} holds {layer.get_seq_length()} tokens, not {true_tokens}")
    snapshot = CacheSnapshot(CacheLayout(tuple(layouts)), true_tokens, tuple(tensors))
    _require_shapes(snapshot)
    return snapshot


def restore(snapshot: CacheSnapshot, config: PreTrainedConfig, *, device: torch.device | None = None) -> DynamicCache:
    """Set up a live cache that continues after the snapshot's last token; `device` moves the tensors there.

    Every layer's class comes from the model's own config and is compared with the snapshot's layout; raises
    LayoutMismatchError where they differ.
    """
    _require_shapes(snapshot)
    cache = new_cache(config)
    if len(cache.layers) != len(snapshot.layers):
        raise LayoutMismatchError(f"the model has {len(cache.layers)} cache layers, the cache {len(snapshot.layers)}")
    for index, (layer, layout, tensors) in enumerate(
        zip(cache.layers, snapshot.layout.layers, snapshot.layers, strict=True)
    ):
        _fill(index, layer, layout, tensors, true_tokens=snapshot.true_tokens, device=device)
    return cache


def layout_of(model: PreTrainedModel) -> CacheLayout:
    """Return the model's cache layout, found by a forward of one token; nothing of it is kept.

    Raises UnsupportedCacheError, naming the kind, for a model whose state cannot travel.
    """
    cache = new_cache(model.config)
    with torch.inference_mode():
        model.base_model(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True
        )
    return take(cache, true_tokens=1).layout


def cut(snapshot: CacheSnapshot, tokens: int) -> CacheSnapshot:
    """Return the first `tokens` tokens of a snapshot as views.

    Raises UnsupportedCacheError where a sliding layer no longer holds the rows that it held then.
    """
    if not 0 < tokens <= snapshot.true_tokens:
        raise LayoutMismatchError(f"cannot cut a cache of {snapshot.true_tokens} tokens to {tokens}")
    if tokens == snapshot.true_tokens:
        return snapshot
    for index, layer in enumerate(snapshot.layout.layers):
        if held_rows(layer, snapshot.true_tokens) < snapshot.true_tokens:
            raise UnsupportedCacheError(f"layer {index} has a window of {layer.window}: its earlier rows are gone")
    layers = tuple(LayerTensors(layer.keys[:, :, :tokens], layer.values[:, :, :tokens]) for layer in snapshot.layers)
    return CacheSnapshot(snapshot.layout, tokens, layers)


def wipe(snapshot: CacheSnapshot) -> None:
    """Zero the snapshot's memory, including rows outside its views (best effort: freed copies are out of reach)."""
    with torch.inference_mode():
        for tensor in _tensors(snapshot):
            _zero_storage(tensor)


def wipe_live(cache: DynamicCache) -> None:
    """Zero a live cache's memory (best effort). Snapshots that share its tensors are zeroed with it."""
    with torch.inference_mode():
        for layer in cache.layers:
            for tensor in (layer.keys, layer.values):
                if tensor is not None:
                    _zero_storage(tensor)


def _zero_storage(tensor: torch.Tensor) -> None:
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    tensor.as_strided((elements,), (1,), 0).zero_()


def _tensors(snapshot: CacheSnapshot) -> Iterator[torch.Tensor]:
    for layer in snapshot.layers:
        yield layer.keys
        yield layer.values


def _kind_of(index: int, layer: Any) -> LayerKind:
    for kind, entry in _KINDS.items():
        # The exact class: a subclass carries state that this table does not know.
        if type(layer) is entry.layer_class:
            unknown = sorted(set(vars(layer)) - entry.attributes)
            if unknown:
                raise UnsupportedCacheError(f"cache layer {index} has state that cannot travel: {', '.join(unknown)}")
            return kind
    raise UnsupportedCacheError(f"cache layer {index} is a {type(layer).__name__}; only {', '.join(_KINDS)} can travel")


def _require_known_cache(cache: DynamicCache) -> None:
    unknown = set(vars(cache)) - _CACHE_ATTRIBUTES
    if type(cache) is not DynamicCache or unknown or not cache.layers:
        names = ", ".join(sorted(unknown)) or "no layers"
        raise UnsupportedCacheError(
            f"the model keeps its state in a {type(cache).__name__} ({names}), not a plain cache"
        )


def _layer_layout(index: int, layer: Any) -> LayerLayout:
    kind = _kind_of(index, layer)
    if not layer.is_initialized or layer.keys.dim() != 4 or layer.values.dim() != 4:
        raise UnsupportedCacheError(f"cache layer {index} was not filled by the model: its state is kept elsewhere")
    if layer.keys.shape[0] != 1 or layer.keys.dtype not in _DTYPE_NAMES or layer.values.dtype != layer.keys.dtype:
        raise UnsupportedCacheError(f"cache layer {index} is not batch 1 in one of {', '.join(DTYPES)}")
    window = layer.sliding_window if kind == "sliding" else 0
    if kind == "sliding" and (window < 2 or layer.record_past):
        raise UnsupportedCacheError(f"cache layer {index} has a window of {window} or records the past")
    return LayerLayout(
        kind=kind,
        key_heads=layer.keys.shape[1],
        key_dim=layer.keys.shape[3],
        value_heads=layer.values.shape[1],
        value_dim=layer.values.shape[3],
        dtype=_DTYPE_NAMES[layer.keys.dtype],
        window=window,
    )


def _require_shapes(snapshot: CacheSnapshot) -> None:
    for index, (layer, tensors) in enumerate(zip(snapshot.layout.layers, snapshot.layers, strict=True)):
        rows = held_rows(layer, snapshot.true_tokens)
        wanted = ((1, layer.key_heads, rows, layer.key_dim), (1, layer.value_heads, rows, layer.value_dim))
        if (tuple(tensors.keys.shape), tuple(tensors.values.shape)) != wanted:
            raise LayoutMismatchError(f"layer {index} does not hold the {rows} rows of its layout")
        if {tensors.keys.dtype, tensors.values.dtype} != {DTYPES.get(layer.dtype)}:
            raise LayoutMismatchError(f"layer {index} is not {layer.dtype}")


def _fill(
    index: int, layer: Any, layout: LayerLayout, tensors: LayerTensors, *, true_tokens: int, device: torch.device | None
) -> None:
    kind = _kind_of(index, layer)
    if kind != layout.kind or (kind == "sliding" and layer.sliding_window != layout.window):
        raise LayoutMismatchError(f"layer {index} of the model is not a {layout.kind} layer of window {layout.window}")
    keys, values = (part if device is None else part.to(device) for part in (tensors.keys, tensors.values))
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    if kind == "sliding":
        # Positions and mask follow from this count; without it a full window continues at wrong positions.
        layer.cumulative_length = true_tokens
