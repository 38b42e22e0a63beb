"""Rules of a prefill in a thread: the same bits, rows before the end, the guard held a step, nothing left behind."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot, layout_of
from splitinfer.errors import EmptyPromptError, LayoutMismatchError, ModelError, PromptError
from splitinfer.model.prefill import prefill
from splitinfer.model.probe import prefill_ends_early
from splitinfer.model.start_prefill import start_prefill
from splitinfer.schedule import pad_tokens
from tests.support.architectures import ARCHITECTURES, tiny_architecture, token_ids
from tests.support.cache_models import MODEL_NAMES, VOCABULARY, chunked, tiny_model, tiny_tokens
from tests.support.engines import engine_of
from tests.support.growing import Turnstile
from tests.support.layouts import bits

QUICK = ("gemma3_text", "gemma2", "mamba2", "qwen3_next", "deepseek_v3", "deepseek_v4")
STEPS = [(0, 512), (512, 1024), (1024, 1100)]


@cache
def llama() -> Any:
    return tiny_model("llama")


def streamed(growing: Any) -> bytes:
    packed = codec.pack(growing, codec="raw", padded_tokens=pad_tokens(growing.true_tokens))
    try:
        return b"".join(map(bytes, packed.slabs()))
    finally:
        packed.wipe()


def coded(snapshot: CacheSnapshot) -> bytes:
    padded = pad_tokens(snapshot.true_tokens)
    return b"".join(map(bytes, codec.pack(snapshot, codec="raw", padded_tokens=padded).slabs()))


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_streamed_cache_is_bit_identical(name: str, dtype: str) -> None:
    model, ids, layout = tiny_model(name, dtype), tiny_tokens(1100), layout_of(tiny_model(name, dtype))
    steps = chunked(1100, 300)
    expected = coded(prefill(model, ids, steps=steps, layout=layout))
    for ends_early in (False, True):
        assert streamed(start_prefill(model, ids, steps=steps, layout=layout, ends_early=ends_early)) == expected


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[] if row.name in QUICK else [pytest.mark.slow])
        for row in ARCHITECTURES
        if row.is_quick or row.name in QUICK
    ],
)
def test_streamed_cache_of_every_kind_is_bit_identical(row: Any) -> None:
    for dtype in ("float32", "bfloat16") if row.is_bfloat16 else ("float32",):
        model = tiny_architecture(row.name, dtype)
        layout, ids, steps = layout_of(model), token_ids(40), chunked(40, 13)
        growing = start_prefill(model, ids, steps=steps, layout=layout, ends_early=prefill_ends_early(model))
        assert streamed(growing) == coded(prefill(model, ids, steps=steps, layout=layout))


def test_prefill_onto_a_cache_is_bit_identical_and_leaves_that_cache_alone() -> None:
    model, ids, layout = llama(), tiny_tokens(40), layout_of(llama())
    first = prefill(model, ids, steps=chunked(14), layout=layout)
    before = bits(first)
    growing = start_prefill(model, ids, steps=chunked(40, start=14), onto=first, layout=layout)
    assert streamed(growing) == coded(prefill(model, ids, steps=chunked(40), layout=layout))
    assert bits(first) == before


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_cache_that_a_stopped_prefill_went_on_from_is_left_alone(name: str) -> None:
    model, ids = tiny_model(name), tiny_tokens(40)
    first = prefill(model, ids, steps=chunked(14))
    before = bits(first)
    gate = Turnstile(model.model.layers[1])
    growing = start_prefill(model, ids, steps=[(14, 40)], onto=first, layout=layout_of_open(gate, model))
    growing.stop()
    gate.open()
    growing.wipe()
    assert bits(first) == before


def layout_of_open(gate: Turnstile, model: Any) -> Any:
    """Let the one forward by which the layout is found through."""
    gate.open(1)
    return layout_of(model)


# --- before the end ---------------------------------------------------------------------------------------------------


def test_rows_are_read_before_the_last_step_has_run() -> None:
    model, layout = tiny_model("llama"), layout_of(llama())
    gate = Turnstile(model.model.embed_tokens)
    gate.open(2)
    with start_prefill(model, tiny_tokens(1100), steps=STEPS, layout=layout, ends_early=True) as growing:
        specs = [spec for spec in schedule.slabs(layout, pad_tokens(1100)) if spec.stop == 512]
        rows = [growing.tensor(spec)[:, :, :512].clone() for spec in specs]
        assert gate.arrived <= 3
        gate.open()
        whole = growing.snapshot()
        for spec, early in zip(specs, rows, strict=True):
            assert torch.equal(early, whole.layers[spec.layer][spec.part][:, :, :512])


def test_padding_time_is_spent_before_the_end_and_on_the_missing_tokens() -> None:
    model, layout = tiny_model("llama"), layout_of(llama())
    sizes: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    with start_prefill(model, tiny_tokens(1100), steps=STEPS, layout=layout) as growing:
        growing.snapshot()
    assert sizes == [512, 512, 76, pad_tokens(1100) - 1100]


# --- the guard --------------------------------------------------------------------------------------------------------


def test_guard_is_held_in_every_step_and_not_between_them() -> None:
    model, lock, held = tiny_model("llama"), Counted(), []
    model.model.embed_tokens.register_forward_hook(lambda *_: held.append(lock.locked()))
    layout = layout_of(llama())
    with start_prefill(model, tiny_tokens(100), steps=chunked(100, 40), layout=layout, guard=lock) as growing:
        growing.snapshot()
    assert held == [True] * 4
    assert lock.taken == 4
    assert not lock.locked()


class Counted:
    """A lock that counts how often it was taken."""

    def __init__(self) -> None:
        self._lock, self.taken = threading.Lock(), 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


def test_engine_counts_the_tokens_and_knows_its_model() -> None:
    engine = engine_of("llama")
    with engine.start_prefill(tiny_tokens(21), steps=[(0, 8), (8, 20)]) as growing:
        whole = engine.prefill(tiny_tokens(21), steps=[(0, 8), (8, 20)])
        assert bits(growing.snapshot()) == bits(whole)
        assert growing.layout == engine.layout
    assert engine.prefilled_tokens == 40


# --- refusals, stops, failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "steps", "error"),
    [
        ([3, 4, 5], [], EmptyPromptError),
        ([3, 4, 5], [(0, 4)], LayoutMismatchError),
        ([3, 4, 5], [(1, 2)], LayoutMismatchError),
        ([3, VOCABULARY], [(0, 2)], PromptError),
    ],
)
def test_what_can_be_refused_is_refused_before_a_thread_starts(ids: Any, steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        start_prefill(llama(), ids, steps=steps, layout=layout_of(llama()))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefill")]


def test_stop_ends_the_prefill_between_two_layers_and_zeroes_what_was_computed() -> None:
    model, layout = tiny_model("llama"), layout_of(llama())
    gate, computed = Turnstile(model.model.embed_tokens), []
    model.model.layers[0].register_forward_hook(lambda *_: computed.append("layer"))
    gate.open(2)
    growing = start_prefill(model, tiny_tokens(1100), steps=STEPS, layout=layout)
    gate.wait_for(3)
    first = growing.tensor(next(schedule.slabs(layout, pad_tokens(1100))))
    growing.stop()
    gate.open()
    growing.wipe()
    # The third step ends where its first layer has stored, inside that layer's attention.
    assert (gate.arrived, computed) == (3, ["layer"] * 2)
    assert not first.any()
    assert not torch.is_inference_mode_enabled()


def test_model_that_fails_gives_a_typed_error_and_can_be_used_again() -> None:
    model, layout = tiny_model("llama"), layout_of(llama())

    def fail(*_: object) -> None:
        raise RuntimeError("canary")

    hook = model.model.layers[1].register_forward_hook(fail)
    with (
        start_prefill(model, tiny_tokens(20), steps=chunked(20), layout=layout) as growing,
        pytest.raises(ModelError) as caught,
    ):
        growing.snapshot()
    assert "canary" not in str(caught.value)
    hook.remove()
    ids = tiny_tokens(20)
    expected = coded(prefill(llama(), ids, steps=chunked(20), layout=layout))
    assert streamed(start_prefill(model, ids, steps=chunked(20), layout=layout)) == expected
