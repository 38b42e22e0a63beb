"""Live cache <-> CacheSnapshot, by the closed table of layer kinds (`cache.kinds`); both sides.

In: the cache that a forward filled (batch 1). Out: a frozen `CacheSnapshot`, and from it a cache that continues as if
it had never moved. Rows of tokens and windows are shared, not copied: every update of a live layer makes new tensors
of them. The other states may stay in place or change in place, and are copied on both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from splitinfer.cache.kinds import Kind, kind_of, stride_of, window_of
from splitinfer.cache.live import feed, layers_of, new_cache, zero_storage
from splitinfer.cache.parts import Part
from splitinfer.errors import LayoutMismatchError, UnsupportedCacheError
from splitinfer.handoff import CacheLayout, LayerLayout, TensorLayout, TensorName
from splitinfer.schedule import held_rows

__all__ = [
    "DTYPES",
    "CacheSnapshot",
    "LayerTensors",
    "cut",
    "layout_of",
    "require_rows",
    "restore",
    "shape_of",
    "storages",
    "take",
    "wipe",
]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SHARED = ("tokens", "window")

LayerTensors = Mapping[TensorName, torch.Tensor]
"""One layer's tensors by name, those of its layout; each has the shape `shape_of(layer, tensor, true_tokens)`."""


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The frozen cache of `true_tokens` tokens. Only `wipe` changes its tensors."""

    layout: CacheLayout
    true_tokens: int
    layers: tuple[LayerTensors, ...] = field(repr=False)


def shape_of(layer: LayerLayout, tensor: TensorLayout, tokens: int) -> tuple[int, ...]:
    """Return the shape of a tensor after `tokens` tokens, the batch of 1 included."""
    if tensor.rows == "fixed":
        return (1, *tensor.before)
    return (1, *tensor.before, held_rows(layer, tensor, tokens), *tensor.after)


def take(cache: DynamicCache, *, true_tokens: int, layout: CacheLayout | None = None) -> CacheSnapshot:
    """Freeze a live cache that holds `true_tokens` tokens.

    `layout` is the model's, where it is known: it says what form a state has that is still empty, and the cache is
    compared with it. Raises UnsupportedCacheError for a layer kind that is not in the table, a layer that was never
    filled, or flags that do not follow from its tensors; LayoutMismatchError where the cache holds another number of
    tokens or has another layout.
    """
    layers = layers_of(cache)
    if layout is not None and len(layout.layers) != len(layers):
        raise LayoutMismatchError(f"the cache has {len(layers)} layers, the model's layout {len(layout.layers)}")
    expected = layout.layers if layout is not None else [None] * len(layers)
    taken = [_taken(i, x, wanted, true_tokens) for i, (x, wanted) in enumerate(zip(layers, expected, strict=True))]
    snapshot = CacheSnapshot(CacheLayout(tuple(x for x, _ in taken)), true_tokens, tuple(x for _, x in taken))
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
    """Return the model's cache layout, found by a forward of one token, or one stride; nothing of it is kept.

    Raises UnsupportedCacheError, naming the kind, for a model whose state cannot travel.
    """
    cache = new_cache(model.config)
    tokens = max(1, *(stride_of(layer) for layer in cache.layers))
    with torch.inference_mode():
        feed(model.base_model, [0] * tokens, cache)
    return take(cache, true_tokens=tokens).layout


def require_rows(layout: CacheLayout, true_tokens: int) -> None:
    """Raise UnsupportedCacheError, naming the layer, where a cache no longer has its state after each token."""
    for index, layer in enumerate(layout.layers):
        if any(tensor.rows not in _SHARED for tensor in layer.tensors):
            raise UnsupportedCacheError(f"layer {index} is a {layer.kind} layer: its earlier states are gone")
        if any(held_rows(layer, tensor, true_tokens) < true_tokens for tensor in layer.tensors):
            raise UnsupportedCacheError(f"layer {index} has a window of {layer.window}: its earlier rows are gone")


def cut(snapshot: CacheSnapshot, tokens: int) -> CacheSnapshot:
    """Return the first `tokens` tokens of a snapshot as views.

    Raises UnsupportedCacheError where a layer no longer holds the rows or states that it held then.
    """
    if not 0 < tokens <= snapshot.true_tokens:
        raise LayoutMismatchError(f"cannot cut a cache of {snapshot.true_tokens} tokens to {tokens}")
    if tokens == snapshot.true_tokens:
        return snapshot
    require_rows(snapshot.layout, snapshot.true_tokens)
    layers = tuple(
        {tensor.name: tensors[tensor.name].narrow(1 + len(tensor.before), 0, tokens) for tensor in layer.tensors}
        for layer, tensors in zip(snapshot.layout.layers, snapshot.layers, strict=True)
    )
    return CacheSnapshot(snapshot.layout, tokens, layers)


def wipe(snapshot: CacheSnapshot) -> None:
    """Zero the snapshot's memory, including rows outside its views (best effort: freed copies are out of reach)."""
    with torch.inference_mode():
        for layer in snapshot.layers:
            for tensor in layer.values():
                zero_storage(tensor)


