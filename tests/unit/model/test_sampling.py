"""Rules of sampling: deterministic, filters in one order, out-of-range parameters refused."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import ModelError, UsageError
from splitinfer.handoff import SamplingParams
from splitinfer.model.sampling import Sampler, require_sampling_params

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))


def draws(count: int = 4000, logits: torch.Tensor = LOGITS, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 5, **params}))
    return [sampler.choose(logits) for _ in range(count)]


def test_greedy_takes_the_largest_logit() -> None:
    assert Sampler(SamplingParams()).choose(LOGITS) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_lowest_id_of_equal_logits(dtype: torch.dtype) -> None:
    logits = torch.zeros(5000, dtype=dtype)
    logits[[17, 900, 4999]] = 3
    assert Sampler(SamplingParams()).choose(logits) == 17


def test_frequencies_follow_the_probabilities() -> None:
    counts = np.bincount(draws(), minlength=4) / 4000
    # Four standard errors of a share at n = 4000 are at most 0.032.
    assert np.abs(counts - [0.1, 0.4, 0.2, 0.3]).max() < 0.032


def test_temperature_sharpens_and_flattens() -> None:
    cold, hot = (draws(temperature=t).count(1) / 4000 for t in (0.5, 100.0))
    assert abs(cold - 0.16 / 0.30) < 0.032
    assert abs(hot - 0.25) < 0.032


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e300])
def test_extreme_temperatures_give_a_token(temperature: float) -> None:
    assert set(draws(20, temperature=temperature)) <= {0, 1, 2, 3}


def test_a_tiny_temperature_is_greedy() -> None:
    assert set(draws(50, temperature=1e-9)) == {1}


def test_top_k_keeps_the_k_most_likely() -> None:
    assert set(draws(top_k=2)) == {1, 3}


def test_top_k_of_one_is_greedy_with_the_lowest_id_of_equals() -> None:
    assert set(draws(50, logits=torch.tensor([1.0, 2.0, 2.0]), top_k=1)) == {1}


def test_top_k_keeps_the_lowest_ids_of_many_equals() -> None:
    assert set(draws(logits=torch.tensor([0.0, 1.0, 0.5] * 700), top_k=5)) == {1, 4, 7, 10, 13}


def test_what_top_p_left_is_drawn_in_proportion() -> None:
    # .4 and .3 are left of the mass; four standard errors at n = 4000 are 0.032.
    assert abs(draws(top_p=0.65).count(1) / 4000 - 0.4 / 0.7) < 0.032


def test_top_k_above_the_vocabulary_keeps_all() -> None:
    assert set(draws(top_k=99)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float, kept: set[int]) -> None:
    assert set(draws(top_p=top_p)) == kept


def test_top_p_applies_to_what_top_k_left() -> None:
    # Of {.4, .3} the first holds .57, so a mass of .5 needs one token; of all four it needs two.
    assert set(draws(top_k=2, top_p=0.5)) == {1}
    assert set(draws(top_p=0.5)) == {1, 3}


def test_masked_tokens_are_never_drawn() -> None:
    assert set(draws(logits=torch.tensor([-math.inf, 0.0, -math.inf, 0.0]))) == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_refused(logits: list[float], temperature: float) -> None:
    with pytest.raises(ModelError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature)).choose(torch.tensor(logits))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60),
    st.floats(1e-3, 10),
    st.floats(1e-6, 1.0),
    st.integers(0, 70),
    st.integers(0, 2**63 - 1),
)
def test_the_same_logits_and_seed_give_the_same_tokens(
    values: list[float], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    first, second = Sampler(params), Sampler(params)
    logits = torch.tensor(values)
    chosen = [first.choose(logits) for _ in range(5)]
    assert chosen == [second.choose(logits) for _ in range(5)]
    assert all(0 <= token < len(values) for token in chosen)


def test_another_process_draws_the_same_tokens() -> None:
    code = (
        "import torch; from splitinfer.handoff import SamplingParams; from splitinfer.model.sampling import Sampler\n"
        "s = Sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=11)); g = torch.Generator().manual_seed(1)\n"
        "print([s.choose(torch.randn(50, generator=g)) for _ in range(30)])"
    )
    root = Path(__file__).parents[3]
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=root, timeout=120
    ).stdout
    sampler, generator = Sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=11)), torch.Generator().manual_seed(1)
    assert printed.decode().strip() == str([sampler.choose(torch.randn(50, generator=generator)) for _ in range(30)])


def test_another_seed_draws_other_tokens() -> None:
    assert draws(50, seed=1) != draws(50, seed=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ("a",) * 17),
        ("stop", ("a", "")),
    ],
)
def test_parameter_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        Sampler(SamplingParams(**{field: value}))


def test_parameters_at_their_limits_are_accepted() -> None:
    require_sampling_params(SamplingParams(1, 0.0, 1.0, 0, 2**63 - 1, ("a",) * 16))
