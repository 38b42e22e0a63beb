"""Rows of queries, keys, values and probabilities <-> complex slots, by an AttentionPlan; pure numpy, both sides.

Diagonal j of a tile holds, at token row t, dimension (t + j) mod dims, so that a product is a sum over diagonals of
rotated queries times diagonals and nothing has to be summed over slots under encryption. Diagonals lie turned by the
giant (keys) or baby (values) step that the cloud turns them back by.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.homomorphic.planning import AttentionPlan

__all__ = ["Slots", "pack_keys", "pack_probabilities", "pack_query", "pack_values", "unpack_outputs", "unpack_scores"]

Slots: TypeAlias = NDArray[np.complex128]
Rows: TypeAlias = NDArray[np.floating[Any]]


@lru_cache(maxsize=8)
def _heads(plan: AttentionPlan) -> NDArray[np.int64]:
    """Return the query head at [query, row]; -1 where there is none. Read only."""
    group, replication = plan.shape.group, plan.replication
    found = np.full((plan.cache_blocks, plan.query_groups, plan.rows), -1)
    for row in range(plan.shape.kv_heads * replication):
        kv_head, repeat = divmod(row, replication)
        for query in range(plan.query_groups):
            head = kv_head * group + query * replication + repeat
            found[row // plan.rows, query, row % plan.rows] = head
    return found.reshape(plan.queries, plan.rows)


def _by_row(plan: AttentionPlan, per_head: Rows) -> Rows:
    """[heads, ...] -> [queries, rows, ...], zero where there is no head."""
    heads = _heads(plan)
    return np.where((heads >= 0).reshape(*heads.shape, *[1] * (per_head.ndim - 1)), per_head[heads], 0.0)


def _by_head(plan: AttentionPlan, per_row: Rows) -> Rows:
    """[queries, rows, ...] -> [heads, ...]."""
    heads = _heads(plan)
    result = np.empty((plan.shape.heads, *per_row.shape[2:]), per_row.dtype)
    result[heads[heads >= 0]] = per_row[heads >= 0]
    return result


def _dimensions(plan: AttentionPlan, rows: Rows) -> tuple[Rows, Rows]:
    """[..., head_dim] -> both halves, or all of it and zeros; [..., dims] each."""
    wanted = plan.dims * (2 if plan.layout == "halves" else 1)
    padded = np.zeros((*rows.shape[:-1], wanted))
    if plan.layout == "pairs":
        padded[..., : plan.shape.head_dim] = rows
        return padded, np.zeros_like(padded)
    half = plan.shape.head_dim // 2
    padded[..., :half], padded[..., plan.dims : plan.dims + half] = rows[..., :half], rows[..., half:]
    return padded[..., : plan.dims], padded[..., plan.dims :]


def _cache_rows(plan: AttentionPlan, cached: Rows) -> tuple[Rows, Rows]:
    """[tokens, kv_heads, head_dim] -> real and imaginary part, [blocks, tile_rows, rows, dims]."""
    tokens = cached.shape[0]
    held = np.zeros((plan.tile_tokens, plan.cache_blocks * plan.rows, plan.shape.head_dim))
    held[:tokens, : plan.shape.kv_heads * plan.replication] = np.repeat(cached, plan.replication, axis=1)
    first, second = _dimensions(plan, held)
    if plan.layout == "pairs":
        first, second = first[: plan.tile_rows], first[plan.tile_rows :]
    shape = (plan.tile_rows, plan.cache_blocks, plan.rows, plan.dims)
    return first.reshape(shape).swapaxes(0, 1), second.reshape(shape).swapaxes(0, 1)


def _diagonals(plan: AttentionPlan, table: NDArray[np.complex128], turns: list[int]) -> Slots:
    """[blocks, tile_rows, rows, dims] -> [blocks, dims, slots], diagonal j turned by turns[j] tokens."""
    tokens = np.arange(plan.tile_rows)
    found = np.empty((plan.cache_blocks, plan.dims, plan.slots), np.complex128)
    for j, turn in enumerate(turns):
        diagonal = table[:, tokens, :, (tokens + j) % plan.dims].swapaxes(0, 1)
        found[:, j] = np.roll(diagonal, turn, axis=1).reshape(plan.cache_blocks, plan.slots)
    return found


def pack_keys(plan: AttentionPlan, keys: Rows) -> Slots:
    """[tokens, kv_heads, head_dim], at most a tile -> [blocks, dims, slots]."""
    first, second = _cache_rows(plan, keys)
    # (q1 + i q2)(k1 - i k2) has the score as its real part; a real q against k + i k' gives two tokens' scores.
    table = first + 1j * second if plan.layout == "pairs" else first - 1j * second
    return _diagonals(plan, table, [j // plan.key_babies * plan.key_babies for j in range(plan.dims)])


def pack_values(plan: AttentionPlan, values: Rows) -> Slots:
    """[tokens, kv_heads, head_dim], at most a tile -> [blocks, dims, slots]."""
    first, second = _cache_rows(plan, values)
    table = first - 1j * second if plan.layout == "pairs" else first + 1j * second
    return _diagonals(plan, table, [j % plan.value_babies for j in range(plan.dims)])


def pack_query(plan: AttentionPlan, query: Rows) -> Slots:
    """[heads, head_dim] -> [queries, slots]."""
    first, second = _dimensions(plan, query)
    by_row = _by_row(plan, first) + 1j * _by_row(plan, second)
    repeated = by_row.swapaxes(1, 2)[:, np.arange(plan.tile_rows) % plan.dims]
    return repeated.reshape(plan.queries, plan.slots)


def unpack_scores(plan: AttentionPlan, slots: Slots) -> Rows:
    """[queries, slots] of one tile -> [heads, tile_tokens]."""
    table = slots.reshape(plan.queries, plan.tile_rows, plan.rows).swapaxes(1, 2)
    if plan.layout == "pairs":
        return _by_head(plan, np.concatenate([table.real, table.imag], axis=2))
    return _by_head(plan, table.real)


def pack_probabilities(plan: AttentionPlan, probabilities: Rows) -> Slots:
    """[heads, tile_tokens] of one tile -> [queries, slots]."""
    by_row = _by_row(plan, probabilities)
    if plan.layout == "pairs":
        by_row = by_row[..., : plan.tile_rows] + 1j * by_row[..., plan.tile_rows :]
    return by_row.swapaxes(1, 2).reshape(plan.queries, plan.slots).astype(np.complex128)


def unpack_outputs(plan: AttentionPlan, slots: Slots) -> Rows:
    """[queries, slots] of all tiles' sum -> [heads, head_dim]; the sum over token rows happens here, in the clear."""
    table = slots.reshape(plan.queries, plan.tile_rows // plan.dims, plan.dims, plan.rows).sum(axis=1)
    by_head = _by_head(plan, table.swapaxes(1, 2))
    if plan.layout == "pairs":
        return by_head.real[:, : plan.shape.head_dim]
    half = plan.shape.head_dim // 2
    return np.concatenate([by_head.real[:, :half], by_head.imag[:, :half]], axis=1)
