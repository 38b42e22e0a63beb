"""The largest distance is that of brute force, or a bound that is never below it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import UsageError
from splitinfer.noise import sensitivity
from splitinfer.noise.sensitivity import Distance, ids_digest, largest_distance


def rows_of(seed: int, count: int, dim: int, *, offset: float = 0.0, spread: float = 1.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, dim))
    return drawn * spread + offset


def brute_force(rows: np.ndarray) -> float:
    wide = rows.astype(np.float64)
    return max(float(np.linalg.norm(wide - row, axis=1).max()) for row in wide)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 120), st.integers(1, 9), st.sampled_from([0.0, 1.0, 1e4]))
def test_distance_is_that_of_brute_force(seed: int, count: int, dim: int, offset: float) -> None:
    rows = rows_of(seed, count, dim, offset=offset)
    found = largest_distance(rows)
    assert found.is_exact
    assert found.rows == count
    assert found.value == pytest.approx(brute_force(rows), rel=1e-8)
    assert found.value >= brute_force(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_blocks_and_narrow_numbers_change_nothing(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(3, 700, 24).astype(dtype)
    rows[100:140] *= 6
    monkeypatch.setattr(sensitivity, "_BLOCK_ROWS", 37)
    assert largest_distance(rows).value == pytest.approx(brute_force(rows), rel=1e-8)


def test_pairs_that_cannot_be_farthest_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(4, 1000, 8, spread=0.01)
    rows[0, 0], rows[1, 0] = 50, -50
    looked_at = []
    own = sensitivity._farthest
    monkeypatch.setattr(sensitivity, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(sensitivity, "_farthest", lambda a, b: looked_at.append(1) or own(a, b))
    assert largest_distance(rows).is_exact
    assert len(looked_at) < 5


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_a_bound_is_said_to_be_one_and_is_never_below_the_truth(seed: int, blocks: int) -> None:
    rows = rows_of(seed, 300, 6)
    allowance = blocks * 2 * 16 * 16 * 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "_BLOCK_ROWS", 16)
        found = largest_distance(rows, max_operations=allowance)
    truth = brute_force(rows)
    assert found.value >= truth
    assert found.value <= 2 * np.linalg.norm(rows - rows.mean(axis=0), axis=1).max() * (1 + 1e-6)
    if found.is_exact:
        assert found.value == pytest.approx(truth, rel=1e-8)


def test_without_any_allowance_the_two_longest_rows_bound_it() -> None:
    rows = rows_of(5, 50, 4)
    found = largest_distance(rows, max_operations=0)
    assert not found.is_exact
    assert found.value >= brute_force(rows)


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.zeros(3), np.array([[0.0, np.inf], [0.0, 1.0]])])
def test_rows_without_a_distance_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(UsageError):
        largest_distance(rows)


def test_a_set_of_ids_has_one_digest() -> None:
    assert ids_digest([3, 1, 2]) == ids_digest(np.array([1, 2, 3]))
    assert ids_digest([1, 23]) != ids_digest([12, 3])


def test_equal_rows_have_no_distance() -> None:
    assert largest_distance(np.ones((5, 3))) == Distance(0.0, is_exact=True, rows=5)
