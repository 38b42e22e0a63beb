"""Tiny random models with each cache layer kind, the same weights in every process."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig, MistralConfig

from tests.support.byte_tokenizer import BYTE_VOCABULARY

WINDOW = 16
VOCABULARY = BYTE_VOCABULARY
MODEL_NAMES = ("llama", "mistral", "gemma3_text")

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(name: str) -> Any:
    if name == "llama":
        return LlamaConfig(num_hidden_layers=2, **_COMMON)
    if name == "mistral":
        return MistralConfig(num_hidden_layers=2, sliding_window=WINDOW, **_COMMON)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(num_hidden_layers=3, sliding_window=WINDOW, layer_types=kinds, **_COMMON)


def tiny_model(name: str, dtype: str = "float32") -> Any:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_config(name), attn_implementation="sdpa")
    return model.to(getattr(torch, dtype)).eval()


def tiny_tokens(count: int, seed: int = 3) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(x) for x in torch.randint(3, VOCABULARY, (count,), generator=generator)]


def chunked(count: int, chunk: int = 7, start: int = 0) -> list[tuple[int, int]]:
    return [(at, min(at + chunk, count)) for at in range(start, count, chunk)]


def live_cache(model: Any, token_ids: list[int], steps: list[tuple[int, int]]) -> Any:
    """Prefill without splitinfer: the cache that never moved."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for start, stop in steps:
            model(input_ids=torch.tensor([token_ids[start:stop]]), past_key_values=cache, use_cache=True)
    return cache
