"""Every architecture's cache goes through the codec's bytes to a fresh instance of the model and continues bit for bit.

The default run takes one architecture for each kind of layer; `slow` ones are the rest.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from splitinfer import codec
from splitinfer.cache.live import feed, new_cache, wipe_live
from splitinfer.cache.snapshot import CacheSnapshot, cut, layout_of, restore, take
from splitinfer.errors import LayoutMismatchError, UnsupportedCacheError
from splitinfer.handoff import CacheLayout, TensorLayout
from splitinfer.model.loading import load
from splitinfer.model.prefill import prefill
from splitinfer.schedule import pad_tokens
from tests.support.architectures import (
    ARCHITECTURES,
    Architecture,
    save_architecture,
    tiny_architecture,
    token_ids,
)
from tests.support.cache_models import chunked
from tests.support.cache_recipient import continuation_logits, receive
from tests.support.layouts import bits

QUICK = [row for row in ARCHITECTURES if row.is_quick]
# Longer than the window and shorter, in one step and in several.
PROMPTS = [(23, 23), (5, 5), (23, 7)]
# transformers itself gives other logits for these with a cache than without one, whether it moved or not.
CHOOSING = ("deepseek_v32", "glm_moe_dsa")
STATEFUL = ["qwen3_next", "mamba2", "falcon_h1", "minimax", "deepseek_v4"]


def rows(dtype: str = "float32", *, stateful: bool = False) -> list[Any]:
    chosen = [row for row in ARCHITECTURES if (dtype == "float32" or row.is_bfloat16) and row.needs_state >= stateful]
    return [
        pytest.param(row, dtype, id=f"{row.name}-{dtype}", marks=[] if row.is_quick else [pytest.mark.slow])
        for row in chosen
    ]


@cache
def instances(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Two instances of the same weights, that of the sender and that of the recipient."""
    return tiny_architecture(name, dtype), tiny_architecture(name, dtype)


@cache
def layout(name: str, dtype: str = "float32") -> CacheLayout:
    return layout_of(instances(name, dtype)[1])


def prefilled(name: str, dtype: str, tokens: int, chunk: int) -> CacheSnapshot:
    model, _ = instances(name, dtype)
    return prefill(model, token_ids(tokens), steps=chunked(tokens, chunk), layout=layout(name, dtype))


def live(model: Any, tokens: int, chunk: int) -> Any:
    """The cache that never moves."""
    made = new_cache(model.config)
    with torch.inference_mode():
        for start, stop in chunked(tokens, chunk):
            feed(model.base_model, token_ids(tokens)[start:stop], made)
    return made


def moved(snapshot: CacheSnapshot, known: CacheLayout) -> CacheSnapshot:
    counts = {"true_tokens": snapshot.true_tokens, "padded_tokens": pad_tokens(snapshot.true_tokens)}
    packed = codec.pack(snapshot, codec="raw", padded_tokens=counts["padded_tokens"])
    received: CacheSnapshot = receive(known, b"".join(map(bytes, packed.slabs())), **counts)
    return received


@pytest.mark.parametrize(("row", "dtype"), [*rows(), *rows("bfloat16")])
def test_cache_that_moved_as_bytes_continues_bit_identically(row: Architecture, dtype: str) -> None:
    sender, recipient = instances(row.name, dtype)
    known = layout(row.name, dtype)
    assert tuple(sorted({layer.kind for layer in known.layers})) == row.kinds
    for tokens, chunk in PROMPTS:
        stayed = continuation_logits(sender, live(sender, tokens, chunk))
        received = moved(prefilled(row.name, dtype, tokens, chunk), known)
        assert torch.isfinite(stayed).all()
        assert torch.equal(continuation_logits(recipient, restore(received, recipient.config)), stayed), (tokens, chunk)


