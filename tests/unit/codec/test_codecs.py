"""Rules of every codec through its packed cache and sink: lengths, faults, wiping, and a model that continues."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot, restore
from splitinfer.codec.first_rows import FirstRowsCoder
from splitinfer.codec.layers import Coders
from splitinfer.codec.lossless import LosslessCoder
from splitinfer.codec.quantised import QuantisedCoder
from splitinfer.codec.raw import RawCoder
from splitinfer.errors import CodecError, LayoutMismatchError, TruncatedError, VerificationError
from splitinfer.handoff import CacheLayout
from splitinfer.model.prefill import prefill
from tests.support.cache_models import MODEL_NAMES, chunked, tiny_model, tiny_tokens
from tests.support.cache_recipient import continuation_logits
from tests.support.codec_slabs import any_bits, bits, coded, fill, full, moved, new_sink, normal, sliding, tensors

LOSSY = ("q8", "k8v4", "k6v4", "q4")
FIXED = ("raw", *LOSSY)
ALL = codec.UNCALIBRATED
LAYOUT = CacheLayout((full(), sliding(20), full("float32", 1)))

layouts = st.lists(
    st.one_of(
        st.builds(
            full, st.sampled_from(("float32", "bfloat16", "float16")), st.integers(1, 3), st.sampled_from((1, 6, 70))
        ),
        st.builds(sliding, st.integers(1, 150)),
    ),
    min_size=1,
    max_size=3,
).map(lambda layers: CacheLayout(tuple(layers)))


def test_the_table_of_codecs_is_closed() -> None:
    assert ALL == ("raw", "lossless", "q8", "k8v4", "k6v4", "q4")
    assert {name for name, row in codec.CODECS.items() if row.is_exact} == {"raw", "lossless"}


@settings(deadline=None, max_examples=40)
@given(layouts, st.sampled_from(("raw", "lossless")), st.integers(1, 700), st.integers(0, 100))
def test_exact_codecs_keep_every_bit(layout: CacheLayout, name: str, tokens: int, padding: int) -> None:
    snapshot = any_bits(layout, tokens)
    assert bits(moved(snapshot, name, tokens + padding)) == bits(snapshot)


@settings(deadline=None, max_examples=40)
@given(layouts, st.sampled_from(LOSSY), st.integers(1, 700), st.integers(0, 100))
def test_lossy_codecs_keep_every_element_close(layout: CacheLayout, name: str, tokens: int, padding: int) -> None:
    snapshot = normal(layout, tokens)
    received = moved(snapshot, name, tokens + padding)
    worst = {"q8": 0.2, "k8v4": 2.5, "k6v4": 2.5, "q4": 2.5}[name]
    for before, after in zip(tensors(snapshot), tensors(received), strict=True):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        if before.numel():
            assert float((before.float() - after.float()).abs().max()) < worst


@pytest.mark.parametrize("name", FIXED)
def test_length_of_a_fixed_rate_codec_is_the_same_for_any_contents_and_tokens_of_a_class(name: str) -> None:
    lengths = {len(coded(normal(LAYOUT, tokens, seed), name, 128)) for tokens in (65, 100, 128) for seed in range(3)}
    zeros = normal(LAYOUT, 100)
    for tensor in tensors(zeros):
        tensor.zero_()
    assert lengths == {len(coded(zeros, name, 128))}
    assert lengths == {codec.pack(zeros, codec=name, padded_tokens=128).size_bytes}


@pytest.mark.parametrize(("name", "least"), [("raw", 1.0), ("q8", 1.8), ("k8v4", 2.3), ("k6v4", 2.7), ("q4", 3.2)])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_sizes_against_bfloat16(name: str, least: float, dim: int) -> None:
    layout = CacheLayout((full("bfloat16", 2, dim),))
    packed = codec.pack(normal(layout, 512), codec=name, padded_tokens=512)
    assert 2 * 512 * 2 * dim * 2 / packed.size_bytes >= least


def test_lossless_length_is_a_size_class_of_what_was_coded() -> None:
    packed = codec.pack(normal(LAYOUT, 600), codec="lossless", padded_tokens=640)
    slabs = list(map(bytes, packed.slabs()))
    used = sum(4 + int.from_bytes(slab[:4], "little") for slab in slabs if any(slab))
    assert sum(map(len, slabs)) == packed.size_bytes == schedule.padme(used) == schedule.padme(packed.size_bytes)


def test_states_are_never_rounded() -> None:
    for name in LOSSY:
        assert isinstance(codec.CODECS[name].coders().of("state"), RawCoder)
        assert isinstance(codec.CODECS[name].coders().of("keys"), QuantisedCoder | FirstRowsCoder)
    assert isinstance(codec.CODECS["lossless"].coders().of("state"), LosslessCoder)


@pytest.mark.parametrize("name", ALL)
def test_range_is_coded_as_it_would_be_alone(name: str) -> None:
    """A group that crossed a range would make the first range depend on the rows after it."""
    layout = CacheLayout((full(),))
    long = normal(layout, 2 * schedule.RANGE_TOKENS)
    first = CacheSnapshot(
        layout,
        schedule.RANGE_TOKENS,
        tuple({name: part[:, :, : schedule.RANGE_TOKENS] for name, part in layer.items()} for layer in long.layers),
    )
    alone = list(map(bytes, codec.pack(first, codec=name, padded_tokens=schedule.RANGE_TOKENS).slabs()))[:2]
    both = list(map(bytes, codec.pack(long, codec=name, padded_tokens=2 * schedule.RANGE_TOKENS).slabs()))[:2]
    assert both == alone


@pytest.mark.parametrize("name", ALL)
def test_slabs_are_read_only_and_the_same_for_a_resend(name: str) -> None:
    packed = codec.pack(normal(LAYOUT, 70), codec=name, padded_tokens=128)
    assert all(slab.readonly for slab in packed.slabs())
    assert b"".join(map(bytes, packed.slabs())) == b"".join(map(bytes, packed.slabs()))


@pytest.mark.parametrize("name", ALL)
def test_wiped_packed_cache_is_refused_and_zeroed(name: str) -> None:
    snapshot = normal(LAYOUT, 8)
    packed = codec.pack(snapshot, codec=name, padded_tokens=8)
    slab = next(packed.slabs())
    packed.wipe()
    packed.wipe()
    assert not any(slab)
    assert not any(b"".join(bits(snapshot)))
    with pytest.raises(CodecError, match="wiped"):
        next(packed.slabs())


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("element", [math.nan, math.inf])
def test_lossy_packing_of_what_is_not_finite_is_refused(name: str, element: float) -> None:
    snapshot = normal(LAYOUT, 70)
    snapshot.layers[1]["values"][0, 1, 0, 0] = element
    with pytest.raises(CodecError, match="NaN, infinity"):
        coded(snapshot, name, 128)


@pytest.mark.parametrize("name", ALL)
def test_missing_slab_is_refused_and_wiped(name: str) -> None:
    data = coded(normal(LAYOUT, 8), name, 64)
    sink = new_sink(LAYOUT, name, 8, 64, len(data))
    sizes = sink.sizes()
    at = 0
    for _ in range(3):
        size = next(sizes)
        slab = sink.slab()
        slab[:] = data[at : at + size]
        at += size
    with pytest.raises(TruncatedError):
        sink.finish()
    assert not any(slab)
    with pytest.raises(CodecError, match="finished or wiped"):
        sink.slab()


@pytest.mark.parametrize("name", ALL)
def test_staging_memory_is_zeroed_after_finish_and_the_cache_is_not(name: str) -> None:
    data = coded(normal(LAYOUT, 600), name, 640)
    sink = new_sink(LAYOUT, name, 600, 640, len(data))
    slab = fill(sink, data)
    received = sink.finish()
    assert not any(slab)
    held = bits(received)
    sink.wipe()
    assert bits(received) == held
    assert all(any(part) for part in held)


@pytest.mark.parametrize("name", LOSSY)
def test_a_fault_in_a_slab_is_told_at_the_end_and_wipes(name: str) -> None:
    data = bytearray(coded(normal(LAYOUT, 8), name, 64))
    data[0:2] = b"\x00\x7e"
    sink = new_sink(LAYOUT, name, 8, 64, len(data))
    slab = fill(sink, bytes(data))
    with pytest.raises(LayoutMismatchError, match=r"layer 0, keys: a (scale|first row)"):
        sink.finish()
    assert not any(slab)


@pytest.mark.parametrize("name", FIXED)
def test_an_announced_length_of_a_fixed_rate_codec_is_refused(name: str) -> None:
    with pytest.raises(LayoutMismatchError, match="follows from its layout"):
        codec.sink(LAYOUT, codec=name, true_tokens=8, padded_tokens=64, coded_bytes=1024)


@pytest.mark.parametrize("announced", [None, 0, 1, 29, 1000, 10**7, 2**40])
def test_an_announced_length_that_no_cache_has_is_refused_before_memory_is_taken(announced: int | None) -> None:
    with pytest.raises(LayoutMismatchError, match="coded bytes"):
        codec.sink(LAYOUT, codec="lossless", true_tokens=8, padded_tokens=64, coded_bytes=announced)


def finished(sink: Any, data: bytes) -> CacheSnapshot:
    fill(sink, data)
    return sink.finish()


def forged(change: str) -> bytes:
    """Return a lossless cache of the announced length that was changed somewhere."""
    data = bytearray(coded(normal(LAYOUT, 8), "lossless", 64))
    if change == "first length is enormous":
        data[:4] = b"\xff\xff\xff\xff"
    elif change == "first length is above the rows":
        data[:4] = (64 * 2 * 8 * 2 + 2).to_bytes(4, "little")
    elif change == "padding is not zero":
        data[-1] = 1
    return bytes(data)


@pytest.mark.parametrize(
    "change", ["first length is enormous", "first length is above the rows", "padding is not zero"]
)
def test_forged_lengths_and_padding_are_refused(change: str) -> None:
    data = forged(change)
    sink = new_sink(LAYOUT, "lossless", 8, 64, len(data))
    with pytest.raises(LayoutMismatchError):
        finished(sink, data)


def test_slabs_beyond_what_was_announced_are_refused() -> None:
    data = coded(normal(LAYOUT, 8), "lossless", 64)
    smaller = schedule.padme(len(data) // 2)
    sink = new_sink(LAYOUT, "lossless", 8, 64, smaller)
    with pytest.raises(LayoutMismatchError, match="longer than it can be"):
        fill(sink, data)


def test_an_announced_length_of_a_larger_class_is_refused() -> None:
    data = coded(normal(LAYOUT, 8), "lossless", 64)
    larger = schedule.padme(len(data) + 1)
    sink = new_sink(LAYOUT, "lossless", 8, 64, larger)
    with pytest.raises(LayoutMismatchError, match="not the size class"):
        fill(sink, data.ljust(larger, b"\x00"))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ALL), st.integers(0, 2**31), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_a_cache_of_the_same_form(name: str, at: int, flip: int) -> None:
    data = bytearray(coded(normal(LAYOUT, 30), name, 64))
    data[at % len(data)] ^= flip
    sink = new_sink(LAYOUT, name, 30, 64, len(data))
    try:
        fill(sink, bytes(data))
        received = sink.finish()
    except VerificationError:
        return
    assert [x.shape for x in tensors(received)] == [x.shape for x in tensors(normal(LAYOUT, 30))]
    assert name not in LOSSY or all(bool(x.isfinite().all()) for x in tensors(received))


@pytest.mark.parametrize("name", ALL)
def test_every_sink_and_packed_cache_has_its_own_scratch(name: str) -> None:
    one, other = codec.CODECS[name].coders(), codec.CODECS[name].coders()
    assert isinstance(one, Coders)
    assert not {id(one.keys), id(one.values)} & {id(other.keys), id(other.values)}


# How far logits may move, with models of random weights and a spread of about 1.
WORST_LOGITS = {"raw": 0.0, "lossless": 0.0, "q8": 0.02, "k8v4": 0.2, "k6v4": 0.2, "q4": 0.4}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_a_model_continues_from_what_arrived(name: str, model_name: str) -> None:
    model, ids = tiny_model(model_name), tiny_tokens(70)
    snapshot = prefill(model, ids, steps=chunked(70))
    stayed = continuation_logits(model, restore(snapshot, model.config))
    arrived = continuation_logits(model, restore(moved(snapshot, name, 128), model.config))
    assert float((stayed - arrived).abs().max()) <= WORST_LOGITS[name]
    assert codec.CODECS[name].is_exact == torch.equal(stayed, arrived)
