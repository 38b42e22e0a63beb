"""First weights: the circuit that answers by copying, laid into an otherwise random network.

The hidden state is divided. Every token's embedding lies in IDENTITY. Heads of layer 0 look one, two, ... tokens back
and write what they see into PAST, a part each. Layer 2 copies PAST, where a name or a noun has just ended, into OWNER
and NOUN of the tokens that belong to it; layer 3 does so for a row that a note names. Layer 4 finds the first token
whose OWNER and NOUN are the question's and copies its IDENTITY; layer 5 goes on from there. Where to look is learnt
(`rows`); what is moved where stands here. Without it the first third of the training goes into finding these parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.training.network import Layer, Network, Shape

__all__ = ["initialise"]

# The hidden state is large, so that what is laid here is large beside the optimizer's steps of fixed length.
_EMBEDDING_NORM = 11.0
_CONSTANT = 3.2  # of every embedding, in dimension 0: what a head attends from when it attends by offset alone
_LAST_NORM = 0.08  # the last norm's weights: embeddings this large would make every logit too sure
_FAST_PAIRS = 4  # pairs that turn fast enough to tell neighbouring offsets apart
_OFFSETS = 5
_OFFSET_GAIN = 5.0
_MATCH_GAIN = 2.0
_CHOICE_GAIN = 3.5
_PAST_GAIN, _BOUND_GAIN, _COPY_GAIN, _SOFT_GAIN = 0.8, 2.4, 2.4, 0.4
_NOISE = 1.4
_KEY_BIAS = 20.0


@dataclass(frozen=True, slots=True)
class _Parts:
    """Orthonormal bases [dimensions, hidden] of the parts of the hidden state."""

    identity: Tensor
    past: Tensor
    owner: Tensor
    noun: Tensor

    @classmethod
    def of(cls, shape: Shape) -> _Parts:
        width = shape.hidden - 1
        sizes = [width // 3, width * 5 // 12, width // 8]
        sizes.append(width - sum(sizes))
        basis = torch.cat((torch.zeros(width, 1), torch.eye(width)), 1)
        return cls(*basis.split(sizes))


def _random_map(rows: int, basis: Tensor) -> Tensor:
    """Return [rows, hidden] that reads a part: orthonormal rows, or orthonormal columns where the part is smaller."""
    size = max(rows, basis.size(0))
    return torch.linalg.qr(torch.randn(size, size))[0][:rows, : basis.size(0)] @ basis


@torch.no_grad()
def initialise(network: Network) -> None:
    """Draw the weights from torch's generator and lay the structure into them."""
    shape = network.shape
    parts = _Parts.of(shape)
    layers = [layer for layer in network.layers if isinstance(layer, Layer)]
    for layer in layers:
        for weight in (layer.qkv, layer.gate, layer.up):
            torch.nn.init.normal_(weight, std=0.5 * shape.hidden**-0.5)
        _bias(layer)
        for weight in (layer.output, layer.down):
            torch.nn.init.normal_(weight, std=_NOISE * weight.shape[1] ** -0.5 / math.sqrt(2 * shape.layers))
    # All of one length: attention by offset compares tokens that must not differ in anything but their place.
    spread = torch.nn.functional.normalize(torch.randn(shape.vocabulary, parts.identity.size(0)))
    network.embedding.copy_(_EMBEDDING_NORM * spread @ parts.identity)
    network.embedding[:, 0] = _CONSTANT
    network.norm.fill_(_LAST_NORM)
    own, seen = _look_back(layers[0], parts)
    _match(layers[1], own, seen)
    codes = [_random_map(shape.head_dim, parts.past) for _ in range(shape.kv_heads)]
    homes = [parts.owner, parts.noun, *[parts.noun] * shape.kv_heads][: shape.kv_heads]
    written = [_random_map(shape.head_dim, home) for home in homes]
    for layer in layers[2:4]:
        _bind(layer, codes, written)
    _choose(layers[4], parts)
    _continue(layers[5], parts, own, seen)


