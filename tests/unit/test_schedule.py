from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import LayoutMismatchError, ManifestError
from splitinfer.handoff import CacheLayout, LayerLayout
from splitinfer.schedule import (
    RANGE_TOKENS,
    SlabSpec,
    cache_chunk_bytes,
    certain_tokens,
    held_rows,
    item_bytes,
    pad_new_tokens,
    pad_tokens,
    sent_rows,
    slabs,
)
from splitinfer.sealing.stream import CHUNK_BYTES
from tests.support.layouts import (
    compressed,
    compressed_sparse,
    every_kind,
    full,
    indexed,
    linear,
    linear_sliding,
    sliding,
)

KIB, MIB = 1024, 1024 * 1024
FULL = full((2, 8), (3, 4))
KINDS = every_kind()
SLIDING = sliding(100, (1, 16), (1, 8), "bfloat16")
counts = st.integers(1, 2**24) | st.integers(1, 5000)


def padme(tokens: int) -> int:
    """Algorithm 1 of Nikitin et al., PoPETs 2019, as it is printed there."""
    exponent = math.floor(math.log2(tokens))
    significant = math.floor(math.log2(exponent)) + 1
    mask = (1 << (exponent - significant)) - 1
    return (tokens + mask) & ~mask


@given(tokens=counts)
@settings(deadline=None, max_examples=300)
def test_padding_is_a_multiple_of_64_and_at_most_12_percent_and_64_more(tokens: int) -> None:
    padded = pad_tokens(tokens)
    assert padded >= tokens
    assert padded % 64 == 0
    assert padded <= 1.12 * max(tokens, 64) + 64


@given(tokens=counts)
@settings(deadline=None, max_examples=300)
def test_padding_is_monotone_and_keeps_its_own_classes(tokens: int) -> None:
    assert pad_tokens(tokens) <= pad_tokens(tokens + 1)
    assert pad_tokens(pad_tokens(tokens)) == pad_tokens(tokens)


@given(tokens=st.integers(1, 50_000))
@settings(deadline=None, max_examples=200)
def test_all_counts_of_one_class_are_padded_alike(tokens: int) -> None:
    top = pad_tokens(tokens)
    assert {pad_tokens(count) for count in range(tokens, top + 1)} == {top}


def test_padding_agrees_with_the_paper() -> None:
    for tokens in range(64, 20_000):
        assert pad_tokens(tokens) == -(-padme(tokens) // 64) * 64


def test_certain_tokens_is_the_least_count_of_every_class() -> None:
    least: dict[int, int] = {}
    for tokens in range(1, 70_001):
        least.setdefault(pad_tokens(tokens), tokens)
    assert {padded: certain_tokens(padded) for padded in least} == least


@pytest.mark.parametrize("padded", [0, -64, 63, 65, 1100, 2112])
def test_count_that_is_no_size_class_has_no_certain_tokens(padded: int) -> None:
    with pytest.raises(LayoutMismatchError, match="no size class"):
        certain_tokens(padded)


def test_short_prompts_are_all_alike() -> None:
    assert {pad_tokens(count) for count in range(1, 65)} == {64}


def test_the_number_of_classes_is_small() -> None:
    assert len({pad_tokens(count) for count in range(1, 32_769)}) < 100


@given(padded=st.integers(1, 60).map(lambda blocks: blocks * 64), order=st.lists(st.sampled_from(KINDS), max_size=6))
@settings(deadline=None, max_examples=60)
def test_slabs_cover_every_row_of_every_layer_once(padded: int, order: list[LayerLayout]) -> None:
    layout = CacheLayout(tuple(order))
    rows: dict[tuple[int, str], list[int]] = {}
    for slab in slabs(layout, padded):
        rows.setdefault((slab.layer, slab.part), []).extend(range(slab.start, slab.stop))
    for index, layer in enumerate(layout.layers):
        for tensor in layer.tensors:
            assert rows.pop((index, tensor.name), []) == list(range(sent_rows(layer, tensor, padded)))
    assert not rows


@given(
    base=st.integers(1, 1500), new=st.integers(1, 1500), order=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)
)
@settings(deadline=None, max_examples=100)
def test_slabs_on_a_base_bring_every_row_that_is_not_there(base: int, new: int, order: list[LayerLayout]) -> None:
    layout, padded = CacheLayout(tuple(order)), pad_new_tokens(base + new, base)
    rows: dict[tuple[int, str], list[int]] = {}
    for slab in slabs(layout, padded, base):
        rows.setdefault((slab.layer, slab.part), []).extend(range(slab.start, slab.stop))
    for index, layer in enumerate(layout.layers):
        for tensor in layer.tensors:
            found = rows.pop((index, tensor.name), [])
            first = held_rows(layer, tensor, base) if tensor.rows in ("tokens", "entries") else 0
            assert found == list(range(first, first + len(found)))
            assert first + len(found) >= held_rows(layer, tensor, base + new)
    assert not rows


