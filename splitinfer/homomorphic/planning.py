"""Where every number of a cache lies in slots: shapes and expected tokens -> AttentionPlan; pure, both sides.

A ciphertext's slots are a table of `tile_rows` tokens by `rows` attention heads, row-major, so that a rotation by a
multiple of `rows` shifts tokens. A tile is the cache of `tile_tokens` tokens. Complex slots carry two reals:

    halves   one token a row; the two halves of head_dim are real and imaginary part
    pairs    two tokens a row, real and imaginary part; scores of both come back in one ciphertext

Grouped-query heads of one KV head may lie beside each other (`replication` r > 1: the KV head's rows are repeated) or
in separate queries on the same tile (r = 1). Head counts that fill no table are padded or cut into several tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from splitinfer.errors import CryptoParameterError

__all__ = ["AttentionPlan", "AttentionShape", "plan_attention"]

Layout = Literal["halves", "pairs"]

# Milliseconds of one operation at ring degree 4096, and of one ciphertext on the wire and in the device's hands. A turn
# rotates a sum that was rescaled; a sum is rescaled, and relinearised where it is of products of ciphertexts.
_ROTATE_MS, _TURN_MS, _SUM_MS, _SUM_ENCRYPTED_MS = 1.13, 0.58, 0.29, 1.4
_MULTIPLY_MS, _MULTIPLY_PLAIN_MS, _CIPHERTEXT_MS = 0.28, 0.14, 3.0
_PLANNED_WORKERS = 2
_MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The model's attention: query heads, KV heads that divide them, dimensions of a head."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        """Refuse shapes that no Llama-like model has; raises CryptoParameterError."""
        if min(self.layers, self.heads, self.kv_heads, self.head_dim) < 1 or self.heads % self.kv_heads:
            raise CryptoParameterError(
                f"{self.heads} query heads and {self.kv_heads} KV heads of {self.head_dim} do not fit each other"
            )
        if self.head_dim > _MAX_HEAD_DIM or self.head_dim % 2:
            raise CryptoParameterError(f"head_dim is {self.head_dim}, expected an even number up to {_MAX_HEAD_DIM}")

    @property
    def group(self) -> int:
        """Return how many query heads share a KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One placement. `key_babies` and `value_babies` are the baby steps of the two products' rotations."""

    shape: AttentionShape
    slots: int
    layout: Layout
    replication: int
    rows: int
    key_babies: int
    value_babies: int

    @property
    def dims(self) -> int:
        """Return how many diagonals a tile has: head_dim, or half of it, as a power of two."""
        return _diagonals(self.shape, self.layout)

    @property
    def tile_rows(self) -> int:
        """Return how many tokens' rows one ciphertext holds."""
        return self.slots // self.rows

    @property
    def tile_tokens(self) -> int:
        """Return how many tokens one tile holds."""
        return self.tile_rows * (2 if self.layout == "pairs" else 1)

    @property
    def cache_blocks(self) -> int:
        """Return how many tables the KV rows of a tile fill."""
        return -(-self.shape.kv_heads * self.replication // self.rows)

    @property
    def query_groups(self) -> int:
        """Return how many queries are asked of each table."""
        return self.shape.group // self.replication

    @property
    def queries(self) -> int:
        """Return how many ciphertexts one query takes: the groups of table 0, then of table 1, and so on."""
        return self.query_groups * self.cache_blocks

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the rotations that both products need."""
        key, value = self.key_babies, self.value_babies
        found = {self.rows * step for step in [*range(1, key), *range(key, self.dims, key)]}
        found |= {-self.rows * step for step in [*range(1, value), *range(value, self.dims, value)]}
        return tuple(sorted(found))

    def tiles(self, tokens: int) -> int:
        """Return how many tiles hold this many tokens."""
        return -(-tokens // self.tile_tokens)

    def cost_ms(self, tokens: int, *, is_encrypted: bool) -> float:
        """Estimate a layer's time with two workers, wire and device included; only to compare plans."""
        tiles = self.tiles(tokens)
        multiply, one_sum = (_MULTIPLY_MS, _SUM_ENCRYPTED_MS) if is_encrypted else (_MULTIPLY_PLAIN_MS, _SUM_MS)
        rotations = self.key_babies - 1 + tiles * (self.value_babies - 1)
        sums, turns = (
            tiles * _shared(self.dims // self.key_babies - free) + _shared(self.dims // self.value_babies - free)
            for free in (0, 1)
        )
        products = 2 * tiles * self.dims / _PLANNED_WORKERS
        cloud = rotations * _ROTATE_MS + turns * _TURN_MS + sums * one_sum + products * multiply
        return self.queries * (cloud + (2 + 2 * tiles) * _CIPHERTEXT_MS)


def _shared(count: int) -> int:
    """Return how many of so many giant steps the slowest worker takes."""
    return -(-count // _PLANNED_WORKERS)


def _power_above(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _diagonals(shape: AttentionShape, layout: Layout) -> int:
    return _power_above(shape.head_dim if layout == "pairs" else shape.head_dim // 2)


def _powers(limit: int) -> Iterator[int]:
    power = 1
    while power <= limit:
        yield power
        power *= 2


def _candidates(shape: AttentionShape, slots: int) -> Iterator[AttentionPlan]:
    layouts: tuple[Layout, ...] = ("halves", "pairs")
    for layout in layouts:
        dims = _diagonals(shape, layout)
        for replication in (shape.group, 1) if shape.group > 1 else (1,):
            wanted = _power_above(shape.kv_heads * replication)
            for rows in _powers(min(wanted, slots // dims)):
                for key in _powers(dims):
                    for value in _powers(dims):
                        yield AttentionPlan(shape, slots, layout, replication, rows, key, value)


def plan_attention(shape: AttentionShape, *, slots: int, tokens: int, is_encrypted: bool = True) -> AttentionPlan:
    """Choose the cheapest plan for a prefix of about `tokens` tokens.

    Raises CryptoParameterError where no table fits the slots.
    """
    plans = list(_candidates(shape, slots))
    if not plans or tokens < 1:
        raise CryptoParameterError(f"no plan for {tokens} tokens of heads of {shape.head_dim} in {slots} slots")
    return min(plans, key=lambda plan: plan.cost_ms(tokens, is_encrypted=is_encrypted))
