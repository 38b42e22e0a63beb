"""Noise comes from a fresh key each, is normal, lies on its grid, and no key makes two streams."""

from __future__ import annotations

import ast
import hashlib
import math
import secrets
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import splitinfer.noise
from splitinfer.errors import CryptoParameterError, UsageError
from splitinfer.noise.stream import NoiseKey, NoiseStream, add_noise, grid_step

COUNT = 400_000


def fixed(seed: int) -> NoiseStream:
    return NoiseStream(NoiseKey(lambda count: hashlib.shake_256(bytes([seed])).digest(count)))


def kolmogorov_smirnov(sample: np.ndarray) -> float:
    """Return the largest distance between the sample's distribution and N(0, 1), times the root of its size."""
    ordered = np.sort(sample)
    expected = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered])
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    distance = max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max())
    return float(distance * math.sqrt(len(ordered)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_numbers_are_standard_normal(seed: int) -> None:
    sample = fixed(seed).normals(COUNT)
    error = 5 / math.sqrt(COUNT)
    assert abs(sample.mean()) < error
    assert abs((sample**2).mean() - 1) < error * math.sqrt(2)
    assert abs((sample**3).mean()) < error * math.sqrt(15)
    assert abs((sample**4).mean() - 3) < error * math.sqrt(96)
    # 1.95 is exceeded once in a thousand samples; the keys are fixed.
    assert kolmogorov_smirnov(sample[:100_000]) < 1.95


def test_the_check_of_the_distribution_can_fail() -> None:
    sample = fixed(1).normals(100_000)
    assert kolmogorov_smirnov(sample * 1.04) > 1.95
    assert kolmogorov_smirnov(sample + 0.02) > 1.95


def test_neighbours_and_pairs_are_uncorrelated() -> None:
    sample = fixed(4).normals(COUNT)
    for lag in (1, 2, 3, 512):
        assert abs((sample[:-lag] * sample[lag:]).mean()) < 5 / math.sqrt(COUNT)
    squares = sample**2 - 1
    assert abs((squares[0::2] * squares[1::2]).mean()) < 10 / math.sqrt(COUNT / 2)


def test_tails_are_there() -> None:
    sample = np.abs(fixed(5).normals(2_000_000))
    beyond = (sample > 4).sum()
    assert abs(beyond - 2_000_000 * 6.334e-5) < 5 * math.sqrt(127)
    assert sample.max() < 8.7


def test_stream_is_a_function_of_its_key_alone() -> None:
    assert (fixed(6).normals(1000) == fixed(6).normals(1000)).all()
    assert not (fixed(6).normals(1000) == fixed(7).normals(1000)).any()


def test_stream_gives_each_number_once() -> None:
    stream = fixed(8)
    first, second = stream.normals(1000), stream.normals(1000)
    assert not set(first) & set(second)
    assert (np.concatenate([first, second]) == fixed(8).normals(2000)).all()
    assert stream.normals(0).shape == (0,)
    assert stream.normals(3).shape == (3,)


def test_a_key_makes_one_stream() -> None:
    key = NoiseKey(secrets.token_bytes)
    NoiseStream(key)
    with pytest.raises(CryptoParameterError, match="used"):
        NoiseStream(key)


def test_a_source_that_gives_too_little_is_refused() -> None:
    with pytest.raises(CryptoParameterError, match="not 32"):
        NoiseKey(lambda count: bytes(count - 1))


def test_neither_the_digest_nor_the_name_of_a_key_shows_it() -> None:
    secret = bytes(range(32))
    key = NoiseKey(lambda count: secret[:count])
    assert secret.hex() not in key.digest + repr(key)
    assert key.digest != hashlib.sha256(secret).hexdigest(), "without a label of its own"


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-6, 1e6), st.integers(0, 255))
def test_sums_lie_on_the_grid_of_sigma_whatever_the_values(sigma: float, seed: int) -> None:
    step = grid_step(sigma)
    assert sigma / 8192 < step <= sigma / 4096
    assert math.frexp(step)[0] == 0.5, "a power of two"
    values = np.linspace(-3.3, 3.7, 101) * sigma
    noised = add_noise(values, sigma=sigma, stream=fixed(seed))
    assert (noised / step == np.rint(noised / step)).all()
    again = add_noise(values * 0, sigma=sigma, stream=fixed(seed))
    assert np.abs(noised - again - values).max() <= step
    assert (noised.astype(np.float32).astype(np.float64) == noised).all(), "the cast to float32 loses nothing"


def test_values_that_hide_nothing_are_refused() -> None:
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError):
            add_noise(np.zeros(3), sigma=sigma, stream=fixed(1))
    with pytest.raises(UsageError):
        add_noise(np.array([1.0, math.nan]), sigma=1, stream=fixed(1))


def test_no_module_of_noise_knows_another_generator() -> None:
    """The lint rule says it too; this looks at every name that is imported or reached."""
    banned = {"random", "torch", "secrets", "os"}
    for path in Path(splitinfer.noise.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not banned & {alias.name.partition(".")[0] for alias in node.names}, path.name
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in banned, path.name
                assert not {"random", "load"} & {alias.name for alias in node.names}, path.name
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"random", "default_rng", "RandomState", "load"}, path.name
