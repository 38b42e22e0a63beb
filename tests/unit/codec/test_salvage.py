"""What a broken transfer leaves of a cache: whole steps in all layers, or nothing."""

from __future__ import annotations

import pytest
import torch

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.codec.sinks import CacheSink
from splitinfer.errors import CodecError, LayoutMismatchError
from splitinfer.handoff import CacheLayout
from tests.support.layouts import full, sliding

TOKENS = 1300
PADDED = schedule.pad_tokens(TOKENS)
FULL = CacheLayout((full((2, 8), (2, 4)), full((2, 8), (2, 4))))
ENDS = (100, 512, 700, 1024, 1300)


def snapshot_of(layout: CacheLayout) -> CacheSnapshot:
    layers = tuple(
        {
            tensor.name: torch.randn(shape_of(layer, tensor, TOKENS), dtype=torch.float32).to(DTYPES[tensor.dtype])
            for tensor in layer.tensors
        }
        for layer in layout.layers
    )
    return CacheSnapshot(layout, TOKENS, layers)


def partly(snapshot: CacheSnapshot, slabs: int, *, name: str = "raw", spoilt: int | None = None) -> CacheSink:
    """Fill so many slabs, and ask for the memory of the next one."""
    packed = codec.pack(snapshot, codec=name, padded_tokens=PADDED)
    announced = packed.size_bytes if packed.is_variable else None
    sink = codec.sink(snapshot.layout, codec=name, true_tokens=TOKENS, padded_tokens=PADDED, coded_bytes=announced)
    data, at = b"".join(map(bytes, packed.slabs())), 0
    pieces = slabs if announced is None else 2 * slabs
    for index, size in enumerate(sink.sizes()):
        memory = sink.slab()
        if index == pieces:
            break
        memory[:] = data[at : at + size]
        if index == spoilt:
            memory[-1] ^= 1
        at += size
    return sink


SLABS_A_RANGE = 2 * 2


@pytest.mark.parametrize("name", ["raw", "lossless"])
@pytest.mark.parametrize(
    ("slabs", "tokens"), [(0, 0), (3, 0), (4, 512), (5, 512), (7, 512), (8, 1024), (11, 1024), (12, 1300)]
)
def test_the_steps_that_came_in_all_layers_are_given_out(name: str, slabs: int, tokens: int) -> None:
    snapshot = snapshot_of(FULL)
    part = partly(snapshot, slabs, name=name).salvage(ENDS)
    if not tokens:
        assert part is None
        return
    assert part is not None
    assert part.true_tokens == tokens
    for layer, whole in zip(part.layers, snapshot.layers, strict=True):
        for tensor_name, tensor in layer.items():
            assert torch.equal(tensor, whole[tensor_name][:, :, :tokens])


def test_a_part_ends_where_a_step_ends() -> None:
    sink = partly(snapshot_of(FULL), 8)
    part = sink.salvage((300, 900, 1300))
    assert part is not None
    assert part.true_tokens == 900


def test_nothing_is_given_out_before_the_first_step_ended() -> None:
    assert partly(snapshot_of(FULL), 4).salvage((600, 1300)) is None


def test_a_layout_with_anything_but_rows_of_tokens_gives_nothing_out() -> None:
    layout = CacheLayout((full((2, 8), (2, 4)), sliding(17, (1, 8), (1, 8))))
    assert partly(snapshot_of(layout), 6).salvage(ENDS) is None


def test_the_sink_is_wiped_and_closed_afterwards() -> None:
    sink = partly(snapshot_of(FULL), 5)
    staging = sink._staging
    assert sink.salvage((1300,)) is None
    assert not staging.any()
    assert not sink._assembly._parts
    with pytest.raises(CodecError):
        sink.slab()


def test_a_slab_that_no_sender_writes_is_refused_as_in_a_whole_cache() -> None:
    """Padding of the last range is not zero; the ranges before are honest."""
    sink = partly(snapshot_of(FULL), 12, spoilt=9)
    with pytest.raises(LayoutMismatchError):
        sink.salvage(ENDS)