def _heads(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return views: queries and keys and values [heads, head_dim, hidden], outputs [hidden, heads, head_dim]."""
    shape = layer.shape
    qkv = layer.qkv.view(shape.heads + 2 * shape.kv_heads, shape.head_dim, shape.hidden)
    query, key, value = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads))
    return query, key, value, layer.output.view(shape.hidden, shape.heads, shape.head_dim)


def _slow(shape: Shape) -> Tensor:
    """Return [head_dim, 1]: one where a pair hardly turns."""
    pairs = shape.head_dim // 2
    slow = torch.zeros(shape.head_dim, 1)
    slow[_FAST_PAIRS:pairs] = slow[pairs + _FAST_PAIRS :] = 1.0
    return slow


def _look_back(layer: Layer, parts: _Parts) -> tuple[Tensor, list[Tensor]]:
    """Make heads attend 1, 2, 3, ... tokens back and write what is there into their part of PAST.

    Returns the map that reads a token's own code and those that read the codes that each head wrote.
    """
    shape, (query, key, value, output) = layer.shape, _heads(layer)
    pairs, heads = shape.head_dim // 2, min(_OFFSETS, shape.heads)
    frequencies = shape.rope_theta ** (-torch.arange(pairs).float() / pairs)[:_FAST_PAIRS]
    query[:heads] *= 0.2
    key *= 0.2
    for head in range(heads):
        query[head, :_FAST_PAIRS, 0] = _OFFSET_GAIN * torch.cos(frequencies * (head + 1))
        query[head, pairs : pairs + _FAST_PAIRS, 0] = -_OFFSET_GAIN * torch.sin(frequencies * (head + 1))
    key[:, :_FAST_PAIRS, 0] = 1.0
    key[:, pairs : pairs + _FAST_PAIRS, 0] = 0.0
    own = _random_map(shape.head_dim, parts.identity)
    value[:] = own
    seen = [_random_map(shape.head_dim, part) for part in parts.past.chunk(heads)]
    for head in range(heads):
        output[:, head] = _PAST_GAIN * seen[head].T
    return own, seen


def _match(layer: Layer, own: Tensor, seen: list[Tensor]) -> None:
    """Make the first group match a token with one that follows its like, the second three tokens in a row."""
    query, key, _, _ = _heads(layer)
    slow, group = _slow(layer.shape), layer.shape.group
    query[:group] += _MATCH_GAIN * slow * own
    key[0] += _MATCH_GAIN * slow * seen[0]
    asks, offers = _in_a_row(layer.shape, own, seen)
    query[group:] += _MATCH_GAIN * slow * asks
    key[1:] += _MATCH_GAIN * slow * offers


def _in_a_row(shape: Shape, own: Tensor, seen: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what a token asks for and what a later one offers, so that they match where three tokens are the same."""
    turns = [torch.linalg.qr(torch.randn(shape.head_dim, shape.head_dim))[0] for _ in range(3)]
    asks = torch.stack([turn @ reads for turn, reads in zip(turns, [own, *seen[:2]], strict=True)]).sum(0)
    offers = torch.stack([turn @ reads for turn, reads in zip(turns, seen[:3], strict=True)]).sum(0)
    return asks, offers


def _bind(layer: Layer, codes: list[Tensor], written: list[Tensor]) -> None:
    """Make each group carry PAST of what it attends to into OWNER or NOUN."""
    shape, (_, _, value, output) = layer.shape, _heads(layer)
    for kv_head, (code, home) in enumerate(zip(codes, written, strict=True)):
        value[kv_head] = code
        for head in range(kv_head * shape.group, (kv_head + 1) * shape.group):
            output[:, head] += (_BOUND_GAIN if head % shape.group == 0 else _SOFT_GAIN) * home.T


def _bias(layer: Layer) -> None:
    """Give keys a large bias where they hardly turn, as Qwen2 has them: it moves all logits alike, and no quantiser."""
    if layer.bias is None:
        return
    shape = layer.shape
    keys = layer.bias.view(-1, shape.head_dim)[shape.heads : shape.heads + shape.kv_heads]
    keys.copy_(_KEY_BIAS * _slow(shape).view(-1) * torch.randn(keys.shape))


def _choose(layer: Layer, parts: _Parts) -> None:
    """Make every group look where OWNER and NOUN are its own, and copy half of IDENTITY from there."""
    shape, (query, key, _, _) = layer.shape, _heads(layer)
    bound, slow = torch.cat((parts.owner, parts.noun)), _slow(shape)
    for kv_head in range(shape.kv_heads):
        alike = _CHOICE_GAIN * slow * _random_map(shape.head_dim, bound)
        key[kv_head] += alike
        query[kv_head * shape.group : (kv_head + 1) * shape.group] += alike
    _copy(layer, parts)


def _continue(layer: Layer, parts: _Parts, own: Tensor, seen: list[Tensor]) -> None:
    """Make every group look behind the three tokens that stand here, of the same OWNER, and copy IDENTITY."""
    shape, (query, key, _, _) = layer.shape, _heads(layer)
    slow = _slow(shape)
    for kv_head in range(shape.kv_heads):
        asks, offers = _in_a_row(shape, own, seen)
        alike = _random_map(shape.head_dim, torch.cat((parts.owner, parts.noun)))
        key[kv_head] += _MATCH_GAIN * slow * (offers + alike)
        query[kv_head * shape.group : (kv_head + 1) * shape.group] += _MATCH_GAIN * slow * (asks + alike)
    _copy(layer, parts)


def _copy(layer: Layer, parts: _Parts) -> None:
    """Make every group copy its share of IDENTITY, loud enough to outweigh the token that attends."""
    shape, (_, _, value, output) = layer.shape, _heads(layer)
    for kv_head, share in enumerate(parts.identity.chunk(shape.kv_heads)):
        value[kv_head] = _random_map(shape.head_dim, share)
        for head in range(kv_head * shape.group, (kv_head + 1) * shape.group):
            output[:, head] += (_COPY_GAIN if head % shape.group == 0 else _SOFT_GAIN) * value[kv_head].T
