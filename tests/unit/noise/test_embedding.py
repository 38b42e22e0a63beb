"""Noised embeddings carry exactly the noise they state, and post-processing looks at nothing but them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import UsageError
from splitinfer.noise.embedding import TextRows, noise_embeddings
from tests.support.noise_keys import fixed_stream

RNG = np.random.default_rng(0)
TABLE = TextRows(RNG.standard_normal((40, 8)))
EXACT = TABLE.rows[RNG.integers(0, 40, 700)]


def test_noise_has_the_stated_deviation_in_every_direction() -> None:
    exact = np.zeros((20_000, 8))
    noised = noise_embeddings(exact, sigma=2.5, stream=fixed_stream(1)).rows
    assert noised.std() == pytest.approx(2.5, rel=0.01)
    covariance = np.cov(noised.T) / 2.5**2
    assert np.abs(covariance - np.eye(8)).max() < 0.05


def test_same_noise_on_two_texts_differs_by_the_texts_alone() -> None:
    """Only the replaced row differs: no other row's noise depends on it."""
    other = EXACT.copy()
    other[-1] = TABLE.rows[0] + 1
    one = noise_embeddings(EXACT, sigma=0.5, stream=fixed_stream(2))
    two = noise_embeddings(other, sigma=0.5, stream=fixed_stream(2))
    assert (one.rows[:-1] == two.rows[:-1]).all()
    assert not (one.rows[-1] == two.rows[-1]).any()
    assert one.key_digest == two.key_digest


def test_nearest_is_the_row_of_brute_force() -> None:
    raw = noise_embeddings(EXACT, sigma=0.8, stream=fixed_stream(3)).rows
    near = noise_embeddings(EXACT, sigma=0.8, stream=fixed_stream(3), post="nearest", table=TABLE).rows
    distances = np.linalg.norm(raw[:, None, :] - TABLE.rows[None], axis=2)
    assert (near == TABLE.rows[distances.argmin(axis=1)]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_posterior_is_the_mean_of_brute_force(weighted: bool) -> None:
    prior = RNG.random(40) if weighted else None
    sigma = 0.9
    raw = noise_embeddings(EXACT, sigma=sigma, stream=fixed_stream(4)).rows
    table = TextRows(TABLE.rows, prior)
    mean = noise_embeddings(EXACT, sigma=sigma, stream=fixed_stream(4), post="posterior", table=table).rows
    squares = ((raw[:, None, :] - TABLE.rows[None]) ** 2).sum(axis=2)
    weights = np.exp(-(squares - squares.min(axis=1, keepdims=True)) / (2 * sigma**2)) * (1 if prior is None else prior)
    expected = (weights / weights.sum(axis=1, keepdims=True)) @ TABLE.rows
    assert np.abs(mean - expected).max() < 1e-9


def test_posterior_comes_nearest_to_the_truth_on_average() -> None:
    errors = {}
    for post in ("none", "nearest", "posterior"):
        rows = noise_embeddings(EXACT, sigma=1.5, stream=fixed_stream(5), post=post, table=TABLE).rows
        errors[post] = float(((rows - EXACT) ** 2).sum(axis=1).mean())
    assert errors["posterior"] < errors["nearest"]
    assert errors["posterior"] < errors["none"]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["nearest", "posterior"]), st.floats(1e-3, 1e3), st.integers(0, 255))
def test_post_processing_depends_on_the_noised_rows_alone(post: str, sigma: float, seed: int) -> None:
    """Two texts whose noised rows are the same are the same afterwards: whatever the exact rows were."""
    raw = noise_embeddings(EXACT, sigma=sigma, stream=fixed_stream(seed)).rows
    direct = noise_embeddings(EXACT, sigma=sigma, stream=fixed_stream(seed), post=post, table=TABLE).rows
    again = noise_embeddings(EXACT[::-1], sigma=sigma, stream=fixed_stream(seed), post=post, table=TABLE).rows
    same = (raw == noise_embeddings(EXACT[::-1], sigma=sigma, stream=fixed_stream(seed)).rows).all(axis=1)
    assert (direct[same] == again[same]).all()
    assert np.isfinite(direct).all()


def test_a_choice_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UsageError, match="table"):
        noise_embeddings(EXACT, sigma=1, stream=fixed_stream(6), post="nearest")
    with pytest.raises(UsageError, match="as wide"):
        noise_embeddings(EXACT[:, :5], sigma=1, stream=fixed_stream(6), post="posterior", table=TABLE)
    with pytest.raises(UsageError):
        noise_embeddings(EXACT[0], sigma=1, stream=fixed_stream(6))
    for prior in (np.zeros(40), np.ones(39), np.full(40, -1.0), np.full(40, np.nan)):
        with pytest.raises(UsageError, match="prior"):
            TextRows(TABLE.rows, prior)


def test_what_a_release_prints_shows_no_row() -> None:
    release = noise_embeddings(EXACT, sigma=1, stream=fixed_stream(7))
    assert "array" not in repr(release)
    assert "array" not in repr(TABLE)
