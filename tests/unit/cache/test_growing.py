"""Rules of a cache that still grows: rows in order and not too early, faults and stops for both threads, no trace."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codec, schedule
from splitinfer.cache.early_rows import EarlyRows
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import CodecError, LayoutMismatchError, ModelError
from splitinfer.handoff import CacheLayout
from splitinfer.schedule import certain_tokens, held_rows, pad_tokens
from tests.support import codec_slabs, layouts
from tests.support.growing import PATIENCE_SECONDS, growing_of, grown

TOKENS = 1100
LAYOUT = CacheLayout((layouts.full((1, 2), (1, 2)), layouts.sliding(9), layouts.full((1, 2), (1, 2))))
SPECS = list(schedule.slabs(LAYOUT, pad_tokens(TOKENS)))
RULE = EarlyRows.of(LAYOUT, padded_tokens=pad_tokens(TOKENS), steps=[(0, 512)])
EARLY = [spec for spec in SPECS if RULE.work_needed(spec) is not None]
HELD = SPECS[len(EARLY)]


def grow(cache: GrowingCache, snapshot: CacheSnapshot, step: int = 512) -> CacheSnapshot:
    """Publish a finished snapshot as a prefill in steps would have made it, then its padding time."""
    tokens, layers = snapshot.true_tokens, len(snapshot.layout.layers)
    for start in range(0, tokens, step):
        stop = min(start + step, tokens)
        for index, layer in enumerate(snapshot.layout.layers):
            held = {
                tensor.name: snapshot.layers[index][tensor.name]
                .narrow(1 + len(tensor.before), 0, held_rows(layer, tensor, stop))
                .clone()
                for tensor in layer.tensors
                if tensor.rows in ("tokens", "entries")
            }
            cache.grew(start * layers + (stop - start) * index, index, held)
        cache.grew(stop * layers)
        cache.report(stop)
    return snapshot


def snapshot_of(layout: CacheLayout = LAYOUT, tokens: int = TOKENS) -> CacheSnapshot:
    return layouts.random_snapshot(layout, tokens)


class Gate:
    """A fill that grows a snapshot, then stands still until it is let go."""

    def __init__(self, snapshot: CacheSnapshot) -> None:
        self.snapshot, self.go, self.log = snapshot, threading.Event(), list[str]()
        self.stands = threading.Event()

    def __call__(self, cache: GrowingCache) -> CacheSnapshot:
        grow(cache, self.snapshot)
        layers = len(self.snapshot.layout.layers)
        cache.grew(pad_tokens(self.snapshot.true_tokens) * layers)
        self.stands.set()
        assert self.go.wait(PATIENCE_SECONDS)
        self.log.append("over")
        cache.grew(pad_tokens(self.snapshot.true_tokens) * layers)
        return self.snapshot


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate(snapshot_of())
    yield made
    made.go.set()


def prefill_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefill")]


# --- what leaves when -------------------------------------------------------------------------------------------------


def test_token_ranges_leave_layer_by_layer_and_nothing_else_does() -> None:
    assert certain_tokens(pad_tokens(TOKENS)) == 1089
    assert [(spec.layer, spec.start) for spec in EARLY[::2]] == [(0, 0), (2, 0), (0, 512)]
    assert [RULE.work_needed(spec) for spec in EARLY[::2]] == [512 * 3, 512 * 3 + 512 * 2, 1024 * 3]
    # Layer 2 would have its turn after more work than the size class has.
    assert (HELD.layer, HELD.start) == (2, 512)
    assert {RULE.work_needed(spec) for spec in SPECS[len(EARLY) :]} == {None}


def test_early_rows_are_there_before_the_end_and_the_rest_after_it(gate: Gate) -> None:
    with growing_of(LAYOUT, TOKENS, gate) as cache:
        for spec in EARLY:
            cache.tensor(spec)
            gate.log.append("early")

        def read_held() -> None:
            cache.tensor(HELD)
            gate.log.append("held")

        reader = threading.Thread(target=read_held)
        reader.start()
        gate.go.set()
        reader.join(PATIENCE_SECONDS)
    assert gate.log == ["early"] * len(EARLY) + ["over", "held"]


@given(cuts=st.sets(st.integers(1, TOKENS - 1), max_size=9))
@settings(deadline=None, max_examples=60)
def test_rows_leave_at_the_same_point_of_the_work_whatever_the_steps(cuts: set[int]) -> None:
    """At that point they are there in every way to cut the prompt, so nothing has to wait for a step's end."""
    ends = sorted({*cuts, *range(512, TOKENS, 512), TOKENS})
    steps = list(pairwise([0, *ends]))
    rule, layers = EarlyRows.of(LAYOUT, padded_tokens=pad_tokens(TOKENS), steps=steps), len(LAYOUT.layers)
    for spec in EARLY:
        needed = rule.work_needed(spec)
        start, stop = next(step for step in steps if step[1] >= spec.stop)
        assert needed == RULE.work_needed(spec)
        assert start * layers + (stop - start) * spec.layer <= needed


