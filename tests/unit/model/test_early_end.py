"""Rules of the early end: the same bits, less work, nothing left behind; where the model does not bear it, never."""

from __future__ import annotations

import argparse
import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3nTextConfig, Qwen3NextConfig
from transformers.cache_utils import DynamicLayer

from splitinfer.cache.snapshot import CacheSnapshot, new_cache, wipe
from splitinfer.cli.model import add_parser
from splitinfer.errors import UnsupportedCacheError
from splitinfer.handoff import SamplingParams
from splitinfer.model.early_end import ending_early
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import burn, prefill
from splitinfer.model.probe import prefill_ends_early
from tests.support.cache_models import MODEL_NAMES, chunked, tiny_model, tiny_tokens
from tests.support.early_end_models import MISBEHAVING, refusing
from tests.support.tiny_models import KINDS, build

SOURCES = ("embedded", *KINDS)
SLIDING = tiny_model("gemma3_text")


@pytest.fixture(scope="module", params=SOURCES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    source = request.param
    return load(source if source == "embedded" else str(build(tmp_path_factory.mktemp("model"), source)))


def bits(snapshot: CacheSnapshot) -> list[bytes]:
    tensors = [part for layer in snapshot.layers for part in layer.values()]
    return [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors]


def logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids])).logits


def after_the_last_store(model: Any) -> Iterator[Any]:
    """The modules of a Llama-like model that work on what the last layer's attention gives."""
    last = model.model.layers[-1]
    yield from (last.self_attn.o_proj, last.post_attention_layernorm, last.mlp, model.model.norm, model.lm_head)


def count_calls(modules: Iterator[Any]) -> list[str]:
    called: list[str] = []
    for module in modules:
        module.register_forward_hook(lambda found, *_: called.append(type(found).__name__))
    return called


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_every_attention_only_model_ends_early(loaded: LoadedModel) -> None:
    assert loaded.prefill_ends_early


def test_caches_are_bit_identical_with_and_without(loaded: LoadedModel) -> None:
    ids = tiny_tokens(61)
    whole = prefill(loaded.model, ids, steps=chunked(60, 13))
    early = prefill(loaded.model, ids, steps=chunked(60, 13), ends_early=True)
    assert early.layout == whole.layout
    assert bits(early) == bits(whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_caches_are_bit_identical_in_every_dtype(name: str, dtype: str) -> None:
    model, ids = tiny_model(name, dtype), tiny_tokens(40)
    assert prefill_ends_early(model)
    assert bits(prefill(model, ids, steps=chunked(40), ends_early=True)) == bits(prefill(model, ids, steps=chunked(40)))


@given(cuts=st.sets(st.integers(1, 39), max_size=4), early=st.lists(st.booleans(), min_size=5, max_size=5))
@settings(deadline=None, max_examples=10)
def test_any_steps_in_any_mixture_give_the_same_bits(cuts: set[int], early: list[bool]) -> None:
    ids, steps = tiny_tokens(40), list(pairwise([0, *sorted(cuts), 40]))
    snapshot = None
    for step, ends_early in zip(steps, early, strict=False):
        snapshot = prefill(SLIDING, ids, steps=[step], onto=snapshot, ends_early=ends_early)
    assert snapshot is not None
    assert bits(snapshot) == bits(prefill(SLIDING, ids, steps=steps))


def test_tokens_decoded_on_an_early_ended_cache_are_the_same(loaded: LoadedModel) -> None:
    def tokens(engine: Engine, **sampling: Any) -> tuple[int, ...]:
        ids = tiny_tokens(50)
        decoding = engine.decode(
            engine.prefill(ids, steps=chunked(49, 20)),
            last_token=ids[-1],
            params=SamplingParams(max_new_tokens=16, **sampling),
        )
        list(decoding)
        return decoding.token_ids

    whole, early = Engine(replace(loaded, prefill_ends_early=False)), Engine(loaded)
    assert tokens(early) == tokens(whole)
    assert tokens(early, temperature=1.0, seed=3) == tokens(whole, temperature=1.0, seed=3)


def test_layers_that_share_earlier_keys_are_not_waited_for() -> None:
    config = Gemma3nTextConfig(
        **{"vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size": 32, "hidden_size_per_layer_input": 8},
        **{"intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 8, "num_kv_shared_layers": 2, "laurel_rank": 4, "sliding_window": 16, "pad_token_id": 0},
        **{"activation_sparsity_pattern": [0.0] * 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    computed = count_calls(iter(model.model.layers[2:]))
    caches = [DynamicCache(config=config), DynamicCache(config=config)]
    ids = torch.tensor([[index % 64 for index in tiny_tokens(24)]])
    with torch.inference_mode():
        for part in (ids[:, :20], ids[:, 20:]):
            with ending_early(caches[0]):
                model.base_model(input_ids=part, past_key_values=caches[0], use_cache=True)
            assert computed == []
            model.base_model(input_ids=part, past_key_values=caches[1], use_cache=True)
            computed.clear()
    for early, whole in zip(caches[0].layers[:2], caches[1].layers[:2], strict=True):
        assert torch.equal(early.keys, whole.keys)
        assert torch.equal(early.values, whole.values)


# --- less work --------------------------------------------------------------------------------------------------------


def test_nothing_after_the_last_store_is_computed() -> None:
    model = tiny_model("llama")
    called = count_calls(after_the_last_store(model))
    prefill(model, tiny_tokens(20), steps=chunked(20), ends_early=True)
    burn(model, 20, ends_early=True)
    assert called == []
    prefill(model, tiny_tokens(20), steps=[(0, 20)])
    assert len(called) == 4


def test_engine_prefills_and_burns_as_was_decided_at_load(tmp_path: Path) -> None:
    loaded = load(str(build(tmp_path)))
    called = count_calls(after_the_last_store(loaded.model))
    early, whole = Engine(loaded), Engine(replace(loaded, prefill_ends_early=False))
    called.clear()
    early.prefill(tiny_tokens(9), steps=[(0, 8)])
    early.burn(9)
    assert called == []
    whole.prefill(tiny_tokens(9), steps=[(0, 8)])
    whole.burn(9)
    assert len(called) == 8


def test_progress_tells_every_step() -> None:
    seen: list[int] = []
    model = tiny_model("llama")
    first = prefill(model, tiny_tokens(16), steps=[(0, 5)], progress=seen.append, ends_early=True)
    prefill(model, tiny_tokens(16), steps=[(5, 12), (12, 16)], onto=first, progress=seen.append, ends_early=True)
    assert seen == [5, 12, 16]


def test_info_says_whether_prefill_ends_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))

    def told(source: str) -> object:
        args = parser.parse_args(["model", "info", source, "--json"])
        assert args.handler(args) == 0
        return json.loads(capsys.readouterr().out)["prefill_ends_early"]

    config = build(tmp_path) / "config.json"
    assert told("embedded") is told(str(tmp_path)) is True
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "rwkv"}))
    assert told(str(tmp_path)) is False


