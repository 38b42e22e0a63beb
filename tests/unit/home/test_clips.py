"""Clip plans are kept by model, bit for bit, and a damaged file counts as empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitinfer.home import Home
from splitinfer.home.clips import ClipFile
from splitinfer.noise.clipping import ClipPlan, SlabClip

ONE, TWO = "ab" * 32, "cd" * 32
PLAN = ClipPlan((SlabClip("0.keys.0", 8, 1.1, 0.3), SlabClip("0.values.0", 8, 2.0000000001, 1e-9)), 0.95, 900)
SOUND = {"quantile": "0x1p-1", "public_rows": 3, "slabs": [["a", 8, "0x1p+0", "0x1p+0"]]}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_plan_is_found_again_for_the_same_model_only(home: Home) -> None:
    ClipFile(home).put(ONE, PLAN)
    assert ClipFile(home).get(ONE) == PLAN
    assert ClipFile(home).get(TWO) is None
    assert (home.path / "clips.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {**SOUND, "more": 1},
        {**SOUND, "slabs": []},
        {**SOUND, "slabs": 5},
        {**SOUND, "quantile": "0x1p+1"},
        {**SOUND, "quantile": 0.5},
        {**SOUND, "public_rows": "3"},
        {**SOUND, "slabs": [["a", 8, "0x1p+0"]]},
        {**SOUND, "slabs": [["a", 8, "inf", "0x1p+0"]]},
        {**SOUND, "slabs": [["a", 8, "-0x1p+0", "0x1p+0"]]},
        {**SOUND, "slabs": [[1, 8, "0x1p+0", "0x1p+0"]]},
    ],
)
def test_a_damaged_entry_counts_as_none_and_is_replaced(home: Home, entry: object) -> None:
    (home.path / "clips.json").write_text(json.dumps({ONE: SOUND}))
    assert ClipFile(home).get(ONE) is not None
    (home.path / "clips.json").write_text(json.dumps({ONE: entry}))
    assert ClipFile(home).get(ONE) is None
    ClipFile(home).put(ONE, PLAN)
    assert ClipFile(home).get(ONE) == PLAN
