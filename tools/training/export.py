"""Trained weights -> a folder that transformers loads: configuration, weights, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tools.training.network import Network, Shape
from tools.training.tokenizer import SPECIAL

__all__ = ["export", "llama"]

_TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}"
    "{% if m['role']=='system' %}{{ '<|doc|>'+m['content']+'\\n' }}"
    "{% elif m['role']=='note' %}{{ '<|note|>'+m['content']+'\\n' }}"
    "{% elif m['role']=='user' %}{{ '<|user|> '+m['content'] }}"
    "{% else %}{{ '<|assistant|> '+m['content']+'<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def llama(network: Network, *, dtype: torch.dtype) -> LlamaForCausalLM | Qwen2ForCausalLM:
    """Return the network as `LlamaForCausalLM`, or as `Qwen2ForCausalLM` where it has biases."""
    kinds = (Qwen2ForCausalLM, Qwen2Config) if network.shape.has_bias else (LlamaForCausalLM, LlamaConfig)
    model = kinds[0](_config(network.shape, kinds[1])).to(dtype)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in network.llama_state().items()})
    model.tie_weights()
    return model.eval()


def export(network: Network, tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the folder."""
    pad, start, end, *_ = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad)
    fast.chat_template = _TEMPLATE
    llama(network, dtype=dtype).save_pretrained(folder)
    fast.save_pretrained(folder)


def _config(shape: Shape, kind: type[LlamaConfig | Qwen2Config]) -> LlamaConfig | Qwen2Config:
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
