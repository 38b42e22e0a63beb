from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from splitinfer import embedded
from splitinfer.cache.live import feed, new_cache
from splitinfer.cache.snapshot import take
from splitinfer.errors import ModelError, PromptError, UnsupportedCacheError, UnsupportedModelError
from splitinfer.model.layerwise import LocalAttention, LocalLinear, cached_rows, layerwise, matrices

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
SUPPORTED = {
    "llama": ("llama", {}),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "llama, biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 positions": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn positions": ("llama", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
}
REFUSED = {
    "mistral with a window": ("mistral", {"sliding_window": 16}, "sliding windows"),
    "qwen2 with a window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "sliding",
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}, "'gpt2' is not written out"),
    "gemma": ("gemma", {}, "'gemma' is not written out"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "'gelu' is not supported"),
    "positions that depend on the length": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "of type 'dynamic' are not one of",
    ),
}


def build(kind: str, own: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(1)
    fields = {**({} if kind == "gpt2" else SHAPE), **own, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # Fresh models have no bias and equal norms, which would hide a bias or norm in the wrong place.
        if name.endswith("bias") or "norm" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def step_all(model: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    written, attention, linear = layerwise(model), LocalAttention(2), LocalLinear(matrices(model))
    steps = [
        written.step(token, position, attend=attention.attend, linear=linear.linear)
        for position, token in enumerate(token_ids)
    ]
    return np.array(steps)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_logit_is_that_of_transformers(name: str) -> None:
    kind, own = SUPPORTED[name]
    model = build(kind, own)
    token_ids = torch.randint(0, 64, (70,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([token_ids])).logits[0].numpy()
    assert expected.std() > 0.01
    assert np.abs(step_all(model, token_ids) - expected).max() < 1e-4 * expected.std() + 1e-6


def test_the_embedded_model_continues_its_own_cache_with_the_logits_of_transformers() -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32, local_files_only=True).eval()
    token_ids = torch.randint(3, model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    cache = new_cache(model.config)
    with torch.inference_mode():
        feed(model.base_model, token_ids[:-1], cache)
        rows = cached_rows(take(cache, true_tokens=39))
        expected = model(torch.tensor([token_ids])).logits[0, -1].numpy()
    written, attention = layerwise(model), LocalAttention(len(rows))
    for layer, (keys, values) in enumerate(rows):
        attention.load(layer, keys, values)
    linear = LocalLinear(matrices(model)).linear
    logits = written.step(token_ids[-1], 39, attend=attention.attend, linear=linear)
    assert np.abs(logits - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_llama_like_is_refused_by_name(name: str) -> None:
    kind, own, words = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=words):
        layerwise(build(kind, own))
    with pytest.raises(UnsupportedModelError, match=words):
        matrices(build(kind, own))


def test_only_an_untied_head_is_a_matrix_of_its_own() -> None:
    names = {"qkv", "o", "gate_up", "down"}
    assert {name for _, name in matrices(build("llama", {}))} == names
    untied = matrices(build("llama", {"tie_word_embeddings": False}))
    assert {name for _, name in untied} == names | {"head"}
    assert untied[2, "head"].shape == (64, 48)


@pytest.mark.parametrize("token_id", [-1, 64])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    written = layerwise(build("llama", {}))
    with pytest.raises(PromptError, match="vocabulary of 64"):
        written.step(token_id, 0, attend=LocalAttention(2).attend, linear=lambda *_: np.zeros(80))


def test_logits_that_are_not_finite_are_refused() -> None:
    model = build("llama", {})
    linear = LocalLinear(matrices(model)).linear

    def broken(layer: int, name: str, vector: np.ndarray) -> np.ndarray:
        return linear(layer, name, vector) * (np.nan if name == "down" else 1)

    with pytest.raises(ModelError, match="not finite"):
        layerwise(model).step(1, 0, attend=LocalAttention(2).attend, linear=broken)


def test_a_cache_with_windows_is_refused_by_kind() -> None:
    model = build("mistral", {"sliding_window": 16})
    cache = new_cache(model.config)
    with torch.inference_mode():
        feed(model.base_model, [1, 2, 3], cache)
    with pytest.raises(UnsupportedCacheError, match="is sliding, expected full"):
        cached_rows(take(cache, true_tokens=3))
