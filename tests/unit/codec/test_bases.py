"""A cache that arrives on a base: every codec, every layer kind, the bits of the whole, and a base that stays whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.errors import LayoutMismatchError
from splitinfer.handoff import CacheLayout
from tests.support.codec_slabs import bits, fill, normal
from tests.support.layouts import every_kind, full, sliding
from tests.support.turns import is_wiped

LAYOUT = CacheLayout((full(), sliding(9)))


def values(layout: CacheLayout, tokens: int, seed: int) -> CacheSnapshot:
    """Make a cache of every kind of layer with random values."""
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(
        {
            tensor.name: torch.randn(shape_of(layer, tensor, tokens), generator=generator).to(DTYPES[tensor.dtype])
            for tensor in layer.tensors
        }
        for layer in layout.layers
    )
    return CacheSnapshot(layout, tokens, layers)


def beginning(snapshot: CacheSnapshot, tokens: int) -> CacheSnapshot:
    """Return what was there after so many tokens: the same rows of tokens and entries, other windows and states."""
    made = values(snapshot.layout, tokens, 99)
    for layout, layer, whole in zip(snapshot.layout.layers, made.layers, snapshot.layers, strict=True):
        for tensor in layout.tensors:
            if tensor.rows in ("tokens", "entries"):
                rows = schedule.held_rows(layout, tensor, tokens)
                layer[tensor.name].copy_(whole[tensor.name].narrow(1 + len(tensor.before), 0, rows))
    return made


def arrived(snapshot: CacheSnapshot, base: CacheSnapshot, name: str) -> CacheSnapshot:
    padded = schedule.pad_new_tokens(snapshot.true_tokens, base.true_tokens)
    packed = codec.pack(snapshot, codec=name, padded_tokens=padded, base_tokens=base.true_tokens, is_shared=True)
    announced = packed.size_bytes if packed.is_variable else None
    sink = codec.sink(
        snapshot.layout,
        codec=name,
        true_tokens=snapshot.true_tokens,
        padded_tokens=padded,
        coded_bytes=announced,
        base=base,
    )
    data = b"".join(map(bytes, packed.slabs()))
    assert len(data) == packed.size_bytes == sink.size_bytes
    fill(sink, data)
    packed.wipe()
    finished: CacheSnapshot = sink.finish()
    return finished


@settings(deadline=None, max_examples=40)
@given(
    order=st.lists(st.sampled_from(every_kind()), min_size=1, max_size=3),
    name=st.sampled_from(("raw", "lossless")),
    base=st.integers(1, 700),
    new=st.integers(1, 300),
)
def test_exact_codecs_give_the_bits_of_the_whole(order: list, name: str, base: int, new: int) -> None:
    snapshot = values(CacheLayout(tuple(order)), base + new, 1)
    start = beginning(snapshot, base)
    before = bits(start)
    assert bits(arrived(snapshot, start, name)) == bits(snapshot)
    assert bits(start) == before


@pytest.mark.parametrize("name", ["q8", "k8v4", "k6v4", "q4"])
def test_lossy_codecs_round_only_what_is_new(name: str) -> None:
    snapshot = normal(CacheLayout((full((2, 8), (2, 8)),)), 300)
    received = arrived(snapshot, beginning(snapshot, 70), name)
    for key in ("keys", "values"):
        assert torch.equal(received.layers[0][key][:, :, :70], snapshot.layers[0][key][:, :, :70])
        assert float((received.layers[0][key] - snapshot.layers[0][key]).abs().max()) < 2.5


@pytest.mark.parametrize("name", list(codec.UNCALIBRATED))
def test_a_shared_cache_outlives_its_packed_form(name: str) -> None:
    snapshot = normal(LAYOUT, 20)
    codec.pack(snapshot, codec=name, padded_tokens=64, is_shared=True).wipe()
    assert not is_wiped(snapshot)
    codec.pack(snapshot, codec=name, padded_tokens=64).wipe()
    assert is_wiped(snapshot)


@pytest.mark.parametrize("base", [20, 21])
def test_a_base_that_leaves_nothing_to_bring_is_refused(base: int) -> None:
    with pytest.raises(LayoutMismatchError):
        codec.pack(normal(LAYOUT, 20), codec="raw", padded_tokens=84, base_tokens=base)
    with pytest.raises(LayoutMismatchError):
        codec.sink(LAYOUT, codec="raw", true_tokens=20, padded_tokens=84, base=normal(LAYOUT, base))


def test_a_base_of_another_layout_is_refused() -> None:
    with pytest.raises(LayoutMismatchError, match="layout"):
        codec.sink(LAYOUT, codec="raw", true_tokens=20, padded_tokens=74, base=normal(CacheLayout((full(),)), 10))
