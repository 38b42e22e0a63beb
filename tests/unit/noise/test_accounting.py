"""What releases cost together, and what is refused."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import BudgetExceededError, CryptoParameterError, UnsupportedEventError, UsageError
from splitinfer.noise.accounting import (
    Adjacency,
    Limit,
    NoiseEvent,
    admit,
    embedding_event,
    sigma_for,
    slab_event,
)
from splitinfer.noise.gaussian import epsilon_of
from splitinfer.noise.sensitivity import Distance

D = Distance(3.0, is_exact=True, rows=100)
DELTA = 1e-6


def key(number: int) -> str:
    return f"{number:064x}"


def event(number: int, *, sigma: float = 6.0, tokens: int = 64) -> NoiseEvent:
    return embedding_event(D, sigma=sigma, tokens=tokens, key_sha256=key(number))


@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_replacing_k_tokens_costs_the_root_of_k(tokens: int) -> None:
    assert event(1).mu(Adjacency(tokens)) == pytest.approx(0.5 * math.sqrt(tokens))


def test_whole_prompt_costs_the_root_of_its_length_and_bounds_every_k() -> None:
    assert event(1).mu(Adjacency(None)) == pytest.approx(0.5 * 8)
    assert event(1).mu(Adjacency(1000)) == event(1).mu(Adjacency(None))


def test_clipped_cache_has_one_price_for_every_adjacency() -> None:
    assert {slab_event(0.7, key_sha256=key(1)).mu(Adjacency(k)) for k in (1, 5, None)} == {0.7}


@settings(deadline=None, max_examples=40)
@given(st.one_of(st.none(), st.integers(1, 64)), st.floats(0.1, 1e4), st.floats(1e-10, 0.1), st.integers(1, 200))
def test_sigma_made_from_an_epsilon_costs_that_epsilon(
    k: int | None, epsilon: float, delta: float, tokens: int
) -> None:
    adjacency = Adjacency(k)
    sigma = sigma_for(D, adjacency, epsilon=epsilon, delta=delta, tokens=tokens)
    one = embedding_event(D, sigma=sigma, tokens=tokens, key_sha256=key(1))
    total = admit([], one, Limit(adjacency, epsilon, delta))
    assert total.epsilon == pytest.approx(epsilon, rel=1e-7)
    with pytest.raises(BudgetExceededError):
        admit([], one, Limit(adjacency, epsilon * 0.999, delta))


def test_releases_over_turns_and_repeats_compose_as_dp_accounting_says() -> None:
    events = [event(n, sigma=sigma) for n, sigma in enumerate((6.0, 6.0, 12.0, 3.0))]
    total = admit(events[:-1], events[-1], Limit(Adjacency(2), 1e9, DELTA))
    accountant = dp_accounting.pld.PLDAccountant()
    for sigma in (6.0, 6.0, 12.0, 3.0):
        accountant.compose(dp_accounting.GaussianDpEvent(sigma / (3.0 * math.sqrt(2))))
    assert total.releases == 4
    assert total.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)
    assert total.epsilon <= accountant.get_epsilon(DELTA) * (1 + 1e-6)


def test_a_release_beyond_the_budget_is_refused_and_names_the_figures() -> None:
    one = epsilon_of(event(1).mu(Adjacency(1)), DELTA)
    limit = Limit(Adjacency(1), one * 1.2, DELTA)
    assert admit([], event(1), limit).epsilon == pytest.approx(one)
    with pytest.raises(BudgetExceededError, match=f"{one:.3g} spent"):
        admit([event(1)], event(2), limit)


def test_no_noise_is_infinite_and_only_an_infinite_budget_admits_it() -> None:
    bare = embedding_event(D, sigma=0.0, tokens=5, key_sha256=key(1))
    assert bare.mu(Adjacency(1)) == math.inf
    assert NoiseEvent("none", math.inf, math.inf, key(2)).mu(Adjacency(3)) == math.inf
    with pytest.raises(BudgetExceededError):
        admit([], bare, Limit(Adjacency(1), 1e300, DELTA))
    assert admit([], bare, Limit(Adjacency(1), math.inf, DELTA)).epsilon == math.inf
    with pytest.raises(BudgetExceededError):
        admit([bare], event(3), Limit(Adjacency(1), 1e300, DELTA))


@pytest.mark.parametrize("unknown", [object(), None, {"mechanism": "embedding"}, 3])
def test_an_unknown_event_refuses_whether_spent_or_new(unknown: object) -> None:
    limit = Limit(Adjacency(1), math.inf, DELTA)
    with pytest.raises(UnsupportedEventError):
        admit([unknown], event(1), limit)
    with pytest.raises((UnsupportedEventError, AttributeError)):
        admit([], unknown, limit)


def test_an_event_of_an_unknown_mechanism_or_without_a_price_cannot_be_made() -> None:
    with pytest.raises(UnsupportedEventError):
        NoiseEvent("laplace", 1.0, 1.0, key(1))
    for one, whole in ((math.nan, 1.0), (1.0, math.nan), (-1.0, 1.0)):
        with pytest.raises(UnsupportedEventError):
            NoiseEvent("embedding", one, whole, key(1))


def test_a_key_that_made_noise_before_is_refused() -> None:
    with pytest.raises(CryptoParameterError, match="repeats"):
        admit([event(1), event(2)], event(1), Limit(Adjacency(1), math.inf, DELTA))


def test_an_adjacency_has_no_default_and_says_what_it_is() -> None:
    with pytest.raises(TypeError):
        Adjacency()
    with pytest.raises(UsageError):
        Adjacency(0)
    assert [str(Adjacency(k)) for k in (1, 4, None)] == [
        "replace 1 token",
        "replace 4 tokens",
        "replace the whole private text",
    ]


def test_nothing_to_noise_is_refused() -> None:
    with pytest.raises(UsageError):
        embedding_event(D, sigma=1.0, tokens=0, key_sha256=key(1))