@given(tokens=st.integers(1, 20_000))
@settings(deadline=None, max_examples=20)
def test_what_leaves_early_is_what_every_prompt_of_the_class_has(tokens: int) -> None:
    padded = pad_tokens(tokens)
    rule = EarlyRows.of(LAYOUT, padded_tokens=padded, steps=[(0, 512)])
    for spec in schedule.slabs(LAYOUT, padded):
        if rule.work_needed(spec) is not None:
            assert spec.stop <= certain_tokens(padded) <= tokens


def test_rows_that_are_complete_after_a_step_only_wait_for_the_longest_one() -> None:
    layout = CacheLayout((layouts.indexed(), layouts.compressed(9, 4)))
    rule = EarlyRows.of(layout, padded_tokens=pad_tokens(2000), steps=[(0, 512)])
    needed = {(spec.layer, spec.part): rule.work_needed(spec) for spec in schedule.slabs(layout, 512)}
    assert needed[0, "keys"] == needed[0, "indexer_keys"] == (512 + 512) * 2
    assert needed[1, "compressor_compressed_kv"] == (512 + 512) * 2
    assert needed[1, "keys"] is needed[1, "compressor_buffer_kv"] is None


@pytest.mark.parametrize(("longest", "lag"), [(1, 512), (512, 512), (513, 1024), (4096, 4096)])
def test_longer_steps_lag_more(longest: int, lag: int) -> None:
    assert EarlyRows.of(LAYOUT, padded_tokens=64, steps=[(0, 1), (1, 1 + longest)]).lag_tokens == lag


@pytest.mark.parametrize("tokens", [1, 64, 500, 512])
def test_nothing_of_a_short_prompt_leaves_early(tokens: int) -> None:
    assert not grown(snapshot_of(tokens=tokens)).leaves_early


def test_a_published_tensor_is_let_go_when_the_next_step_has_a_longer_one() -> None:
    done, seen = threading.Event(), threading.Event()
    layout = CacheLayout((layouts.full(),))
    refs: list[Any] = []

    def fill(cache: GrowingCache) -> CacheSnapshot:
        for tokens in (4, 8):
            tensor = torch.zeros(1, 2, tokens, 3)
            refs.append(weakref.ref(tensor))
            cache.grew(tokens, 0, {"keys": tensor})
            del tensor
        seen.set()
        assert done.wait(PATIENCE_SECONDS)
        return snapshot_of(layout, 8)

    with growing_of(layout, 8, fill):
        assert seen.wait(PATIENCE_SECONDS)
        assert [ref() is None for ref in refs] == [True, False]
        done.set()


# --- packing ----------------------------------------------------------------------------------------------------------


@given(
    chosen=st.lists(st.sampled_from(layouts.every_kind()), min_size=1, max_size=4),
    tokens=st.sampled_from([1, 63, 300, 577, 1025, 1100]),
    step=st.sampled_from([64, 320, 512, 1024]),
)
@settings(deadline=None, max_examples=15)
def test_slabs_of_a_growing_cache_are_those_of_the_finished_one(chosen: list[Any], tokens: int, step: int) -> None:
    layout = CacheLayout(tuple(chosen))
    snapshot = layouts.random_snapshot(layout, tokens)
    expected = codec_slabs.coded(snapshot, "raw", pad_tokens(tokens))
    growing = growing_of(layout, tokens, lambda cache: grow(cache, snapshot, step), step=step)
    packed = codec.pack(growing, codec="raw", padded_tokens=pad_tokens(tokens))
    assert b"".join(map(bytes, packed.slabs())) == expected
    assert b"".join(map(bytes, packed.slabs())) == expected
    packed.wipe()
    assert not any(any(part) for part in layouts.bits(snapshot))


@pytest.mark.parametrize("name", list(codec.UNCALIBRATED))
def test_every_codec_packs_a_growing_cache_as_the_finished_one(name: str) -> None:
    layout = CacheLayout((layouts.full((2, 8), (2, 8)), layouts.sliding(9)))
    snapshot, padded = codec_slabs.normal(layout, 1030), pad_tokens(1030)
    expected = codec_slabs.coded(snapshot, name, padded)
    with growing_of(layout, 1030, lambda cache: grow(cache, snapshot)) as growing:
        packed = codec.pack(growing, codec=name, padded_tokens=padded)
        assert b"".join(map(bytes, packed.slabs())) == expected
        assert packed.size_bytes == len(expected)


def test_codec_of_variable_length_waits_for_the_finished_cache(gate: Gate) -> None:
    gate.go.set()
    with growing_of(LAYOUT, TOKENS, gate) as growing:
        codec.pack(growing, codec="lossless", padded_tokens=pad_tokens(TOKENS))
        assert gate.log == ["over"]


def test_lossy_codec_refuses_a_short_cache_before_its_first_slab() -> None:
    snapshot = codec_slabs.normal(LAYOUT, 70)
    snapshot.layers[0]["keys"][0, 0, 0, 0] = torch.nan
    with growing_of(LAYOUT, 70, lambda _: snapshot) as growing, pytest.raises(CodecError):
        codec.pack(growing, codec="q8", padded_tokens=128)


