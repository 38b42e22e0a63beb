"""The packings without encryption: numpy's rolls stand for rotations."""

from __future__ import annotations

import numpy as np
import pytest

from splitinfer.errors import CryptoParameterError, LayoutMismatchError
from splitinfer.homomorphic import linear_plan, planning
from splitinfer.homomorphic.linear_plan import (
    LinearPlan,
    LinearShape,
    pack_input,
    plan_linear,
    unpack_result,
    weight_diagonals,
)
from splitinfer.homomorphic.packing import (
    pack_keys,
    pack_probabilities,
    pack_query,
    pack_values,
    unpack_outputs,
    unpack_scores,
)
from splitinfer.homomorphic.planning import AttentionPlan, AttentionShape, plan_attention

RANDOM = np.random.default_rng(1)
SHAPES = [(6, 2, 8, 64), (4, 4, 8, 64), (3, 1, 4, 32), (10, 5, 6, 64), (9, 3, 6, 128), (1, 1, 2, 32)]
MATRICES = [(20, 12, 64), (70, 9, 64), (5, 130, 32), (33, 300, 64), (64, 64, 64), (1, 1, 64)]


def turned(slots: np.ndarray, step: int) -> np.ndarray:
    return np.roll(slots, -step)


def both_products(plan: AttentionPlan, query, keys, values, shares) -> tuple[np.ndarray, np.ndarray]:
    asked, given = pack_query(plan, query), pack_probabilities(plan, shares)
    scores, outputs = np.zeros_like(asked), np.zeros_like(asked)
    for index in range(plan.queries):
        block = index // plan.query_groups
        for packed, source, babies, sign, sums in (
            (pack_keys(plan, keys), asked, plan.key_babies, 1, scores),
            (pack_values(plan, values), given, plan.value_babies, -1, outputs),
        ):
            for giant in range(0, plan.dims, babies):
                steps = range(min(babies, plan.dims - giant))
                part = sum(turned(source[index], sign * plan.rows * i) * packed[block, giant + i] for i in steps)
                sums[index] += turned(part, sign * plan.rows * giant)
    return unpack_scores(plan, scores), unpack_outputs(plan, outputs)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "slots"), SHAPES)
def test_every_plan_of_a_shape_gives_scores_and_outputs(heads: int, kv_heads: int, head_dim: int, slots: int) -> None:
    shape = AttentionShape(1, heads, kv_heads, head_dim)
    plans = list(planning._candidates(shape, slots))
    assert {plan.layout for plan in plans} == {"halves", "pairs"}
    for plan in RANDOM.permutation(np.array(plans, object))[:20]:
        tokens = min(plan.tile_tokens, 7)
        query = RANDOM.normal(size=(heads, head_dim))
        keys, values = RANDOM.normal(size=(2, tokens, kv_heads, head_dim))
        shares = np.zeros((heads, plan.tile_tokens))
        shares[:, :tokens] = RANDOM.random((heads, tokens))
        scores, outputs = both_products(plan, query, keys, values, shares)
        by_head = [np.repeat(rows, heads // kv_heads, axis=1) for rows in (keys, values)]
        np.testing.assert_allclose(scores[:, :tokens], np.einsum("hd,nhd->hn", query, by_head[0]), atol=1e-12)
        expected = np.einsum("hn,nhd->hd", shares[:, :tokens], by_head[1])
        np.testing.assert_allclose(outputs, expected, atol=1e-12)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (9, 3), (16, 8), (28, 4), (32, 8), (40, 8), (1, 1)])
@pytest.mark.parametrize("tokens", [1, 256, 4096])
def test_there_is_a_plan_for_every_shape_and_prefix(heads: int, kv_heads: int, head_dim: int, tokens: int) -> None:
    plan = plan_attention(AttentionShape(1, heads, kv_heads, head_dim), slots=2048, tokens=tokens)
    assert plan.tile_rows % plan.dims == 0
    assert plan.rows * plan.cache_blocks >= kv_heads * plan.replication


def test_a_prefix_of_one_tile_takes_four_ciphertexts_a_layer() -> None:
    plan = plan_attention(AttentionShape(6, 6, 2, 32), slots=2048, tokens=256)
    assert (plan.tile_tokens, plan.queries, plan.tiles(256)) == (256, 1, 1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(6, 4, 32), (0, 1, 32), (4, 2, 33), (4, 2, 0), (2, 2, 1024)]
)
def test_shapes_that_no_model_has_are_refused(heads: int, kv_heads: int, head_dim: int) -> None:
    with pytest.raises(CryptoParameterError):
        AttentionShape(1, heads, kv_heads, head_dim)


def product(plan: LinearPlan, weight: np.ndarray, vector: np.ndarray) -> np.ndarray:
    packed, sums = pack_input(plan, vector), np.zeros((plan.tables, plan.slots), np.complex128)
    for chunk, table, diagonals in weight_diagonals(plan, weight):
        for giant in range(0, plan.diagonals, plan.babies):
            steps = range(plan.babies)
            part = sum(turned(packed[chunk], plan.groups * i) * diagonals[giant + i] for i in steps)
            sums[table] += turned(part, plan.groups * giant)
    return unpack_result(plan, sums)


@pytest.mark.parametrize(("outputs", "inputs", "slots"), MATRICES)
def test_every_plan_of_a_matrix_gives_its_product(outputs: int, inputs: int, slots: int) -> None:
    for plan in linear_plan._candidates(LinearShape(outputs, inputs), slots):
        weight, vector = RANDOM.normal(size=(outputs, inputs)), RANDOM.normal(size=inputs)
        np.testing.assert_allclose(product(plan, weight, vector), weight @ vector, atol=1e-10)


def test_inputs_of_more_than_two_numbers_a_slot_are_cut_into_chunks() -> None:
    assert plan_linear(LinearShape(2048, 8192), slots=2048).chunks == 2
    assert plan_linear(LinearShape(2048, 4096), slots=2048).chunks == 1


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(CryptoParameterError, match="nothing to multiply"):
        plan_linear(LinearShape(0, 4), slots=64)


def test_a_vector_or_matrix_of_another_shape_is_refused() -> None:
    plan = plan_linear(LinearShape(8, 12), slots=64)
    with pytest.raises(LayoutMismatchError, match=r"expected \(12,\)"):
        pack_input(plan, np.zeros(11))
    with pytest.raises(LayoutMismatchError, match="a matrix has shape"):
        next(weight_diagonals(plan, np.zeros((12, 8))))
