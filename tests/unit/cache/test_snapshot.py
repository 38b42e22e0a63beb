"""Rules of the frozen cache: what is taken, what is refused, what continues."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from splitinfer.cache.live import new_cache, wipe_live
from splitinfer.cache.snapshot import (
    CacheSnapshot,
    cut,
    layout_of,
    restore,
    take,
    wipe,
)
from splitinfer.errors import LayoutMismatchError, UnsupportedCacheError
from splitinfer.schedule import held_rows
from tests.support.cache_models import MODEL_NAMES, WINDOW, chunked, live_cache, tiny_config, tiny_model, tiny_tokens
from tests.support.cache_recipient import continuation_logits
from tests.support.layouts import bits


def snapshot_of(name: str, tokens: int, dtype: str = "float32") -> CacheSnapshot:
    cache = live_cache(tiny_model(name, dtype), tiny_tokens(tokens), chunked(tokens))
    return take(cache, true_tokens=tokens)


@pytest.mark.parametrize("tokens", [1, WINDOW - 1, WINDOW, WINDOW + 1, 40])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_restored_cache_continues_bit_identically(name: str, tokens: int) -> None:
    model, ids = tiny_model(name), tiny_tokens(tokens)
    snapshot = take(live_cache(model, ids, chunked(tokens)), true_tokens=tokens)
    stayed = continuation_logits(model, live_cache(model, ids, chunked(tokens)))
    assert torch.equal(continuation_logits(model, restore(snapshot, model.config)), stayed)


def test_continuing_leaves_the_snapshot_as_it_was() -> None:
    model = tiny_model("gemma3_text")
    snapshot = take(live_cache(model, tiny_tokens(40), chunked(40)), true_tokens=40)
    before = bits(snapshot)
    first = continuation_logits(model, restore(snapshot, model.config))
    assert torch.equal(continuation_logits(model, restore(snapshot, model.config)), first)
    assert bits(snapshot) == before


def test_taking_copies_nothing() -> None:
    cache = live_cache(tiny_model("llama"), tiny_tokens(9), chunked(9))
    snapshot = take(cache, true_tokens=9)
    assert [layer["keys"].data_ptr() for layer in snapshot.layers] == [layer.keys.data_ptr() for layer in cache.layers]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_layout_from_one_token_is_the_layout_of_a_prompt(name: str, dtype: str) -> None:
    layout = layout_of(tiny_model(name, dtype))
    assert layout == snapshot_of(name, 40, dtype).layout
    assert {tensor.dtype for layer in layout.layers for tensor in layer.tensors} == {dtype}
    assert {layer.window for layer in layout.layers if layer.kind == "sliding"} <= {WINDOW}


def test_layout_names_both_kinds_in_order() -> None:
    assert [layer.kind for layer in layout_of(tiny_model("gemma3_text")).layers] == ["sliding", "full", "sliding"]


def test_sliding_layer_holds_one_row_less_than_its_window() -> None:
    layer = layout_of(tiny_model("mistral")).layers[0]
    assert [held_rows(layer, layer.tensors[0], tokens) for tokens in (5, WINDOW - 1, WINDOW, 40)] == [5, 15, 15, 15]


def test_other_token_count_is_refused() -> None:
    cache = live_cache(tiny_model("mistral"), tiny_tokens(20), chunked(20))
    with pytest.raises(LayoutMismatchError, match="20 tokens, not 19"):
        take(cache, true_tokens=19)


def test_unknown_layer_kind_is_refused_by_name_before_computing() -> None:
    config = tiny_config("llama")
    config.layer_types = ["full_attention", "minimax_m3_sparse"]
    with pytest.raises(UnsupportedCacheError, match="minimax_m3_sparse"):
        new_cache(config)


def test_subclass_of_a_known_layer_is_refused() -> None:
    class OtherLayer(DynamicLayer):
        pass

    cache = live_cache(tiny_model("llama"), tiny_tokens(4), chunked(4))
    cache.layers[1] = OtherLayer()
    with pytest.raises(UnsupportedCacheError, match="layer 1 is a OtherLayer"):
        take(cache, true_tokens=4)


def test_unlisted_layer_attribute_is_refused_by_name() -> None:
    cache = live_cache(tiny_model("llama"), tiny_tokens(4), chunked(4))
    cache.layers[1].scales = torch.ones(1)
    with pytest.raises(UnsupportedCacheError, match="scales"):
        take(cache, true_tokens=4)


def test_unlisted_cache_attribute_is_refused_by_name() -> None:
    cache = live_cache(tiny_model("llama"), tiny_tokens(4), chunked(4))
    cache.linear_cache = [torch.ones(1)]
    with pytest.raises(UnsupportedCacheError, match="linear_cache"):
        take(cache, true_tokens=4)


def test_subclass_of_the_cache_is_refused() -> None:
    class OtherCache(DynamicCache):
        pass

    with pytest.raises(UnsupportedCacheError, match="OtherCache"):
        take(OtherCache(config=tiny_config("llama")), true_tokens=4)


def test_layer_that_the_model_never_filled_is_refused() -> None:
    with pytest.raises(UnsupportedCacheError, match="kept elsewhere"):
        take(new_cache(tiny_config("llama")), true_tokens=1)


def test_batch_of_two_is_refused() -> None:
    cache, model = new_cache(tiny_config("llama")), tiny_model("llama")
    with torch.inference_mode():
        model(input_ids=torch.tensor([[3, 4], [5, 6]]), past_key_values=cache, use_cache=True)
    with pytest.raises(UnsupportedCacheError, match="batch 1"):
        take(cache, true_tokens=2)


def test_window_of_one_is_refused() -> None:
    cache = live_cache(tiny_model("mistral"), tiny_tokens(4), chunked(4))
    cache.layers[0].sliding_window = 1
    with pytest.raises(UnsupportedCacheError, match="window of 1"):
        take(cache, true_tokens=4)


@pytest.mark.parametrize("other", ["mistral", "gemma3_text"])
def test_snapshot_of_another_model_is_refused(other: str) -> None:
    with pytest.raises(LayoutMismatchError):
        restore(snapshot_of("llama", 8), tiny_config(other))


def test_snapshot_of_another_window_is_refused() -> None:
    config = tiny_config("mistral")
    config.sliding_window = 32
    with pytest.raises(LayoutMismatchError, match="window"):
        restore(snapshot_of("mistral", 8), config)


def test_snapshot_with_rows_missing_is_refused() -> None:
    snapshot = snapshot_of("mistral", 40)
    short = tuple({name: tensor[:, :, 1:] for name, tensor in layer.items()} for layer in snapshot.layers)
    with pytest.raises(LayoutMismatchError, match="15 rows"):
        restore(dataclasses.replace(snapshot, layers=short), tiny_config("mistral"))


def test_snapshot_of_another_dtype_is_refused() -> None:
    snapshot = snapshot_of("llama", 8)
    layers = tuple({name: tensor.half() for name, tensor in layer.items()} for layer in snapshot.layers)
    with pytest.raises(LayoutMismatchError, match="float32"):
        restore(dataclasses.replace(snapshot, layers=layers), tiny_config("llama"))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_cut_is_the_cache_of_the_shorter_prompt(name: str) -> None:
    model, ids = tiny_model(name), tiny_tokens(WINDOW - 1)
    whole = take(live_cache(model, ids, [(0, 6), (6, 15)]), true_tokens=WINDOW - 1)
    first = take(live_cache(model, ids, [(0, 6)]), true_tokens=6)
    assert bits(cut(whole, 6)) == bits(first)


def test_cut_before_a_window_is_refused() -> None:
    with pytest.raises(UnsupportedCacheError, match="window of 16"):
        cut(snapshot_of("gemma3_text", 40), 20)


@pytest.mark.parametrize("tokens", [0, 9])
def test_cut_outside_the_cache_is_refused(tokens: int) -> None:
    with pytest.raises(LayoutMismatchError):
        cut(snapshot_of("llama", 8), tokens)


def test_wipe_zeroes_also_what_lies_outside_the_window() -> None:
    snapshot = snapshot_of("mistral", 40)
    storage = snapshot.layers[0]["keys"].untyped_storage()
    assert any(storage.tolist())
    wipe(snapshot)
    assert not any(storage.tolist())
    assert not snapshot.layers[1]["values"].any()


def test_wiping_a_live_cache_zeroes_every_layer() -> None:
    cache = live_cache(tiny_model("gemma3_text"), tiny_tokens(8), chunked(8))
    wipe_live(cache)
    assert not any(layer.keys.any() or layer.values.any() for layer in cache.layers)


def test_no_tensor_is_in_the_repr() -> None:
    shown = repr(snapshot_of("llama", 8))
    assert "tensor(" not in shown
    assert len(shown) < 600
