"""Measured leakage is kept by model and policy, and a damaged file counts as empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitinfer.home import Home
from splitinfer.home.leakage import LeakageFile
from splitinfer.noise.certificate import Measured

ONE, TWO = "ab" * 32, "cd" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_measurement_is_found_again_for_the_same_model_and_policy_only(home: Home) -> None:
    LeakageFile(home).put(ONE, TWO, Measured(0.25, 0.5))
    assert LeakageFile(home).get(ONE, TWO) == Measured(0.25, 0.5)
    assert LeakageFile(home).get(TWO, ONE) is None


@pytest.mark.parametrize("entry", [3, {}, {"prior": 0.1}, {"prior": 0.1, "recovery": "x"}, {"prior": 2, "recovery": 0}])
def test_a_damaged_entry_counts_as_none(home: Home, entry: object) -> None:
    (home.path / "leakage.json").write_text(json.dumps({f"{ONE} {TWO}": entry}))
    assert LeakageFile(home).get(ONE, TWO) is None


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_file_counts_as_empty(home: Home, text: str) -> None:
    (home.path / "leakage.json").write_text(text)
    assert LeakageFile(home).get(ONE, TWO) is None
