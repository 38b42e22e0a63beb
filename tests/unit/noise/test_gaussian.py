"""The conversion is exact: equal to dp_accounting's over the whole range, and never below the truth."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import UsageError
from splitinfer.noise.gaussian import (
    composed,
    delta_of,
    epsilon_of,
    mu_of,
    normal_cdf,
    normal_quantile,
    recovery_bound,
)

MUS = (1e-3, 1e-2, 0.268, 1.0, 1.67, 7.89, 30.0, 100.0, 1e4)
DELTAS = (1e-12, 1e-5, 1e-2, 0.3)
# dp_accounting seeks its own root to about this.
SEARCHED = 1e-8


@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("delta", DELTAS)
def test_epsilon_is_that_of_dp_accounting(mu: float, delta: float) -> None:
    reference = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
    assert epsilon_of(mu, delta) == pytest.approx(reference, rel=SEARCHED, abs=1e-12)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 8.0, 64.0, 1e3, 1e8])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.1])
def test_noise_multiplier_is_that_of_dp_accounting(epsilon: float, delta: float) -> None:
    reference = dp_accounting.get_sigma_gaussian(epsilon, delta)
    assert 1 / mu_of(epsilon, delta) == pytest.approx(reference, rel=SEARCHED)


@pytest.mark.parametrize(
    ("epsilon", "noise_multiplier", "mu"), [(1.0, 3.73, 0.268), (8.0, 0.600, 1.67), (64.0, 0.127, 7.89)]
)
def test_published_values_at_delta_1e_minus_5_are_met(epsilon: float, noise_multiplier: float, mu: float) -> None:
    assert 1 / mu_of(epsilon, 1e-5) == pytest.approx(noise_multiplier, rel=5e-3)
    assert mu_of(epsilon, 1e-5) == pytest.approx(mu, rel=5e-3)


def test_several_releases_cost_what_dp_accounting_says_of_one() -> None:
    mus = [0.3, 0.5, 0.5, 1.1]
    together = composed(mus)
    assert together == pytest.approx(math.sqrt(sum(mu * mu for mu in mus)))
    reference = dp_accounting.get_epsilon_gaussian(1 / together, 1e-6)
    assert epsilon_of(together, 1e-6) == pytest.approx(reference, rel=SEARCHED)


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-3, 1e3), st.floats(1e-12, 0.4))
def test_epsilon_holds_and_a_little_less_does_not(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)
    assert delta_of(mu, epsilon) <= delta
    if epsilon > 0:
        assert delta_of(mu, epsilon * (1 - 1e-6)) > delta * (1 - 1e-9)


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-3, 1e6), st.floats(1e-12, 0.4))
def test_mu_and_epsilon_lead_back_to_each_other(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)
    assert delta_of(mu, epsilon) <= delta * (1 + 1e-12)
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-3, 50), st.floats(1.01, 3), st.floats(1e-10, 0.1))
def test_less_noise_never_costs_less(mu: float, factor: float, delta: float) -> None:
    assert epsilon_of(mu * factor, delta) > epsilon_of(mu, delta) - 1e-12


def test_no_noise_is_infinite_and_no_loss_is_free() -> None:
    assert epsilon_of(math.inf, 1e-5) == math.inf
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert epsilon_of(1.0, 0.0) == math.inf
    assert composed([1.0, math.inf]) == math.inf
    assert composed([]) == 0.0
    assert recovery_bound(0.1, math.inf) == 1.0


def test_recovery_bound_has_the_published_values() -> None:
    prior = 1 / 128_000
    expected = {1: 0.00045, 2: 0.010, 3: 0.093, 4: 0.37, 5: 0.75}
    for mu, bound in expected.items():
        assert recovery_bound(prior, mu) == pytest.approx(bound, rel=0.06)
    assert recovery_bound(0.3, 1) == pytest.approx(0.68, abs=0.005)
    assert recovery_bound(0.3, 0) == pytest.approx(0.3)
    assert (recovery_bound(0, 9), recovery_bound(1, 0)) == (0, 1)


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-12, 1 - 1e-12))
def test_quantile_undoes_the_distribution(p: float) -> None:
    assert normal_cdf(normal_quantile(p)) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: epsilon_of(-1, 0.1),
        lambda: epsilon_of(math.nan, 0.1),
        lambda: epsilon_of(1, 1),
        lambda: mu_of(-1, 0.1),
        lambda: mu_of(1, 0),
        lambda: mu_of(math.inf, 0.1),
        lambda: recovery_bound(1.5, 1),
        lambda: normal_quantile(0),
        lambda: delta_of(1, -1),
    ],
)
def test_numbers_outside_their_range_are_refused(call: object) -> None:
    with pytest.raises(UsageError):
        call()
