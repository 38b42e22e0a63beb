"""Layer layouts of every kind, small, for tests that need no model."""

from __future__ import annotations

import torch

from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.handoff import CacheLayout, LayerLayout, RowRule, TensorLayout, TensorName


def attention_tensors(
    keys: tuple[int, int], values: tuple[int, int], dtype: str, rows: RowRule
) -> tuple[TensorLayout, TensorLayout]:
    """Keys and values, each given as (heads, dim)."""
    return (
        TensorLayout("keys", dtype, rows, keys[:1], keys[1:]),
        TensorLayout("values", dtype, rows, values[:1], values[1:]),
    )


def full(keys: tuple[int, int] = (2, 3), values: tuple[int, int] = (2, 5), dtype: str = "float32") -> LayerLayout:
    return LayerLayout("full", attention_tensors(keys, values, dtype, "tokens"))


def sliding(
    window: int, keys: tuple[int, int] = (2, 3), values: tuple[int, int] = (2, 3), dtype: str = "float32"
) -> LayerLayout:
    return LayerLayout("sliding", attention_tensors(keys, values, dtype, "window"), window)


def indexed(dtype: str = "float32") -> LayerLayout:
    indexer = TensorLayout("indexer_keys", dtype, "tokens", (), (4,))
    return LayerLayout("indexed", (*full(dtype=dtype).tensors, indexer))


def linear(dtype: str = "float32") -> LayerLayout:
    return LayerLayout("linear", state_tensors(dtype))


def linear_full(dtype: str = "float32") -> LayerLayout:
    return LayerLayout("linear_full", (*full(dtype=dtype).tensors, *state_tensors(dtype)))


def linear_sliding(window: int, dtype: str = "float32") -> LayerLayout:
    return LayerLayout("linear_sliding", (*sliding(window, dtype=dtype).tensors, *state_tensors(dtype)), window)


def lightning(dtype: str = "float32") -> LayerLayout:
    return LayerLayout("lightning", (TensorLayout("linear_state", dtype, "fixed", (2, 3, 3)),))


def empty() -> LayerLayout:
    return LayerLayout("empty", ())


def state_tensors(dtype: str) -> tuple[TensorLayout, TensorLayout]:
    return (
        TensorLayout("conv_states_0", dtype, "fixed", (6, 4)),
        TensorLayout("recurrent_states_0", "float32", "fixed", (2, 3, 5)),
    )


def compressed(window: int, stride: int, dtype: str = "float32") -> LayerLayout:
    keys = TensorLayout("keys", dtype, "window", (1,), (3,))
    return LayerLayout("compressed", (keys, *_compressor("compressor", dtype, is_sparse=False)), window, stride)


def compressed_sparse(window: int, stride: int, dtype: str = "float32") -> LayerLayout:
    keys = TensorLayout("keys", dtype, "window", (1,), (3,))
    parts = (*_compressor("compressor", dtype, is_sparse=True), *_compressor("indexer", dtype, is_sparse=True))
    return LayerLayout("compressed_sparse", (keys, *parts), window, stride)


def _compressor(name: str, dtype: str, *, is_sparse: bool) -> tuple[TensorLayout, ...]:
    forms: list[tuple[str, RowRule, int]] = [
        ("compressed_kv", "entries", 3),
        ("buffer_kv", "remainder", 6),
        ("buffer_gate", "remainder", 6),
    ]
    if is_sparse:
        forms += [("overlap_kv", "overlap", 3), ("overlap_gate", "overlap", 3)]
    return tuple(TensorLayout(_name(f"{name}_{part}"), dtype, rows, (), (dim,)) for part, rows, dim in forms)


def _name(text: str) -> TensorName:
    return text  # type: ignore[return-value]


def every_kind(dtype: str = "float32", *, window: int = 9, stride: int = 4) -> tuple[LayerLayout, ...]:
    return (
        full(dtype=dtype),
        sliding(window, dtype=dtype),
        indexed(dtype),
        linear(dtype),
        linear_full(dtype),
        linear_sliding(window, dtype),
        compressed(window, stride, dtype),
        compressed_sparse(window, stride, dtype),
        lightning(dtype),
        empty(),
    )


def random_snapshot(layout: CacheLayout, tokens: int, seed: int = 0) -> CacheSnapshot:
    """Random bits, so that NaN payloads and negative zeros are among them."""
    generator = torch.Generator().manual_seed(seed)

    def filled(layer: LayerLayout, tensor: TensorLayout) -> torch.Tensor:
        dtype = DTYPES[tensor.dtype]
        *outer, last = shape_of(layer, tensor, tokens)
        return torch.randint(0, 256, (*outer, last * dtype.itemsize), dtype=torch.uint8, generator=generator).view(
            dtype
        )

    layers = tuple({tensor.name: filled(layer, tensor) for tensor in layer.tensors} for layer in layout.layers)
    return CacheSnapshot(layout, tokens, layers)


def bits(snapshot: CacheSnapshot) -> list[bytes]:
    """Return the bytes of every tensor, in the layout's order."""
    return [
        tensors[tensor.name].contiguous().view(torch.uint8).numpy().tobytes()
        for layer, tensors in zip(snapshot.layout.layers, snapshot.layers, strict=True)
        for tensor in layer.tensors
    ]
