from __future__ import annotations

import math
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import UsageError
from splitinfer.evaluation.intervals import (
    Rate,
    beta_cdf,
    binomial_tail,
    clopper_pearson,
    lower_bound,
    upper_bound,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3084971), (3, 100, 0.0062300, 0.0851760), (10, 10, 0.6915029, 1.0), (7, 20, 0.1539092, 0.5921885)],
)
def test_bounds_are_those_of_published_tables(successes: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, trials, alpha=0.05) == pytest.approx((low, high), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(trials=st.integers(1, 40), data=st.data(), rate=st.floats(0.01, 0.99))
def test_the_tail_is_the_sum_of_the_binomial_terms(trials: int, data: st.DataObject, rate: float) -> None:
    successes = data.draw(st.integers(0, trials))
    exact = math.fsum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(successes, trials + 1))
    assert binomial_tail(successes, trials, rate) == pytest.approx(exact, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(trials=st.integers(1, 100_000), data=st.data())
def test_at_each_bound_the_seen_count_has_just_the_level(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(1, trials))
    low = lower_bound(successes, trials, alpha=0.001)
    assert 0 < low < successes / trials
    assert binomial_tail(successes, trials, low) == pytest.approx(0.001, rel=1e-4)
    if successes < trials:
        high = upper_bound(successes, trials, alpha=0.001)
        assert 1 - binomial_tail(successes + 1, trials, high) == pytest.approx(0.001, rel=1e-3)


def test_a_rate_without_trials_says_nothing() -> None:
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert Rate(0, 0).share == 0.0


def test_a_share_of_a_tie_widens_the_interval_outwards() -> None:
    low, high = Rate(0.5, 10).interval
    assert low == 0.0
    assert high == pytest.approx(clopper_pearson(1, 10, alpha=0.05)[1])


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(UsageError, match="trial"):
        lower_bound(successes, trials, alpha=0.05)


def test_the_distribution_function_ends_at_its_ends() -> None:
    assert beta_cdf(0.0, 2, 3) == 0
    assert beta_cdf(1.0, 2, 3) == 1
