"""Rules of the raw codec: bytes by the schedule, bit-exact, padding that leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, restore
from splitinfer.errors import CodecError, LayoutMismatchError, ManifestError, TruncatedError, UnknownCodecError
from splitinfer.handoff import CacheLayout, LayerLayout
from splitinfer.model.prefill import prefill
from splitinfer.schedule import held_rows
from tests.support.cache_models import MODEL_NAMES, chunked, live_cache, tiny_model, tiny_tokens
from tests.support.cache_recipient import continuation_logits, receive
from tests.support.layouts import (
    bits,
    compressed,
    compressed_sparse,
    empty,
    every_kind,
    full,
    indexed,
    lightning,
    linear,
    linear_full,
    linear_sliding,
    random_snapshot,
    sliding,
)


def pack_bytes(snapshot: CacheSnapshot, padded_tokens: int) -> bytes:
    return b"".join(map(bytes, codec.pack(snapshot, codec="raw", padded_tokens=padded_tokens).slabs()))


dtypes = st.sampled_from(sorted(DTYPES))
layouts = st.lists(
    st.one_of(
        st.builds(full, st.tuples(st.integers(1, 3), st.just(3)), dtype=dtypes),
        st.builds(sliding, st.integers(2, 700), dtype=dtypes),
        st.builds(indexed, dtypes),
        st.builds(linear, dtypes),
        st.builds(linear_full, dtypes),
        st.builds(linear_sliding, st.integers(2, 700), dtypes),
        st.builds(compressed, st.integers(2, 700), st.integers(1, 200), dtypes),
        st.builds(compressed_sparse, st.integers(2, 700), st.integers(1, 200), dtypes),
        st.builds(lightning, dtypes),
        st.builds(empty),
    ),
    min_size=1,
    max_size=3,
).map(lambda layers: CacheLayout(tuple(layers)))


@settings(deadline=None, max_examples=60)
@given(layouts, st.integers(1, 1200), st.integers(0, 700))
def test_round_trip_is_bit_exact_at_any_layout_length_and_padding(
    layout: CacheLayout, tokens: int, padding: int
) -> None:
    snapshot = random_snapshot(layout, tokens)
    data = pack_bytes(snapshot, tokens + padding)
    assert len(data) == sum(spec.size_bytes for spec in schedule.slabs(layout, tokens + padding))
    received = receive(layout, data, true_tokens=tokens, padded_tokens=tokens + padding)
    assert received.true_tokens == tokens
    assert bits(received) == bits(snapshot)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_slab_is_little_endian_heads_rows_dim_with_zero_rows_at_the_end(dtype: str) -> None:
    keys = torch.arange(2 * 2 * 3).view(1, 2, 2, 3).to(DTYPES[dtype])
    layout = CacheLayout((full((2, 3), (2, 3), dtype),))
    snapshot = CacheSnapshot(layout, 2, ({"keys": keys, "values": keys + 1},))
    first = bytes(next(codec.pack(snapshot, codec="raw", padded_tokens=3).slabs()))
    wanted = np.array([0, 1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 10, 11, 0, 0, 0])
    if dtype == "bfloat16":
        expected = (wanted.astype("<f4").view("<u4") >> 16).astype("<u2")
    else:
        expected = wanted.astype({"float32": "<f4", "float16": "<f2"}[dtype])
    assert first == expected.tobytes()


def test_length_depends_on_the_padded_count_alone() -> None:
    layout = CacheLayout((full(), sliding(20)))
    lengths = {len(pack_bytes(random_snapshot(layout, tokens), 64)) for tokens in (1, 19, 20, 64)}
    assert len(lengths) == 1


def test_sliding_slab_starts_with_the_oldest_true_row() -> None:
    layout = CacheLayout((sliding(20),))
    snapshot = random_snapshot(layout, 30)
    first = next(codec.pack(snapshot, codec="raw", padded_tokens=64).slabs())
    assert bytes(first) == bits(snapshot)[0]


def test_all_slabs_share_one_scratch_buffer_and_are_read_only() -> None:
    packed = codec.pack(random_snapshot(CacheLayout((full(),)), 600), codec="raw", padded_tokens=600)
    addresses = {np.frombuffer(slab, dtype=np.uint8).ctypes.data for slab in packed.slabs() if slab.readonly}
    assert len(addresses) == 1


def test_packing_again_gives_the_same_bytes_for_a_resend() -> None:
    packed = codec.pack(random_snapshot(CacheLayout((full(), sliding(9))), 70), codec="raw", padded_tokens=128)
    assert b"".join(map(bytes, packed.slabs())) == b"".join(map(bytes, packed.slabs()))


def test_wiped_packed_cache_is_refused_and_zeroed() -> None:
    snapshot = random_snapshot(CacheLayout((full(),)), 8)
    packed = codec.pack(snapshot, codec="raw", padded_tokens=8)
    slab = next(packed.slabs())
    packed.wipe()
    assert not any(slab)
    assert not any(b"".join(bits(snapshot)))
    with pytest.raises(CodecError, match="wiped"):
        next(packed.slabs())


def last_true_slab(layout: CacheLayout, tokens: int, padded_tokens: int) -> tuple[int, int]:
    """Return the index of the first slab that holds padding, and the byte offset of its first padding row."""
    layer = layout.layers[0]
    for index, spec in enumerate(schedule.slabs(layout, padded_tokens)):
        keys = layer.tensors[0]
        rows = held_rows(layer, keys, tokens) - spec.start
        if rows < spec.stop - spec.start:
            return index, max(rows, 0) * keys.after[0] * schedule.item_bytes(keys.dtype)
    raise AssertionError("no slab holds padding")


@pytest.mark.parametrize("tokens", [5, 511, 512, 600])
@pytest.mark.parametrize("bit", [0x01, 0x80])
@pytest.mark.parametrize("layer", [full(), sliding(1000), full((1, 3), (1, 5), "bfloat16")])
def test_non_zero_padding_is_refused_and_wiped(tokens: int, bit: int, layer: LayerLayout) -> None:
    layout = CacheLayout((layer,))
    sink = codec.sink(layout, codec="raw", true_tokens=tokens, padded_tokens=tokens + 3)
    index, offset = last_true_slab(layout, tokens, tokens + 3)
    for at, data in enumerate(
        codec.pack(random_snapshot(layout, tokens), codec="raw", padded_tokens=tokens + 3).slabs()
    ):
        slab = sink.slab()
        slab[:] = data
        if at == index:
            slab[offset] ^= bit
    with pytest.raises(LayoutMismatchError, match=r"layer 0, .*padding row"):
        sink.finish()
    assert not any(slab)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_negative_zero_as_padding_is_refused(dtype: str) -> None:
    sink = codec.sink(CacheLayout((full(dtype=dtype),)), codec="raw", true_tokens=1, padded_tokens=2)
    for _ in range(2):
        slab = sink.slab()
        slab[:] = bytes(len(slab))
        slab[-1] = 0x80
    with pytest.raises(LayoutMismatchError, match="padding"):
        sink.finish()


def test_missing_slab_is_refused_and_wiped() -> None:
    sink = codec.sink(CacheLayout((full(),)), codec="raw", true_tokens=4, padded_tokens=4)
    slab = sink.slab()
    slab[:] = b"\x01" * len(slab)
    with pytest.raises(TruncatedError):
        sink.finish()
    assert not any(slab)


@pytest.mark.parametrize("layer", every_kind()[:-1], ids=lambda layer: layer.kind)
@pytest.mark.parametrize("surplus", [-1, 1])
def test_slabs_one_too_few_or_too_many_are_refused_and_wiped(layer: LayerLayout, surplus: int) -> None:
    layout = CacheLayout((layer, empty()))
    sink = codec.sink(layout, codec="raw", true_tokens=7, padded_tokens=64)
    slabs = [bytes(slab) for slab in codec.pack(random_snapshot(layout, 7), codec="raw", padded_tokens=64).slabs()]
    for data in slabs[: len(slabs) + min(surplus, 0)]:
        slab = sink.slab()
        slab[:] = data
    held = list(sink._assembly._parts.values())
    with pytest.raises(LayoutMismatchError if surplus > 0 else TruncatedError):
        sink.slab() if surplus > 0 else sink.finish()
    sink.wipe()
    assert not any(tensor.view(torch.uint8).any() for tensor in held)


def test_cache_of_empty_layers_alone_has_no_slab() -> None:
    layout = CacheLayout((empty(), empty()))
    assert pack_bytes(random_snapshot(layout, 7), 64) == b""
    assert receive(layout, b"", true_tokens=7, padded_tokens=64).layers == ({}, {})


@pytest.mark.parametrize("layer", [compressed_sparse(9, 4), compressed(9, 4)], ids=lambda layer: layer.kind)
def test_non_zero_padding_behind_a_remainder_is_refused(layer: LayerLayout) -> None:
    layout = CacheLayout((layer,))
    sink = codec.sink(layout, codec="raw", true_tokens=9, padded_tokens=64)
    specs = list(schedule.slabs(layout, 64))
    for spec, data in zip(
        specs, codec.pack(random_snapshot(layout, 9), codec="raw", padded_tokens=64).slabs(), strict=True
    ):
        slab = sink.slab()
        slab[:] = data
        if spec.part == "compressor_buffer_gate":
            slab[-1] ^= 0x80
    with pytest.raises(LayoutMismatchError, match=r"layer 0, .*padding row"):
        sink.finish()


def test_slab_beyond_the_layout_is_refused() -> None:
    sink = codec.sink(CacheLayout((full(),)), codec="raw", true_tokens=4, padded_tokens=4)
    sink.slab()
    sink.slab()
    with pytest.raises(LayoutMismatchError, match="more slabs"):
        sink.slab()


@pytest.mark.parametrize("end", ["finish", "wipe"])
def test_closed_sink_is_refused(end: str) -> None:
    sink = codec.sink(CacheLayout((full(),)), codec="raw", true_tokens=4, padded_tokens=4)
    for _ in range(2):
        sink.slab()[:] = bytes(4 * 4 * 2 * (3 if _ == 0 else 5))
    getattr(sink, end)()
    with pytest.raises(CodecError, match="finished or wiped"):
        sink.slab()
    with pytest.raises(CodecError, match="finished or wiped"):
        sink.finish()


def test_staging_slab_is_zeroed_after_finish_and_the_cache_is_not() -> None:
    layout = CacheLayout((full(), sliding(9)))
    snapshot = random_snapshot(layout, 600)
    sink = codec.sink(layout, codec="raw", true_tokens=600, padded_tokens=640)
    for data in codec.pack(snapshot, codec="raw", padded_tokens=640).slabs():
        slab = sink.slab()
        slab[:] = data
    received = sink.finish()
    assert not any(slab)
    sink.wipe()
    assert bits(received) == bits(snapshot)


def test_wiping_an_unfinished_sink_zeroes_what_had_arrived() -> None:
    layout = CacheLayout((full(),))
    sink = codec.sink(layout, codec="raw", true_tokens=600, padded_tokens=600)
    for _ in range(3):
        slab = sink.slab()
        slab[:] = b"\x01" * len(slab)
    held = list(sink._assembly._parts.values())
    assert all(tensor.any() for tensor in held)
    sink.wipe()
    assert not any(tensor.any() for tensor in held)
    assert not any(slab)


@pytest.mark.parametrize(("true_tokens", "padded_tokens"), [(0, 64), (65, 64), (-1, 64)])
def test_impossible_token_counts_are_refused(true_tokens: int, padded_tokens: int) -> None:
    with pytest.raises(LayoutMismatchError):
        codec.sink(CacheLayout((full(),)), codec="raw", true_tokens=true_tokens, padded_tokens=padded_tokens)


def test_padding_below_the_tokens_is_refused() -> None:
    with pytest.raises(LayoutMismatchError, match="8 tokens cannot be padded to 7"):
        codec.pack(random_snapshot(CacheLayout((full(),)), 8), codec="raw", padded_tokens=7)


def test_dtype_outside_the_table_is_refused() -> None:
    with pytest.raises(ManifestError, match="float64"):
        codec.sink(CacheLayout((full(dtype="float64"),)), codec="raw", true_tokens=4, padded_tokens=4)


@pytest.mark.parametrize("name", ["", "q2", "pickle", "__class__"])
def test_unknown_codec_is_refused_and_the_known_are_named(name: str) -> None:
    snapshot = random_snapshot(CacheLayout((full(),)), 4)
    with pytest.raises(UnknownCodecError, match="raw"):
        codec.pack(snapshot, codec=name, padded_tokens=4)
    with pytest.raises(UnknownCodecError, match="raw"):
        codec.sink(snapshot.layout, codec=name, true_tokens=4, padded_tokens=4)


def _cases() -> list[dict[str, Any]]:
    keys = ("model", "dtype", "true_tokens", "padded_tokens")
    counts = [(5, 5), (5, 64), (40, 40), (40, 64), (530, 576)]
    rows = [(n, d, *c) for n in MODEL_NAMES for d in ("float32", "bfloat16") for c in counts]
    return [{"name": "-".join(map(str, row)), **dict(zip(keys, row, strict=True))} for row in rows]


def test_another_process_continues_bit_identically_from_the_bytes(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stayed = {}
    for case in _cases():
        model, tokens = tiny_model(case["model"], case["dtype"]), case["true_tokens"]
        ids, steps = tiny_tokens(tokens), chunked(tokens)
        data = pack_bytes(prefill(model, ids, steps=steps), case["padded_tokens"])
        (tmp_path / f"{case['name']}.slabs").write_bytes(data)
        stayed[case["name"]] = continuation_logits(model, live_cache(model, ids, steps)).numpy()
    torch.set_num_threads(threads)
    (tmp_path / "cases.json").write_text(json.dumps(_cases()))
    command = [sys.executable, "-m", "tests.support.cache_recipient", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], timeout=120)
    different = [
        name for name, wanted in stayed.items() if not np.array_equal(np.load(tmp_path / f"{name}.npy"), wanted)
    ]
    assert not different


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_keys_and_values_alone_do_not_continue_past_a_window(name: str) -> None:
    """The negative control: without the count of tokens, the same comparison fails."""
    model, ids = tiny_model(name), tiny_tokens(40)
    snapshot = prefill(model, ids, steps=chunked(40))
    stayed = continuation_logits(model, live_cache(model, ids, chunked(40)))
    cache = restore(snapshot, model.config)
    for layer in cache.layers:
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = layer.keys.shape[2]
    assert not torch.equal(continuation_logits(model, cache), stayed)