def storages(snapshot: CacheSnapshot) -> dict[int, int]:
    """Return the memory that a snapshot stands in: bytes by address, each storage once, empty ones left out."""
    found = (tensor.untyped_storage() for layer in snapshot.layers for tensor in layer.values())
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def _taken(index: int, layer: Any, expected: LayerLayout | None, true_tokens: int) -> tuple[LayerLayout, LayerTensors]:
    kind = kind_of(index, layer)
    layout = LayerLayout(kind.name, tuple(_tensors(index, kind, layer, expected)), window_of(layer), stride_of(layer))
    _require_filled(index, kind, layer, layout)
    if hasattr(layer, "get_seq_length") and layer.get_seq_length() != true_tokens:
        raise LayoutMismatchError(f"layer {index} holds {layer.get_seq_length()} tokens, not {true_tokens}")
    if not all(flag.is_set(layer) for flag in kind.flags_of(layer, true_tokens)):
        raise UnsupportedCacheError(f"cache layer {index} has marks that do not follow from its tensors and tokens")
    if expected is not None and layout != expected:
        raise LayoutMismatchError(f"cache layer {index} is not of the model's layout")
    return layout, {tensor.name: _held(kind, layer, layout, tensor) for tensor in layout.tensors}


def _tensors(index: int, kind: Kind, layer: Any, expected: LayerLayout | None) -> Iterator[TensorLayout]:
    known = {} if expected is None else {tensor.name: tensor for tensor in expected.tensors}
    for part in kind.parts:
        tensor = part.read(layer)
        if tensor is not None:
            yield _tensor_layout(index, part, tensor)
        elif part.rows == "overlap" and part.name in known:
            yield known[part.name]


def _tensor_layout(index: int, part: Part, tensor: torch.Tensor) -> TensorLayout:
    if part.rows != "fixed" and tensor.dim() != part.lead + 3:
        raise UnsupportedCacheError(f"cache layer {index} was not filled by the model: its state is kept elsewhere")
    if tensor.shape[0] != 1 or tensor.dtype not in _DTYPE_NAMES:
        raise UnsupportedCacheError(f"cache layer {index} is not batch 1 in one of {', '.join(DTYPES)}")
    dims = tuple(tensor.shape[1:])
    cut_at = len(dims) if part.rows == "fixed" else part.lead
    return TensorLayout(part.name, _DTYPE_NAMES[tensor.dtype], part.rows, dims[:cut_at], dims[cut_at + 1 :])


def _require_filled(index: int, kind: Kind, layer: Any, layout: LayerLayout) -> None:
    if kind.parts and not layout.tensors:
        raise UnsupportedCacheError(f"cache layer {index} was not filled by the model: its state is kept elsewhere")
    is_sliding = any(tensor.rows == "window" for tensor in layout.tensors)
    if is_sliding and (layout.window < 2 or layer.record_past):
        raise UnsupportedCacheError(f"cache layer {index} has a window of {layout.window} or records the past")


def _held(kind: Kind, layer: Any, layout: LayerLayout, tensor: TensorLayout) -> torch.Tensor:
    part = kind.part(tensor.name)
    live = None if part is None else part.read(layer)
    if live is None:
        return torch.empty(shape_of(layout, tensor, 0), dtype=DTYPES[tensor.dtype])
    return live if tensor.rows in _SHARED else live.clone()


def _require_shapes(snapshot: CacheSnapshot) -> None:
    for index, (layer, tensors) in enumerate(zip(snapshot.layout.layers, snapshot.layers, strict=True)):
        if set(tensors) != {tensor.name for tensor in layer.tensors}:
            raise LayoutMismatchError(f"layer {index} does not hold the tensors of its layout")
        for tensor in layer.tensors:
            found = tensors[tensor.name]
            if tuple(found.shape) != shape_of(layer, tensor, snapshot.true_tokens):
                rows = held_rows(layer, tensor, snapshot.true_tokens)
                raise LayoutMismatchError(f"{tensor.name} of layer {index} are not the {rows} rows of the layout")
            if found.dtype != DTYPES.get(tensor.dtype):
                raise LayoutMismatchError(f"{tensor.name} of layer {index} are not {tensor.dtype}")


def _fill(
    index: int, layer: Any, layout: LayerLayout, tensors: LayerTensors, *, true_tokens: int, device: torch.device | None
) -> None:
    kind = kind_of(index, layer)
    if (kind.name, window_of(layer), stride_of(layer)) != (layout.kind, layout.window, layout.stride):
        raise LayoutMismatchError(f"layer {index} of the model is not a {layout.kind} layer of window {layout.window}")
    for tensor in layout.tensors:
        part = kind.part(tensor.name)
        if part is None or part.rows != tensor.rows:
            raise LayoutMismatchError(f"a {layout.kind} layer has no {tensor.name} of that form")
        if tensor.rows != "overlap" or tensors[tensor.name].numel():
            part.write(layer, _own(tensors[tensor.name], tensor, device))
    for flag in kind.flags_of(layer, true_tokens):
        flag.write(layer)


def _own(tensor: torch.Tensor, layout: TensorLayout, device: torch.device | None) -> torch.Tensor:
    moved = tensor if device is None else tensor.to(device)
    return moved.clone() if layout.rows not in _SHARED and moved is tensor else moved
