"""Rules of the file of measured losses: it keeps what was put, and anything else in it counts as nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitinfer.home import Home
from splitinfer.home.losses import LossFile
from trust_models.codecs import Loss

LOSS = Loss(kl_nats=1e-3, kl_error_nats=1e-4, top1_agreement=0.98, perplexity_ratio=1.001, tokens=640)
MODEL, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_what_was_put_is_kept_by_model_and_codec(home: Home) -> None:
    LossFile(home).put(MODEL, "q8", LOSS)
    LossFile(home).put(MODEL, "q4", Loss(1.0, 0.1, 0.5, 2.0, 64))
    assert LossFile(home).get(MODEL, "q8") == LOSS
    assert LossFile(home).get(MODEL, "k6v4") is None
    assert LossFile(home).get(OTHER, "q8") is None


def test_the_file_is_private(home: Home) -> None:
    LossFile(home).put(MODEL, "q8", LOSS)
    assert (home.path / "losses.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "stored",
    [
        "", "[]", "{", "3",
        json.dumps({MODEL: 3}),
        json.dumps({MODEL: {"q8": None}}),
        json.dumps({MODEL: {"q8": {"kl_nats": 0.0}}}),
        json.dumps({MODEL: {"q8": dict.fromkeys(Loss.__slots__, "0")}}),
        json.dumps({MODEL: {"q8": dict.fromkeys(Loss.__slots__, True)}}),
    ],
)  # fmt: skip
def test_a_file_of_another_form_counts_as_nothing_measured(home: Home, stored: str) -> None:
    (home.path / "losses.json").write_text(stored)
    assert LossFile(home).get(MODEL, "q8") is None
