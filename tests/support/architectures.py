"""Tiny random models of many architectures, the same weights in every process: one line each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_models import byte_tokenizer

WINDOW = 16
# As many as the byte tokenizer of `save_architecture` has, and more than `cache_models` uses.
VOCABULARY = 262
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
LINEAR = ["linear_attention", "full_attention", "linear_attention"]


@dataclass(frozen=True)
class Architecture:
    """One architecture: its layer kinds, its own fields, and whether keys and values alone lose something."""

    name: str
    kinds: tuple[str, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    needs_state: bool = False
    is_quick: bool = False
    is_bfloat16: bool = False


COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": SLIDING}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
}
INDEXER: dict[str, Any] = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
DELTA: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": LINEAR,
}
MAMBA: dict[str, Any] = {"state_size": 4, "expand": 2, "conv_kernel": 4}
MAMBA_D: dict[str, Any] = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_chunk_size": 8,
}

ARCHITECTURES = (
    Architecture("llama", ("full",), is_quick=True, is_bfloat16=True),
    Architecture("qwen2", ("full",)),
    Architecture("qwen3", ("full",), is_bfloat16=True),
    Architecture("qwen3_moe", ("full",), EXPERTS),
    Architecture("mistral", ("sliding",), {"sliding_window": WINDOW}, needs_state=True, is_bfloat16=True),
    Architecture("gemma", ("full",)),
    Architecture("gemma2", ("full", "sliding"), WINDOWED, needs_state=True),
    Architecture("gemma3_text", ("full", "sliding"), WINDOWED, needs_state=True, is_quick=True, is_bfloat16=True),
    Architecture(
        "gemma3n_text",
        ("empty", "full", "sliding"),
        {
            **WINDOWED,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 4,
        },
        needs_state=True,
        is_quick=True,
    ),
    Architecture(
        "gemma4_text",
        ("empty", "full", "sliding"),
        {
            **WINDOWED,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "global_head_dim": 16,
        },
        needs_state=True,
    ),
    Architecture("gpt2", ("full",), {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, is_bfloat16=True),
    Architecture(
        "gpt_oss",
        ("full", "sliding"),
        {**WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2},
        needs_state=True,
        is_bfloat16=True,
    ),
    Architecture("gpt_neox", ("full",)),
    Architecture("phi", ("full",)),
    Architecture("phi3", ("full",), {"sliding_window": None}),
    Architecture("smollm3", ("full",)),
    Architecture("granite", ("full",)),
    Architecture("glm4_moe", ("full",), ROUTED),
    Architecture("olmo3", ("full", "sliding"), WINDOWED, needs_state=True),
    Architecture("cohere2", ("full", "sliding"), WINDOWED, needs_state=True),
    Architecture(
        "llama4_text",
        ("full", "sliding"),
        {
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
            "no_rope_layers": [1, 0, 1],
            "num_local_experts": 4,
            "intermediate_size_mlp": 32,
        },
        needs_state=True,
    ),
    Architecture("mimo_v2_flash", ("full", "sliding"), {**ROUTED, **WINDOWED, "head_dim": 12, "v_head_dim": 8}),
    Architecture("deepseek_v3", ("full",), {**ROUTED, **LATENT}, is_bfloat16=True),
    Architecture("deepseek_v32", ("indexed",), {**ROUTED, **LATENT, **INDEXER}, needs_state=True),
    Architecture(
        "deepseek_v4",
        ("compressed", "compressed_sparse", "sliding"),
        {
            **ROUTED,
            **INDEXER,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "q_lora_rank": 16,
            "partial_rotary_factor": 0.5,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "hc_mult": 2,
            "o_groups": 2,
            "o_lora_rank": 8,
        },
        needs_state=True,
        is_quick=True,
    ),
    Architecture(
        "glm_moe_dsa",
        ("indexed",),
        {**ROUTED, **LATENT, **INDEXER, "indexer_types": ["full", "shared", "full"]},
        needs_state=True,
        is_quick=True,
    ),
    Architecture(
        "hy_v4",
        ("indexed",),
        {**ROUTED, **LATENT, **INDEXER, "hc_mult": 2, "indexer_types": ["full", "shared", "full"]},
        needs_state=True,
    ),
    Architecture(
        "qwen3_next",
        ("full", "linear"),
        {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 16},
        needs_state=True,
        is_quick=True,
        is_bfloat16=True,
    ),
    Architecture("qwen3_5_text", ("full", "linear"), DELTA, needs_state=True),
    Architecture(
        "kimi_linear",
        ("full", "linear"),
        {
            **ROUTED,
            **LATENT,
            "q_lora_rank": None,
            "layer_types": LINEAR,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_local_experts": 4,
        },
        needs_state=True,
        is_quick=True,
    ),
    Architecture("olmo_hybrid", ("full", "linear"), {**DELTA, "linear_num_key_heads": 4}, needs_state=True),
    Architecture("mamba", ("linear",), MAMBA, needs_state=True),
    Architecture(
        "mamba2",
        ("linear",),
        {**MAMBA, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
        needs_state=True,
        is_quick=True,
        is_bfloat16=True,
    ),
    Architecture("falcon_mamba", ("linear",), MAMBA, needs_state=True),
    Architecture(
        "jamba",
        ("full", "linear"),
        {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        needs_state=True,
        is_bfloat16=True,
    ),
    Architecture("bamba", ("full", "linear"), {**MAMBA_D, "attn_layer_indices": [1]}, needs_state=True),
    Architecture(
        "falcon_h1",
        ("linear_full",),
        {**MAMBA_D, "mamba_d_ssm": 64},
        needs_state=True,
        is_quick=True,
        is_bfloat16=True,
    ),
    Architecture(
        "granitemoehybrid",
        ("full", "linear"),
        {
            **MAMBA_D,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "layer_types": LINEAR,
        },
        needs_state=True,
        is_bfloat16=True,
    ),
    Architecture(
        "nemotron_h",
        ("empty", "full", "linear"),
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "use_mamba_kernels": False,
        },
        needs_state=True,
    ),
    Architecture(
        "zamba2",
        ("linear", "linear_full"),
        {
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "chunk_size": 8,
            "num_key_value_heads": 4,
            "use_mamba_kernels": False,
        },
        needs_state=True,
    ),
    Architecture(
        "zaya",
        ("linear_full", "linear_sliding"),
        {
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "router_hidden_size": 8,
            "sliding_window": WINDOW,
            "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
        },
        needs_state=True,
        is_quick=True,
    ),
    Architecture(
        "lfm2",
        ("full", "linear"),
        {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
        needs_state=True,
        is_bfloat16=True,
    ),
    Architecture(
        "lfm3",
        ("full", "linear", "sliding"),
        {"layer_types": ["conv", "sliding_attention", "full_attention"], "sliding_window": WINDOW},
        needs_state=True,
    ),
    Architecture(
        "minimax",
        ("full", "lightning"),
        {"num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8, "layer_types": LINEAR},
        needs_state=True,
        is_quick=True,
    ),
)


def tiny_architecture(name: str, dtype: str = "float32", *, seed: int = 7) -> Any:
    """Make the model of an architecture, with weights that depend on the seed alone."""
    row = next(row for row in ARCHITECTURES if row.name == name)
    # Their own widths follow from other fields.
    common = {key: COMMON[key] for key in COMMON if not (name in {"gpt2", "zamba2"} and key == "head_dim")}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**common, **row.fields}))
    return model.to(getattr(torch, dtype)).eval()


def save_architecture(directory: Path, name: str) -> Path:
    """Write the model and a byte tokenizer, as `splitinfer.model.loading` reads them."""
    tokenizer = byte_tokenizer()
    tiny_architecture(name).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def token_ids(count: int, seed: int = 3) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(x) for x in torch.randint(3, VOCABULARY, (1024,), generator=generator)][:count]
