"""Rules of the decode loop: why it ends, what it leaves behind, the same tokens wherever it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import LayoutMismatchError, ModelError, PromptError, UsageError
from splitinfer.handoff import SamplingParams
from splitinfer.model.decode import Decoder
from splitinfer.model.prefill import prefill
from tests.support.cache_models import MODEL_NAMES, VOCABULARY, chunked, live_cache, tiny_model, tiny_tokens
from tests.support.layouts import bits

PROMPT_TOKENS = 40


class NeverStops:
    stopped = False

    def __init__(self) -> None:
        self.seen: list[int] = []

    def push(self, token_id: int) -> str:
        self.seen.append(token_id)
        return ""


class StopsAfter(NeverStops):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    @property
    def stopped(self) -> bool:  # type: ignore[override]
        return len(self.seen) >= self._tokens


def snapshot_of(model: Any) -> CacheSnapshot:
    return prefill(model, tiny_tokens(PROMPT_TOKENS), steps=chunked(PROMPT_TOKENS - 1))


def decoder_of(model: Any, snapshot: CacheSnapshot, eos: frozenset[int] = frozenset(), **options: Any) -> Decoder:
    stopper = options.pop("stopper", None) or NeverStops()
    last_token = options.pop("last_token", tiny_tokens(PROMPT_TOKENS)[-1])
    params = SamplingParams(**{"max_new_tokens": 8, **options})
    return Decoder(model, snapshot, last_token=last_token, params=params, eos_token_ids=eos, stopper=stopper)


def greedy_reference(model: Any, count: int) -> list[int]:
    """Greedy tokens from a cache that never moved, without splitinfer."""
    ids = tiny_tokens(PROMPT_TOKENS)
    cache, token, tokens = live_cache(model, ids, chunked(PROMPT_TOKENS - 1)), ids[-1], []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
            token = int(logits[0, -1].argmax())
            tokens.append(token)
    return tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_greedy_tokens_are_those_of_a_cache_that_never_moved(name: str, dtype: str) -> None:
    model = tiny_model(name, dtype)
    decoder = decoder_of(model, snapshot_of(model), max_new_tokens=20)
    assert list(decoder) == greedy_reference(model, 20)
    assert decoder.finish_reason == "length"


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_greedy_tokens_are_those_of_transformers_generate(name: str) -> None:
    model = tiny_model(name)
    ids = torch.tensor([tiny_tokens(PROMPT_TOKENS)])
    mask = torch.ones_like(ids)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=VOCABULARY + 1)
    assert list(decoder_of(model, snapshot_of(model), max_new_tokens=6)) == wanted[0, PROMPT_TOKENS:].tolist()


def test_the_same_seed_decodes_the_same_tokens_again() -> None:
    model = tiny_model("mistral")
    snapshot = snapshot_of(model)
    options: dict[str, Any] = {"temperature": 1.5, "seed": 4, "max_new_tokens": 20}
    first = list(decoder_of(model, snapshot, **options))
    assert first == list(decoder_of(model, snapshot, **options))
    assert first != list(decoder_of(model, snapshot, **{**options, "seed": 5}))


def test_end_of_text_ends_and_is_not_among_the_tokens() -> None:
    model = tiny_model("llama")
    wanted = greedy_reference(model, 8)
    at = next(i for i in range(1, 8) if wanted[i] not in wanted[:i])
    stopper = NeverStops()
    decoder = decoder_of(model, snapshot_of(model), frozenset({wanted[at]}), stopper=stopper)
    assert list(decoder) == wanted[:at] == stopper.seen
    assert decoder.finish_reason == "end_of_text"


def test_end_of_text_first_gives_no_tokens() -> None:
    model = tiny_model("llama")
    decoder = decoder_of(model, snapshot_of(model), frozenset(range(VOCABULARY)))
    assert list(decoder) == []
    assert decoder.finish_reason == "end_of_text"


def test_stop_ends_with_the_token_that_completed_it() -> None:
    model = tiny_model("llama")
    decoder = decoder_of(model, snapshot_of(model), stopper=StopsAfter(3))
    assert list(decoder) == greedy_reference(model, 3)
    assert decoder.finish_reason == "stop"


def test_stop_on_the_last_permitted_token_is_a_stop() -> None:
    model = tiny_model("llama")
    decoder = decoder_of(model, snapshot_of(model), stopper=StopsAfter(3), max_new_tokens=3)
    assert len(list(decoder)) == 3
    assert decoder.finish_reason == "stop"


def test_tokens_come_one_step_at_a_time() -> None:
    model = tiny_model("llama")
    forwards: list[int] = []
    decoder = decoder_of(model, snapshot_of(model))
    model.register_forward_hook(lambda *_: forwards.append(1))
    next(decoder)
    assert len(forwards) == 1
    assert decoder.finish_reason is None
    assert len(list(decoder)) == 7
    assert len(forwards) == 8


def test_an_ended_decoder_stays_ended() -> None:
    model = tiny_model("llama")
    decoder = decoder_of(model, snapshot_of(model), max_new_tokens=1)
    assert len(list(decoder)) == 1
    assert list(decoder) == []


@pytest.mark.parametrize("taken", [0, 1, 8])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_closing_leaves_the_snapshot_as_it_was(name: str, taken: int) -> None:
    model = tiny_model(name)
    snapshot = snapshot_of(model)
    before = bits(snapshot)
    decoder = decoder_of(model, snapshot)
    for _ in range(taken):
        next(decoder)
    decoder.close()
    decoder.close()
    assert bits(snapshot) == before
    assert list(decoder) == []


def test_the_cache_that_grew_is_zeroed_at_the_end() -> None:
    model = tiny_model("gemma3_text")
    caches: list[Any] = []
    model.register_forward_hook(lambda _, __, kwargs, ___: caches.append(kwargs["past_key_values"]), with_kwargs=True)
    list(decoder_of(model, snapshot_of(model)))
    assert caches[-1].get_seq_length() == PROMPT_TOKENS + 7
    assert not any(layer.keys.any() or layer.values.any() for layer in caches[-1].layers)


def test_a_cache_that_overflows_is_refused() -> None:
    model = tiny_model("llama")
    snapshot = snapshot_of(model)
    with torch.inference_mode():
        snapshot.layers[0]["values"].fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        next(decoder_of(model, snapshot))


def test_cache_of_another_model_is_refused() -> None:
    with pytest.raises(LayoutMismatchError):
        decoder_of(tiny_model("mistral"), snapshot_of(tiny_model("llama")))


@pytest.mark.parametrize("last_token", [-1, VOCABULARY])
def test_last_token_outside_the_vocabulary_is_refused(last_token: int) -> None:
    model = tiny_model("llama")
    with pytest.raises(PromptError, match="vocabulary"):
        decoder_of(model, snapshot_of(model), last_token=last_token)


def test_sampling_out_of_range_is_refused_before_the_first_step() -> None:
    model = tiny_model("llama")
    with pytest.raises(UsageError, match="temperature"):
        decoder_of(model, snapshot_of(model), temperature=-1.0)
