"""Rules of prefill: steps as given, the head never computed, exact on top of a received cache."""

from __future__ import annotations

import pytest
import torch

from splitinfer.cache.snapshot import CacheSnapshot, restore
from splitinfer.errors import EmptyPromptError, LayoutMismatchError, PromptError
from splitinfer.model.prefill import BURN_STEP_TOKENS, burn, prefill
from tests.support.cache_models import MODEL_NAMES, VOCABULARY, chunked, live_cache, tiny_model, tiny_tokens
from tests.support.cache_recipient import continuation_logits
from tests.support.layouts import bits


def is_equal(ours: CacheSnapshot, theirs: CacheSnapshot) -> bool:
    return bits(ours) == bits(theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [9, 40])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_prefill_is_the_cache_that_the_whole_model_makes(name: str, tokens: int, dtype: str) -> None:
    model, ids = tiny_model(name, dtype), tiny_tokens(tokens)
    snapshot = prefill(model, ids, steps=chunked(tokens))
    assert snapshot.true_tokens == tokens
    stayed = continuation_logits(model, live_cache(model, ids, chunked(tokens)))
    assert torch.equal(continuation_logits(model, restore(snapshot, model.config)), stayed)


@pytest.mark.parametrize("cut", [7, 14, 35])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_prefill_onto_a_cache_that_ends_at_a_step_is_exact(name: str, cut: int) -> None:
    model, ids = tiny_model(name), tiny_tokens(40)
    first = prefill(model, ids, steps=chunked(cut))
    both = prefill(model, ids, steps=chunked(40, start=cut), onto=first)
    assert is_equal(both, prefill(model, ids, steps=chunked(40)))
    assert first.true_tokens == cut


def test_the_head_is_never_computed() -> None:
    model = tiny_model("llama")

    def refuse(*_: object) -> None:
        raise AssertionError("the head was computed")

    model.lm_head.register_forward_hook(refuse)
    prefill(model, tiny_tokens(9), steps=chunked(9))
    burn(model, 9)


def test_the_last_token_may_be_left_out() -> None:
    assert prefill(tiny_model("llama"), tiny_tokens(9), steps=[(0, 8)]).true_tokens == 8


def test_progress_tells_the_tokens_in_the_cache_after_every_step() -> None:
    seen: list[int] = []
    model = tiny_model("llama")
    first = prefill(model, tiny_tokens(16), steps=[(0, 5)], progress=seen.append)
    prefill(model, tiny_tokens(16), steps=[(5, 12), (12, 16)], onto=first, progress=seen.append)
    assert seen == [5, 12, 16]


def test_no_steps_onto_a_cache_returns_that_cache() -> None:
    model = tiny_model("llama")
    snapshot = prefill(model, tiny_tokens(5), steps=[(0, 5)])
    assert prefill(model, tiny_tokens(5), steps=[], onto=snapshot) is snapshot


def test_prompt_without_a_token_to_prefill_is_refused() -> None:
    with pytest.raises(EmptyPromptError):
        prefill(tiny_model("llama"), tiny_tokens(1), steps=[])


@pytest.mark.parametrize(
    "steps", [[(1, 5)], [(0, 5), (6, 9)], [(0, 5), (4, 9)], [(0, 0)], [(0, 10)], [(0, 5), (5, 3)], [(-1, 4)]]
)
def test_steps_with_a_gap_overlap_or_past_the_end_are_refused(steps: list[tuple[int, int]]) -> None:
    with pytest.raises(LayoutMismatchError, match="does not continue"):
        prefill(tiny_model("llama"), tiny_tokens(9), steps=steps)


def test_steps_that_do_not_start_where_the_cache_ends_are_refused() -> None:
    model = tiny_model("llama")
    snapshot = prefill(model, tiny_tokens(9), steps=[(0, 5)])
    with pytest.raises(LayoutMismatchError, match="a cache of 5"):
        prefill(model, tiny_tokens(9), steps=[(0, 9)], onto=snapshot)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_id_outside_the_vocabulary_is_refused_without_being_named(wrong: int) -> None:
    with pytest.raises(PromptError, match="outside the model's vocabulary") as caught:
        prefill(tiny_model("llama"), [3, wrong], steps=[(0, 2)])
    assert f" {wrong} " not in str(caught.value)


@pytest.mark.parametrize("tokens", [0, 1, BURN_STEP_TOKENS, BURN_STEP_TOKENS + 3])
def test_burn_runs_exactly_the_padding_tokens(tokens: int) -> None:
    model = tiny_model("llama")
    sizes: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    burn(model, tokens)
    assert sum(sizes) == tokens
    assert all(size <= BURN_STEP_TOKENS for size in sizes)
