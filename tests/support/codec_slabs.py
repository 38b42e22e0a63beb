"""Snapshots of chosen contents, and slabs moved from a packed cache into a sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from splitinfer import codec
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.handoff import CacheLayout, LayerLayout
from tests.support import layouts


def full(dtype: str = "bfloat16", heads: int = 2, dim: int = 8) -> LayerLayout:
    return layouts.full((heads, dim), (heads, dim), dtype)


def sliding(window: int, dtype: str = "bfloat16") -> LayerLayout:
    return layouts.sliding(window, (2, 8), (2, 6), dtype)


def snapshot_of(
    layout: CacheLayout, tokens: int, make: Callable[[tuple[int, ...], str], torch.Tensor]
) -> CacheSnapshot:
    """Fill every part by its shape and dtype."""
    layers = tuple(
        {tensor.name: make(shape_of(layer, tensor, tokens), tensor.dtype) for tensor in layer.tensors}
        for layer in layout.layers
    )
    return CacheSnapshot(layout, tokens, layers)


def normal(layout: CacheLayout, tokens: int, seed: int = 0) -> CacheSnapshot:
    """Draw elements around means that differ by channel, as keys are."""
    generator = torch.Generator().manual_seed(seed)

    def make(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        means = 3 * torch.randn((*shape[:2], 1, *shape[3:]), generator=generator)
        return (means + torch.randn(shape, generator=generator)).to(DTYPES[dtype])

    return snapshot_of(layout, tokens, make)


def any_bits(layout: CacheLayout, tokens: int, seed: int = 0) -> CacheSnapshot:
    """Draw random bits: NaN payloads, infinities, subnormals and negative zeros are among them."""
    generator = torch.Generator().manual_seed(seed)

    def make(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        size = (*shape[:-1], shape[-1] * DTYPES[dtype].itemsize)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).view(DTYPES[dtype])

    return snapshot_of(layout, tokens, make)


def tensors(snapshot: CacheSnapshot) -> list[torch.Tensor]:
    return [
        layer[tensor.name]
        for shape, layer in zip(snapshot.layout.layers, snapshot.layers, strict=True)
        for tensor in shape.tensors
    ]


def bits(snapshot: CacheSnapshot) -> list[bytes]:
    return [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors(snapshot)]


def coded(snapshot: CacheSnapshot, name: str, padded_tokens: int) -> bytes:
    return b"".join(map(bytes, codec.pack(snapshot, codec=name, padded_tokens=padded_tokens).slabs()))


def new_sink(layout: CacheLayout, name: str, tokens: int, padded_tokens: int, size_bytes: int) -> Any:
    announced = size_bytes if codec.CODECS[name].is_variable else None
    return codec.sink(layout, codec=name, true_tokens=tokens, padded_tokens=padded_tokens, coded_bytes=announced)


def fill(sink: Any, data: bytes) -> memoryview:
    """Fill a sink as `receive` does; returns the last memory that it gave out."""
    at, slab = 0, memoryview(b"")
    for size in sink.sizes():
        slab = sink.slab()
        assert len(slab) == size
        slab[:] = data[at : at + size]
        at += size
    assert at == len(data) == sink.size_bytes
    return slab


def moved(snapshot: CacheSnapshot, name: str, padded_tokens: int) -> CacheSnapshot:
    data = coded(snapshot, name, padded_tokens)
    sink = new_sink(snapshot.layout, name, snapshot.true_tokens, padded_tokens, len(data))
    fill(sink, data)
    return sink.finish()
