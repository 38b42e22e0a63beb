from __future__ import annotations

import math

import pytest
import torch

from splitinfer.errors import UsageError
from splitinfer.evaluation.audit.fresh import Release, audit
from splitinfer.evaluation.audit.one_run import audit_one_run, epsilon_bound, epsilon_of_mu

HIDDEN = 8
RELEASES = 4000
PAIR = (torch.zeros(4, HIDDEN), torch.ones(4, HIDDEN) / math.sqrt(4 * HIDDEN))


def gaussian(sigma: float, *, seed: int = 0) -> Release:
    draw = torch.Generator().manual_seed(seed)
    return lambda rows: rows + sigma * torch.randn(rows.shape, generator=draw)


@pytest.mark.parametrize(("mu", "least"), [(0.5, 0.4), (1.5, 0.85), (3.0, 0.85)])
def test_an_honest_mechanism_is_not_refuted_and_the_bound_is_near_its_claim(mu: float, least: float) -> None:
    result = audit(gaussian(1 / mu), PAIR, claimed_mu=mu, releases=RELEASES)
    assert not result.is_refuted
    assert least * mu < result.lower_mu <= mu


def test_half_the_noise_is_caught() -> None:
    assert audit(gaussian(0.5), PAIR, claimed_mu=1.0, releases=RELEASES).is_refuted


def test_the_sensitivity_of_one_token_used_for_four_is_caught() -> None:
    one_token = float((PAIR[1] - PAIR[0])[0].norm())
    assert audit(gaussian(one_token), PAIR, claimed_mu=1.0, releases=RELEASES).is_refuted


def test_a_scale_applied_after_the_noise_was_chosen_is_caught() -> None:
    noised = gaussian(1.0)
    assert audit(lambda rows: noised(3 * (rows + 1)), PAIR, claimed_mu=1.0, releases=RELEASES).is_refuted


def test_a_keystream_that_is_reused_is_caught() -> None:
    noise = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(3))
    assert audit(lambda rows: rows + noise, PAIR, claimed_mu=1.0, releases=RELEASES).is_refuted


def test_a_keystream_that_is_used_twice_is_caught() -> None:
    draw = torch.Generator().manual_seed(3)
    held: list[torch.Tensor] = []

    def release(rows: torch.Tensor) -> torch.Tensor:
        if held:
            return rows + held.pop()
        held.append(torch.randn(rows.shape, generator=draw))
        return rows + held[0]

    assert audit(release, PAIR, claimed_mu=1.0, releases=RELEASES).is_repeating


def test_one_part_without_noise_is_caught() -> None:
    draw = torch.Generator().manual_seed(5)

    def release(rows: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(rows.shape, generator=draw)
        noise[2:] = 0
        return rows + noise

    assert audit(release, PAIR, claimed_mu=1.0, releases=RELEASES).is_refuted


def test_clipping_left_out_is_caught() -> None:
    """The pair is at the clip norm's distance once clipped; unclipped it is five times as far."""
    far = (PAIR[0], 5 * PAIR[1])
    noised = gaussian(1.0)

    def clipped(rows: torch.Tensor) -> torch.Tensor:
        return noised(rows / max(1.0, float(rows.norm())))

    assert not audit(clipped, far, claimed_mu=1.0, releases=RELEASES).is_refuted
    assert audit(noised, far, claimed_mu=1.0, releases=RELEASES).is_refuted


def test_an_audit_without_a_claim_is_refused() -> None:
    with pytest.raises(UsageError, match="claim"):
        audit(gaussian(1.0), PAIR, claimed_mu=0.0)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.268, 1.0), (1.67, 8.02), (7.89, 64.0)])
def test_epsilon_of_mu_is_the_published_one(mu: float, epsilon: float) -> None:
    assert epsilon_of_mu(mu, 1e-5) == pytest.approx(epsilon, rel=0.01)


def test_one_run_stays_below_an_honest_claim_and_above_a_false_one() -> None:
    pair = PAIR[0][0], PAIR[1][0]
    mu = 2.0
    sigma = float((pair[1] - pair[0]).norm()) / mu
    honest = audit_one_run(gaussian(sigma), pair, slots=4000, claimed_mu=mu)
    assert not honest.is_refuted
    assert honest.lower_epsilon > 0
    planted = audit_one_run(gaussian(sigma / 8), pair, slots=4000, claimed_mu=mu / 4)
    assert planted.is_refuted


def test_guesses_no_better_than_coins_bound_nothing() -> None:
    assert epsilon_bound(52, 100, slots=1000, delta=1e-6, confidence=0.999) == 0.0


def test_more_right_guesses_bound_more() -> None:
    bounds = [epsilon_bound(right, 400, slots=4000, delta=1e-6, confidence=0.999) for right in (250, 300, 350, 395)]
    assert bounds == sorted(bounds)
    assert bounds[0] > 0