@pytest.mark.parametrize(("row", "dtype"), rows(stateful=True))
def test_keys_and_values_alone_do_not_continue(row: Architecture, dtype: str) -> None:
    """The negative control: the same comparison fails where only keys and values moved."""
    sender, recipient = instances(row.name, dtype)
    snapshot = prefilled(row.name, dtype, 23, 23)
    naive = new_cache(recipient.config)
    for layer, tensors in zip(naive.layers, snapshot.layers, strict=True):
        if "keys" in tensors:
            layer.update(tensors["keys"], tensors.get("values", tensors["keys"]))
    try:
        continued = continuation_logits(recipient, naive)
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
        return
    assert not torch.equal(continued, continuation_logits(sender, live(sender, 23, 23)))


@pytest.mark.parametrize(("row", "dtype"), [row for row in rows() if row.values[0].name not in CHOOSING])
def test_what_is_decoded_from_a_cache_is_what_the_model_computes_without_one(row: Architecture, dtype: str) -> None:
    model, _ = instances(row.name, dtype)
    ids = token_ids(24)
    snapshot = prefill(model, ids, steps=chunked(23), layout=layout(row.name, dtype))
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        step = feed(model, ids[-1:], restore(snapshot, model.config)).logits[0, -1]
    assert torch.allclose(whole, step, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_continuing_and_wiping_leave_the_snapshot_as_it_was(row: Architecture) -> None:
    model, _ = instances(row.name)
    snapshot = prefilled(row.name, "float32", 23, 23)
    before = bits(snapshot)
    continued = restore(snapshot, model.config)
    first = continuation_logits(model, continued)
    wipe_live(continued)
    assert bits(snapshot) == before
    assert torch.equal(continuation_logits(model, restore(snapshot, model.config)), first)


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_snapshot_is_frozen_while_the_live_cache_goes_on(row: Architecture) -> None:
    model, _ = instances(row.name)
    going_on = live(model, 23, 23)
    snapshot = take(going_on, true_tokens=23)
    before = bits(snapshot)
    continuation_logits(model, going_on)
    assert bits(snapshot) == before


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_prefill_onto_a_moved_cache_is_the_prefill_of_the_whole(row: Architecture) -> None:
    model, _ = instances(row.name)
    known = layout(row.name)
    first = moved(prefilled(row.name, "float32", 14, 7), known)
    ids = token_ids(23)
    assert token_ids(14) == ids[:14]
    both = prefill(model, ids, steps=chunked(23, start=14), onto=first, layout=known)
    assert bits(both) == bits(prefilled(row.name, "float32", 23, 7))


@pytest.mark.parametrize("tokens", [1, 3, 4, 8])
def test_states_that_are_still_empty_move_as_well(tokens: int) -> None:
    sender, recipient = instances("deepseek_v4")
    snapshot = prefilled("deepseek_v4", "float32", tokens, tokens)
    assert snapshot.layout == layout("deepseek_v4")
    received = moved(snapshot, layout("deepseek_v4"))
    stayed = continuation_logits(sender, live(sender, tokens, tokens))
    assert torch.equal(continuation_logits(recipient, restore(received, recipient.config)), stayed)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [3, 23])
def test_loaded_bfloat16_model_moves_the_parts_that_it_keeps_in_float32(tokens: int, tmp_path: Path) -> None:
    directory = str(save_architecture(tmp_path / "model", "deepseek_v4"))
    sender, recipient = (load(directory, dtype="bfloat16").model for _ in range(2))
    known = layout_of(recipient)
    dtypes = {tensor.name: tensor.dtype for layer in known.layers for tensor in layer.tensors}
    assert (dtypes["compressor_overlap_kv"], dtypes["compressor_overlap_gate"]) == ("bfloat16", "float32")
    snapshot = prefill(sender, token_ids(tokens), steps=chunked(tokens), layout=known)
    stayed = continuation_logits(sender, live(sender, tokens, 7))
    received = restore(moved(snapshot, known), recipient.config)
    assert torch.equal(continuation_logits(recipient, received), stayed)


