"""What `policy explain` says of speed was measured, and says on what."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.memory_clouds import policy_of
from trust_models.explain import explain
from trust_models.measured import Measurement, measurements

ROOT = Path(__file__).resolve().parents[3]
RULES: dict[str, dict[str, object]] = {
    "encrypted prefix": {},
    "public prefix": {"public": "plaintext"},
    "linear layers too": {"linear": "cloud"},
}


def explained(**rules: object) -> str:
    return " ".join(explain(policy_of("homomorphic", homomorphic=rules)).split())


@pytest.mark.parametrize("mode", RULES)
def test_a_policy_is_explained_with_what_was_measured_of_it_and_on_what(mode: str) -> None:
    found = measurements()[mode]
    text = explained(**RULES[mode])
    assert f"Measured: {found.seconds_a_token:g} s a token, with the {found.model} model" in text
    assert f"prefix of {found.prefix_tokens} tokens, on {found.conditions}." in text
    assert "was not measured" not in text


def test_a_profile_that_was_not_measured_is_said_to_be_so() -> None:
    assert "Profile accurate was not measured." in explained(profile="accurate")


def test_the_wait_for_a_prompt_is_the_measured_time_of_so_many_tokens() -> None:
    seconds = 40 * measurements()["linear layers too"].seconds_a_token
    assert f"up to {seconds:.0f} s pass before the answer begins" in explained(linear="cloud", max_prompt_tokens=40)


def test_the_readme_quotes_the_same_measurement() -> None:
    rows = re.findall(r"^\| .*\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    for name, row in (
        ("encrypted prefix", "`homomorphic`, seconds a token, encrypted prefix"),
        ("public prefix", "the same, public prefix in plaintext at the cloud"),
        ("linear layers too", "the same, linear layers in the cloud too (32 tokens)"),
    ):
        (line,) = [line for line in rows if line.startswith(f"| {row} |")]
        assert float(line.split("|")[2]) == measurements()[name].seconds_a_token


def test_the_file_is_one_that_the_benchmark_writes() -> None:
    held: dict[str, Any] = json.loads((ROOT / "trust_models" / "measured.json").read_text(encoding="utf-8"))
    assert set(held) == set(RULES)
    with pytest.raises(ValidationError):
        Measurement.model_validate({**held["public prefix"], "seconds_a_token": 0})