# --- nothing left behind ----------------------------------------------------------------------------------------------


def test_model_is_as_before_after_many_early_ends(loaded: LoadedModel) -> None:
    model, ids = loaded.model, tiny_tokens(20)
    before = logits(model, ids), model.config.to_dict(), [sorted(vars(module)) for module in model.modules()]
    for _ in range(30):
        prefill(model, ids, steps=chunked(20), ends_early=True)
        burn(model, 3, ends_early=True)
    assert torch.equal(logits(model, ids), before[0])
    assert model.config.to_dict() == before[1]
    assert [sorted(vars(module)) for module in model.modules()] == before[2]
    assert not torch.is_inference_mode_enabled()


def test_hidden_states_are_freed_without_the_garbage_collector() -> None:
    model, states = tiny_model("llama"), []
    model.model.layers[-1].input_layernorm.register_forward_hook(lambda _, __, out: states.append(weakref.ref(out)))
    gc.disable()
    try:
        snapshot = prefill(model, tiny_tokens(20), steps=chunked(20), ends_early=True)
        assert len(states) == 3
        assert [state() for state in states] == [None, None, None]
    finally:
        gc.enable()
    assert snapshot.true_tokens == 20


def test_wipe_zeroes_an_early_ended_cache() -> None:
    snapshot = prefill(tiny_model("gemma3_text"), tiny_tokens(40), steps=chunked(40), ends_early=True)
    assert all(any(part) for part in bits(snapshot))
    wipe(snapshot)
    assert not any(any(part) for part in bits(snapshot))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_else_a_forward_raises_passes_through(error: type[BaseException]) -> None:
    model, cache = tiny_model("llama"), new_cache(tiny_model("llama").config)

    def fail(*_: object) -> None:
        raise error("from the model")

    hook = model.model.layers[0].mlp.register_forward_hook(fail)
    with pytest.raises(error, match="from the model"):
        prefill(model, tiny_tokens(9), steps=[(0, 9)], ends_early=True)
    with pytest.raises(error, match="from the model"), ending_early(cache):
        model.base_model(input_ids=torch.tensor([[3, 4]]), past_key_values=cache, use_cache=True)
    assert "update" not in vars(cache.layers[-1])
    hook.remove()
    assert prefill(model, tiny_tokens(9), steps=[(0, 9)], ends_early=True).true_tokens == 9


# --- where the model does not bear it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MISBEHAVING.values(), ids=MISBEHAVING)
def test_model_that_does_not_bear_it_prefills_whole(make: Any) -> None:
    assert prefill_ends_early(tiny_model("llama"))
    model = make()
    assert not prefill_ends_early(model)
    # What it does not bear is the early end alone.
    assert prefill(model, tiny_tokens(9), steps=[(0, 5), (5, 9)]).true_tokens == 9


def test_error_of_the_whole_forward_is_left_to_the_prefill() -> None:
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    assert not prefill_ends_early(model)
    with pytest.raises(ZeroDivisionError):
        prefill(model, tiny_tokens(3), steps=[(0, 3)])


def test_probe_that_failed_leaves_a_model_that_prefills() -> None:
    model = refusing()
    assert not prefill_ends_early(model)
    ids = tiny_tokens(9)
    assert bits(prefill(model, ids, steps=chunked(9))) == bits(prefill(tiny_model("llama"), ids, steps=chunked(9)))


def test_forward_that_passes_its_last_layer_is_refused() -> None:
    cache = new_cache(tiny_model("llama").config)
    with pytest.raises(UnsupportedCacheError, match="does not end"), ending_early(cache):
        pass
    assert "update" not in vars(cache.layers[-1])


def test_recurrent_last_layer_is_refused() -> None:
    kinds = ["full_attention", "linear_attention"]
    cache = DynamicCache(config=Qwen3NextConfig(num_hidden_layers=2, layer_types=kinds))
    with pytest.raises(UnsupportedCacheError, match="LinearAttentionLayer"), ending_early(cache):
        pytest.fail("the forward was run")


def test_layer_of_another_class_is_refused() -> None:
    class Counting(DynamicLayer):
        """What it does after storing is not known."""

    cache = DynamicCache(config=tiny_model("llama").config)
    cache.layers[-1] = Counting()
    with pytest.raises(UnsupportedCacheError, match="Counting"), ending_early(cache):
        pytest.fail("the forward was run")