def test_float32_state_of_a_bfloat16_model_stays_float32() -> None:
    forms = [tensor for layer in layout("qwen3_next", "bfloat16").layers for tensor in layer.tensors]
    assert {tensor.dtype for tensor in forms if tensor.name == "keys"} == {"bfloat16"}
    assert {tensor.dtype for tensor in forms if tensor.name == "recurrent_states_0"} == {"float32"}


@pytest.mark.parametrize("name", STATEFUL)
def test_cache_with_states_cannot_be_cut(name: str) -> None:
    with pytest.raises(UnsupportedCacheError, match="are gone"):
        cut(prefilled(name, "float32", 23, 23), 22)


@pytest.mark.parametrize(
    ("name", "layer", "attribute", "key", "value"),
    [
        ("qwen3_next", 0, "has_previous_state", 0, False),
        ("qwen3_next", 0, "conv_kernel_size", 0, 3),
        ("mamba2", 1, "record_past", None, True),
        ("deepseek_v4", 1, "entry_count", "indexer", 4),
        ("glm_moe_dsa", 0, "indexer_position_ids", None, torch.zeros(1)),
        ("gemma3n_text", 3, "keys", None, torch.zeros(1)),
    ],
)
def test_mark_that_does_not_follow_from_tensors_and_tokens_is_refused(
    name: str, layer: int, attribute: str, key: Any, value: Any
) -> None:
    going_on = live(instances(name)[0], 23, 23)
    if key is None:
        setattr(going_on.layers[layer], attribute, value)
    else:
        getattr(going_on.layers[layer], attribute)[key] = value
    with pytest.raises(UnsupportedCacheError, match=f"layer {layer} has marks"):
        take(going_on, true_tokens=23)


@pytest.mark.parametrize(
    ("name", "attribute", "key"), [("qwen3_next", "conv_states", 7), ("deepseek_v4", "buffer_kv", "other")]
)
def test_entry_outside_the_table_is_refused_by_name(name: str, attribute: str, key: Any) -> None:
    going_on = live(instances(name)[0], 23, 23)
    index = next(i for i, layer in enumerate(going_on.layers) if hasattr(layer, attribute))
    getattr(going_on.layers[index], attribute)[key] = torch.zeros(1)
    with pytest.raises(UnsupportedCacheError, match=f"{attribute}.{key}"):
        take(going_on, true_tokens=23)


@pytest.mark.parametrize("name", ["mamba2", "deepseek_v4", "minimax"])
def test_tensor_that_the_kind_lacks_is_refused(name: str) -> None:
    snapshot = prefilled(name, "float32", 23, 23)
    added = TensorLayout("keys" if name == "mamba2" else "conv_states_3", "float32", "fixed", (2,))
    layers = [dataclasses.replace(layer, tensors=(*layer.tensors, added)) for layer in snapshot.layout.layers]
    tensors = tuple({**held, added.name: torch.zeros(1, 2)} for held in snapshot.layers)
    forged = CacheSnapshot(CacheLayout(tuple(layers)), 23, tensors)
    with pytest.raises(LayoutMismatchError, match="has no"):
        restore(forged, instances(name)[1].config)


def test_cache_of_another_layout_than_the_models_is_refused() -> None:
    with pytest.raises(LayoutMismatchError, match="layer 0"):
        take(live(instances("llama")[0], 5, 5), true_tokens=5, layout=layout("mamba2"))


@pytest.mark.parametrize("name", ["rwkv", "xlstm", "recurrent_gemma"])
def test_model_whose_state_is_kept_elsewhere_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedCacheError, match=name):
        new_cache(AutoConfig.for_model(name))


def test_forward_that_takes_no_cache_is_refused_by_name() -> None:
    class Stateless(torch.nn.Module):
        device = torch.device("cpu")
        config = LlamaConfig()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(UnsupportedCacheError, match="Stateless takes no cache"):
        feed(Stateless(), [1], new_cache(instances("llama")[0].config))
