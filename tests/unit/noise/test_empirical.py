"""Relative noise is in proportion, and is called empirical wherever it appears."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitinfer.errors import BudgetExceededError, UnsupportedEventError, UsageError
from splitinfer.noise.accounting import Adjacency, Limit, NoiseEvent, admit, empirical_event
from splitinfer.noise.certificate import certify
from splitinfer.noise.empirical import noise_relative
from tests.support.noise_keys import fixed_stream

SLABS = {"a": np.full((4000, 8), 3.0), "b": np.full((4000, 8), 0.1), "zero": np.zeros((3, 8))}


def test_noise_is_in_proportion_to_every_slab() -> None:
    release = noise_relative(SLABS, relative_noise=0.5, stream=fixed_stream(1))
    assert (release.slabs["a"] - 3).std() == pytest.approx(1.5, rel=0.02)
    assert (release.slabs["b"] - 0.1).std() == pytest.approx(0.05, rel=0.02)
    assert (release.slabs["zero"] == 0).all()
    assert release.label == "empirical only"


@pytest.mark.parametrize("relative", [0.0, -1.0, math.inf, math.nan])
def test_relative_noise_that_is_none_is_refused(relative: float) -> None:
    with pytest.raises(UsageError):
        noise_relative(SLABS, relative_noise=relative, stream=fixed_stream(1))


def test_no_epsilon_is_ever_stated_and_no_budget_admits_it() -> None:
    event = empirical_event("ab" * 32)
    certificate = certify(event, Adjacency(1), delta=1e-5)
    stated = certificate.to_json()
    assert (stated["epsilon"], stated["mu"], stated["delta"]) == (None, None, None)
    assert stated["verdict"] == "empirical only"
    assert "epsilon" not in certificate.sentence()
    assert "empirical only" in certificate.sentence()
    with pytest.raises(BudgetExceededError):
        admit([], event, Limit(Adjacency(1), 1e9, 1e-5))


def test_relative_noise_cannot_be_given_a_price() -> None:
    with pytest.raises(UnsupportedEventError):
        NoiseEvent("empirical", 1.0, 1.0, "ab" * 32)
