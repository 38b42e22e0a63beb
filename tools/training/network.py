"""The network that is trained: a Llama whose attention can be probed, in the shape that transformers loads.

With `has_bias` queries, keys and values have biases, and it is a Qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["Network", "Probe", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; RoPE's base is high, so that half of each head's pairs hardly turn within the context."""

    vocabulary: int = 2048
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    feed_forward: int = 256
    rope_theta: float = 1e10
    positions: int = 4096
    has_bias: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Probe:
    """One attention head whose attention is trained."""

    layer: int
    head: int


class Layer(nn.Module):
    """One decoder layer, its projections fused."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.input_norm = nn.Parameter(torch.ones(shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))
        self.qkv = nn.Parameter(torch.empty((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.hidden))
        self.bias = nn.Parameter(torch.zeros(self.qkv.size(0))) if shape.has_bias else None
        self.output = nn.Parameter(torch.empty(shape.hidden, shape.heads * shape.head_dim))
        self.gate = nn.Parameter(torch.empty(shape.feed_forward, shape.hidden))
        self.up = nn.Parameter(torch.empty(shape.feed_forward, shape.hidden))
        self.down = nn.Parameter(torch.empty(shape.hidden, shape.feed_forward))

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's output, and its queries and keys after RoPE, each [batch, heads, tokens, head_dim]."""
        shape, (batch, tokens, _) = self.shape, x.shape
        normed = F.rms_norm(x, (shape.hidden,), self.input_norm, 1e-5)
        projected = F.linear(normed, self.qkv, self.bias).view(batch, tokens, -1, shape.head_dim).transpose(1, 2)
        turned, value = projected.split((shape.heads + shape.kv_heads, shape.kv_heads), dim=1)
        first, second = turned.chunk(2, -1)
        turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
        query, key = turned.split((shape.heads, shape.kv_heads), dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + F.linear(attended.transpose(1, 2).reshape(batch, tokens, -1), self.output)
        normed = F.rms_norm(x, (shape.hidden,), self.mlp_norm, 1e-5)
        x = x + F.linear(F.silu(F.linear(normed, self.gate)) * F.linear(normed, self.up), self.down)
        return x, query, key


class Network(nn.Module):
    """The whole model; its head is its embedding."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocabulary, shape.hidden))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        pairs = shape.head_dim // 2
        frequencies = shape.rope_theta ** (-torch.arange(pairs).float() / pairs)
        angles = torch.arange(shape.positions).float()[:, None] * frequencies
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(
        self, ids: Tensor, positions: Tensor, probed: Sequence[Probe] = ()
    ) -> tuple[Tensor, dict[Probe, tuple[Tensor, Tensor]]]:
        """Return the last hidden state [batch, tokens, hidden] and each probe's query and key."""
        x = F.embedding(ids, self.embedding)
        cosine, sine = self.cosine[positions][:, None], self.sine[positions][:, None]
        found = {}
        for number, layer in enumerate(self.layers):
            x, query, key = layer(x, cosine, sine)
            for probe in probed:
                if probe.layer == number:
                    found[probe] = (query[:, probe.head], key[:, probe.head // self.shape.group])
        return F.rms_norm(x, (self.shape.hidden,), self.norm, 1e-5), found

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights that are matrices, the embedding left out."""
        return [p for name, p in self.named_parameters() if p.ndim == 2 and name != "embedding"]

    def vectors(self) -> list[nn.Parameter]:
        """Return the embedding and the norms."""
        return [p for name, p in self.named_parameters() if p.ndim != 2 or name == "embedding"]

    def llama_state(self) -> Mapping[str, Tensor]:
        """Return the weights under the names of `LlamaForCausalLM`, which are those of `Qwen2ForCausalLM` too."""
        shape = self.shape
        state = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        state["lm_head.weight"] = self.embedding
        widths = [shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim]
        for number, module in enumerate(self.layers):
            layer = cast(Layer, module)
            prefix = f"model.layers.{number}"
            query, key, value = layer.qkv.split(widths)
            state |= {
                f"{prefix}.input_layernorm.weight": layer.input_norm,
                f"{prefix}.post_attention_layernorm.weight": layer.mlp_norm,
                f"{prefix}.self_attn.q_proj.weight": query,
                f"{prefix}.self_attn.k_proj.weight": key,
                f"{prefix}.self_attn.v_proj.weight": value,
                f"{prefix}.self_attn.o_proj.weight": layer.output,
                f"{prefix}.mlp.gate_proj.weight": layer.gate,
                f"{prefix}.mlp.up_proj.weight": layer.up,
                f"{prefix}.mlp.down_proj.weight": layer.down,
            }
            if layer.bias is not None:
                names = (f"{prefix}.self_attn.{name}_proj.bias" for name in "qkv")
                state |= dict(zip(names, layer.bias.split(widths), strict=True))
        return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