@given(base=st.integers(1, 4000), new=st.integers(1, 1000), layer=st.sampled_from(KINDS))
@settings(deadline=None, max_examples=100)
def test_sizes_on_a_base_follow_from_the_classes_of_the_new_tokens_and_of_all(
    base: int, new: int, layer: LayerLayout
) -> None:
    def sizes(base_tokens: int) -> list[int]:
        padded = base_tokens + pad_tokens(new)
        return [slab.size_bytes for slab in slabs(CacheLayout((layer,)), padded, base_tokens)]

    alike = [other for other in (base - 3, base - 1, base + 1, base + 5) if other > 0]
    alike = [other for other in alike if pad_tokens(other + pad_tokens(new)) == pad_tokens(base + pad_tokens(new))]
    assert all(sizes(other) == sizes(base) for other in alike)


@pytest.mark.parametrize(("true", "base"), [(5, 5), (5, 6), (0, 0), (3, -1)])
def test_a_transfer_without_a_new_token_is_refused(true: int, base: int) -> None:
    with pytest.raises(LayoutMismatchError):
        pad_new_tokens(true, base)


@given(layer=st.sampled_from(KINDS), tokens=st.integers(0, 3000), padding=st.integers(0, 500))
@settings(deadline=None, max_examples=200)
def test_what_is_sent_has_room_for_the_rows_of_every_count_below(layer: LayerLayout, tokens: int, padding: int) -> None:
    for tensor in layer.tensors:
        assert held_rows(layer, tensor, tokens) <= sent_rows(layer, tensor, tokens + padding)


def test_the_rows_of_a_compressed_layer_follow_its_stride() -> None:
    layer = compressed_sparse(9, 4)
    rows = {tensor.rows: [held_rows(layer, tensor, tokens) for tokens in (3, 4, 11, 12)] for tensor in layer.tensors}
    assert rows == {"window": [3, 4, 8, 8], "entries": [0, 1, 2, 3], "remainder": [3, 0, 3, 0], "overlap": [0, 4, 4, 4]}


def test_slabs_come_in_the_order_of_the_format() -> None:
    layout = CacheLayout((SLIDING, FULL, FULL))
    order = [(slab.layer, slab.part, slab.start, slab.stop) for slab in slabs(layout, RANGE_TOKENS + 64)]
    ranges = [(0, RANGE_TOKENS), (RANGE_TOKENS, RANGE_TOKENS + 64)]
    full = [(layer, part, *bounds) for bounds in ranges for layer in (1, 2) for part in ("keys", "values")]
    assert order == [*full, (0, "keys", 0, 99), (0, "values", 0, 99)]


def test_windows_come_after_token_ranges_and_states_after_windows() -> None:
    layout = CacheLayout((linear(), linear_sliding(9), compressed(9, 128), indexed()))
    order = [(slab.layer, slab.part, slab.start, slab.stop) for slab in slabs(layout, RANGE_TOKENS + 64)]
    assert order == [
        (2, "compressor_compressed_kv", 0, 4),
        (3, "keys", 0, 512),
        (3, "values", 0, 512),
        (3, "indexer_keys", 0, 512),
        (3, "keys", 512, 576),
        (3, "values", 512, 576),
        (3, "indexer_keys", 512, 576),
        (1, "keys", 0, 8),
        (1, "values", 0, 8),
        (2, "keys", 0, 8),
        (0, "conv_states_0", 0, 1),
        (0, "recurrent_states_0", 0, 1),
        (1, "conv_states_0", 0, 1),
        (1, "recurrent_states_0", 0, 1),
        (2, "compressor_buffer_kv", 0, 127),
        (2, "compressor_buffer_gate", 0, 127),
    ]


def test_a_slab_has_the_bytes_of_its_rows() -> None:
    first = next(slabs(CacheLayout((FULL,)), 64))
    assert first == SlabSpec(0, "keys", 0, 64, 64 * 2 * 8 * 4)
    keys, values = slabs(CacheLayout((SLIDING,)), 64)
    assert (keys.size_bytes, values.size_bytes) == (64 * 16 * 2, 64 * 8 * 2)


def test_a_window_of_one_token_keeps_no_row() -> None:
    window = sliding(1, (1, 16), (1, 8), "bfloat16")
    assert [slab.size_bytes for slab in slabs(CacheLayout((window,)), 64)] == []


def test_slabs_are_the_same_for_every_count_of_one_class() -> None:
    layout = CacheLayout((FULL, SLIDING))
    assert list(slabs(layout, pad_tokens(65))) == list(slabs(layout, pad_tokens(128)))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_the_closed_table_of_dtypes(dtype: str, size: int) -> None:
    assert item_bytes(dtype) == size


@pytest.mark.parametrize("dtype", ["float64", "int8", "", "torch.float32", "FLOAT32"])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(ManifestError):
        item_bytes(dtype)


@pytest.mark.parametrize(
    ("total", "size"),
    [
        (0, 64 * KIB),
        (64 * 64 * KIB, 64 * KIB),
        (64 * 64 * KIB + 1, 256 * KIB),
        (64 * 256 * KIB, 256 * KIB),
        (64 * 256 * KIB + 1, MIB),
        (2**40, MIB),
    ],
)
def test_the_chunk_size_follows_from_the_cache_size(total: int, size: int) -> None:
    assert cache_chunk_bytes(total) == size
    assert size in CHUNK_BYTES


@given(total=st.integers(0, 2**41))
@settings(deadline=None, max_examples=50)
def test_chunk_sizes_grow_with_the_cache(total: int) -> None:
    assert cache_chunk_bytes(total) <= cache_chunk_bytes(total + 1)
