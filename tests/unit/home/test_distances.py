"""Distances are kept by model and rows, bit for bit, and a damaged file counts as empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitinfer.home import Home
from splitinfer.home.distances import DistanceFile
from splitinfer.noise.sensitivity import Distance

ONE, TWO = "ab" * 32, "cd" * 32
FOUND = Distance(1.2345678901234567, is_exact=True, rows=2000)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_distance_is_found_again_for_the_same_model_and_rows_only(home: Home) -> None:
    DistanceFile(home).put(ONE, TWO, FOUND)
    DistanceFile(home).put(TWO, ONE, Distance(3.0, is_exact=False, rows=5))
    assert DistanceFile(home).get(ONE, TWO) == FOUND
    assert DistanceFile(home).get(TWO, ONE) == Distance(3.0, is_exact=False, rows=5)
    assert DistanceFile(home).get(ONE, ONE) is None
    assert (home.path / "distances.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        json.dumps({f"{ONE} {TWO}": 3}),
        json.dumps({f"{ONE} {TWO}": {"value": 1.0, "is_exact": True, "rows": 4}}),
        json.dumps({f"{ONE} {TWO}": {"value": "-0x1p+0", "is_exact": True, "rows": 4}}),
        json.dumps({f"{ONE} {TWO}": {"value": "inf", "is_exact": True, "rows": 4}}),
        json.dumps({f"{ONE} {TWO}": {"value": "one", "is_exact": True, "rows": 4}}),
        json.dumps({f"{ONE} {TWO}": {"value": "0x1p+0", "is_exact": 1, "rows": 4}}),
        json.dumps({f"{ONE} {TWO}": {"value": "0x1p+0", "is_exact": True}}),
    ],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(home: Home, text: str) -> None:
    (home.path / "distances.json").write_text(text)
    assert DistanceFile(home).get(ONE, TWO) is None
    DistanceFile(home).put(ONE, TWO, FOUND)
    assert DistanceFile(home).get(ONE, TWO) == FOUND