def test_slabs_stop_where_the_packed_cache_was_wiped(gate: Gate) -> None:
    packed = codec.pack(growing_of(LAYOUT, TOKENS, gate), codec="raw", padded_tokens=pad_tokens(TOKENS))
    slabs = packed.slabs()
    next(slabs)
    gate.go.set()
    packed.wipe()
    with pytest.raises(CodecError):
        next(slabs)


# --- faults, stops, progress ------------------------------------------------------------------------------------------


def failing(error: BaseException) -> Any:
    def fill(_: GrowingCache) -> CacheSnapshot:
        raise error

    return fill


def test_error_of_the_project_reaches_the_reader_as_it_is() -> None:
    with (
        growing_of(LAYOUT, TOKENS, failing(LayoutMismatchError("of the model"))) as cache,
        pytest.raises(LayoutMismatchError, match="of the model"),
    ):
        cache.tensor(SPECS[0])
    assert cache.has_failed


@pytest.mark.parametrize("error", [RuntimeError("canary"), KeyboardInterrupt("canary")])
def test_foreign_error_reaches_the_reader_typed_and_without_its_text(error: BaseException) -> None:
    with growing_of(LAYOUT, TOKENS, failing(error)) as cache, pytest.raises(ModelError) as caught:
        cache.snapshot()
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_reader_that_waits_is_woken_by_a_failure() -> None:
    waiting = threading.Event()

    def fill(_: GrowingCache) -> CacheSnapshot:
        assert waiting.wait(PATIENCE_SECONDS)
        raise ModelError("late")

    with growing_of(LAYOUT, TOKENS, fill) as cache:
        errors: list[BaseException] = []

        def read() -> None:
            try:
                waiting.set()
                cache.tensor(SPECS[0])
            except ModelError as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        reader.join(PATIENCE_SECONDS)
        assert [str(error) for error in errors] == ["late"]


def test_stop_ends_the_computing_thread_and_wakes_the_reader(gate: Gate) -> None:
    cache = growing_of(LAYOUT, TOKENS, gate)
    for spec in EARLY:
        cache.tensor(spec)
    threading.Thread(target=lambda: (cache.stop(), gate.go.set())).start()
    with pytest.raises(ModelError, match="stopped"):
        cache.tensor(HELD)
    cache.wipe()
    assert not cache.has_failed


def test_wipe_zeroes_what_was_published_and_joins_the_thread(gate: Gate) -> None:
    cache = growing_of(LAYOUT, TOKENS, gate)
    assert gate.stands.wait(PATIENCE_SECONDS)
    tensors = [cache.tensor(spec) for spec in EARLY]
    assert all(tensor.any() for tensor in tensors)
    cache.stop()
    gate.go.set()
    cache.wipe()
    cache.wipe()
    assert not any(tensor.any() for tensor in tensors)
    assert prefill_threads() == []
    with pytest.raises(ModelError, match="stopped"):
        cache.tensor(SPECS[0])


def test_wipe_zeroes_the_finished_snapshot() -> None:
    cache = grown(snapshot_of())
    snapshot = cache.snapshot()
    cache.wipe()
    assert not any(any(part) for part in layouts.bits(snapshot))


def test_no_thread_is_left_after_the_end() -> None:
    with grown(snapshot_of()) as cache:
        cache.snapshot()
    assert prefill_threads() == []


def test_progress_is_told_in_order_by_the_thread_that_reads() -> None:
    seen: list[tuple[int, int]] = []
    snapshot = snapshot_of()

    def note(tokens: int) -> None:
        seen.append((tokens, threading.get_ident()))

    with growing_of(LAYOUT, TOKENS, lambda cache: grow(cache, snapshot), progress=note) as cache:
        cache.snapshot()
    assert seen == [(tokens, threading.get_ident()) for tokens in (512, 1024, 1100)]


def test_interrupted_reader_stops_the_prefill(gate: Gate) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    cache = growing_of(LAYOUT, TOKENS, gate, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.tensor(HELD)
    gate.go.set()
    cache.wipe()
    with pytest.raises(ModelError, match="stopped"):
        cache.snapshot()


@pytest.mark.parametrize(("seconds", "log"), [(0.1, []), (9.0, ["over"])])
def test_slow_sender_begins_when_it_need_not_pause_any_more(gate: Gate, seconds: float, log: list[str]) -> None:
    ticks = iter([0.0, seconds])
    if log:
        gate.go.set()
    with growing_of(LAYOUT, TOKENS, gate, clock=lambda: next(ticks)) as cache:
        cache.settle(pause_seconds=20.0)
        assert gate.log == log
        gate.go.set()


def test_padding_that_is_no_size_class_is_refused() -> None:
    with pytest.raises(LayoutMismatchError, match="no size class"):
        EarlyRows.of(LAYOUT, padded_tokens=63, steps=[(0, 63)])
