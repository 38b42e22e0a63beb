"""The clipped cache: rows never above their bound, the allocation of least noise, the price of all slabs together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import UsageError
from splitinfer.noise.clipping import ClipPlan, SlabClip, allocate, noise_slabs, plan_from_public, prompt_mu
from tests.support.noise_keys import fixed_stream

PLAN = ClipPlan(
    (SlabClip("0/0/keys", 4, 3.0), SlabClip("0/0/values", 4, 0.5, weight=9.0), SlabClip("1/0/keys", 6, 2.0)), 0.95, 100
)


def cache(seed: int, rows: int = 12, size: float = 1.0) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed)
    return {slab.name: size * drawn.standard_normal((rows, slab.dim)) for slab in PLAN.slabs}


slabs = st.builds(
    lambda clips: ClipPlan(tuple(SlabClip(f"{i}", d, c, w) for i, (d, c, w) in enumerate(clips)), 0.9, 1),
    st.lists(st.tuples(st.integers(1, 128), st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=8),
)


@settings(deadline=None, max_examples=60)
@given(slabs, st.floats(0.01, 100), st.integers(1, 500))
def test_allocation_has_the_price_that_was_asked_for(plan: ClipPlan, mu: float, rows: int) -> None:
    assert prompt_mu(plan, allocate(plan, mu=mu, rows=rows), rows=rows) == pytest.approx(mu, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(slabs, st.lists(st.floats(0.5, 2), min_size=8, max_size=8))
def test_no_other_allocation_of_that_price_is_less_noise(plan: ClipPlan, factors: list[float]) -> None:
    def noise(sigmas: list[float]) -> float:
        return sum(s.weight * s.dim * sigma**2 for s, sigma in zip(plan.slabs, sigmas, strict=True))

    best = allocate(plan, mu=1.0, rows=7)
    other = [sigma * factor for sigma, factor in zip(best, factors, strict=False)]
    scale = prompt_mu(plan, other, rows=7)
    assert noise(best) <= noise([sigma * scale for sigma in other]) * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_two_prompts_are_no_farther_apart_than_the_price_says(size: float, seed: int) -> None:
    """The distance of the clipped caches, in units of each slab's noise, is mu at most: the worst pair comes close."""
    sigmas = allocate(PLAN, mu=2.0, rows=12)
    tiny = [sigma * 1e-9 for sigma in sigmas]
    one = noise_slabs(cache(seed, size=size), plan=PLAN, sigmas=tiny, stream=fixed_stream(1)).slabs
    two = noise_slabs(cache(seed + 1, size=size), plan=PLAN, sigmas=tiny, stream=fixed_stream(1)).slabs
    pairs = zip(PLAN.slabs, sigmas, strict=True)
    distance = math.sqrt(sum(float(((one[s.name] - two[s.name]) ** 2).sum()) / sigma**2 for s, sigma in pairs))
    assert distance <= 2.0 * (1 + 1e-6)


def test_worst_pair_is_exactly_as_far_apart_as_the_price_says() -> None:
    sigmas = allocate(PLAN, mu=2.0, rows=12)
    tiny = [sigma * 1e-9 for sigma in sigmas]
    far = {slab.name: np.tile(np.eye(slab.dim)[0] * 1e6, (12, 1)) for slab in PLAN.slabs}
    one = noise_slabs(far, plan=PLAN, sigmas=tiny, stream=fixed_stream(1)).slabs
    two = noise_slabs({n: -rows for n, rows in far.items()}, plan=PLAN, sigmas=tiny, stream=fixed_stream(1)).slabs
    pairs = zip(PLAN.slabs, sigmas, strict=True)
    distance = math.sqrt(sum(float(((one[s.name] - two[s.name]) ** 2).sum()) / sigma**2 for s, sigma in pairs))
    assert distance == pytest.approx(2.0, rel=1e-6)


def test_every_slab_has_its_noise_keys_and_values_alike() -> None:
    rows = 20_000
    sigmas = allocate(PLAN, mu=1.0, rows=rows)
    zeros = {slab.name: np.zeros((rows, slab.dim)) for slab in PLAN.slabs}
    release = noise_slabs(zeros, plan=PLAN, sigmas=sigmas, stream=fixed_stream(2))
    for slab, sigma in zip(PLAN.slabs, sigmas, strict=True):
        assert release.slabs[slab.name].std() == pytest.approx(sigma, rel=0.02)
    assert release.mu == pytest.approx(1.0)


def test_rows_within_their_bound_are_not_changed_but_for_noise() -> None:
    small = cache(3, size=1e-3)
    release = noise_slabs(small, plan=PLAN, sigmas=[1e-9] * 3, stream=fixed_stream(3))
    assert all(np.abs(release.slabs[name] - rows).max() < 1e-7 for name, rows in small.items())


def test_a_slab_without_noise_costs_infinitely_much_and_is_refused() -> None:
    assert prompt_mu(PLAN, [1.0, 0.0, 1.0], rows=3) == math.inf
    with pytest.raises(UsageError):
        noise_slabs(cache(4), plan=PLAN, sigmas=[1.0, 0.0, 1.0], stream=fixed_stream(4))


def test_clip_norms_are_a_quantile_over_public_rows() -> None:
    public = [cache(5, rows=500), cache(6, rows=300)]
    plan = plan_from_public(public, quantile=0.9, weights={"0/0/values": 4.0})
    assert plan.public_rows == 800
    assert [slab.weight for slab in plan.slabs] == [1.0, 4.0, 1.0]
    for slab in plan.slabs:
        norms = np.concatenate([np.linalg.norm(one[slab.name], axis=1) for one in public])
        assert (norms <= slab.clip_norm).mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("public", [[], [cache(1), {"other": np.ones((2, 2))}]])
def test_clip_norms_without_fitting_public_caches_are_refused(public: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(UsageError):
        plan_from_public(public)


def test_slabs_that_are_not_the_plans_are_refused() -> None:
    good = cache(7)
    sigmas = [1.0, 1.0, 1.0]
    for bad in (
        {name: good[name] for name in list(good)[:2]},
        {**good, "0/0/keys": good["0/0/keys"][:-1]},
        {**good, "0/0/keys": good["0/0/keys"][:, :-1]},
    ):
        with pytest.raises(UsageError, match="plan"):
            noise_slabs(bad, plan=PLAN, sigmas=sigmas, stream=fixed_stream(8))
    with pytest.raises(UsageError, match="plan"):
        noise_slabs(good, plan=PLAN, sigmas=sigmas[:2], stream=fixed_stream(8))


@pytest.mark.parametrize(("dim", "norm", "weight"), [(0, 1, 1), (1, 0, 1), (1, math.inf, 1), (1, 1, 0)])
def test_a_clip_that_bounds_nothing_is_refused(dim: int, norm: float, weight: float) -> None:
    with pytest.raises(UsageError):
        SlabClip("x", dim, norm, weight)
