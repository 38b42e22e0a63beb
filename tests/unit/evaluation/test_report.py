from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.prefix_timing import TimingResult
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.plots import write_report
from splitinfer.evaluation.rendering import markdown, text_lines
from splitinfer.evaluation.report import (
    FORMAT,
    AttackFigures,
    CostFigures,
    PolicyFigures,
    Report,
    TenantFigures,
    UtilityFigures,
    exceeded,
    parse_ceiling,
)


def row(attack: str, hits: int, *, secret: int = 0) -> AttackFigures:
    return AttackFigures("recipient", attack, Rate(hits, 10), Rate(hits == 10, 1), Rate(secret, 1), 0.25, 2.0, 1)


def report() -> Report:
    utility, cost = UtilityFigures(Rate(3, 4), 0.001, 0.99), CostFigures(1000, 2000, 0.5, 0.1, 0.2)
    attacks = (row("prior", 1), row("posterior", 9, secret=1))
    figures = PolicyFigures(
        "p<1>", "sealed-decode", "raw", "0" * 64, attacks, {"network": Rate(0.04, 4)}, utility, cost
    )
    return Report("a" * 64, 100, 4, 0, (figures,))


def test_sums_add_counts_and_average_the_rest() -> None:
    both = AttackFigures.sum([row("prior", 1), row("prior", 4, secret=1)])
    assert (both.tokens, both.personal_data, both.prompts) == (Rate(5, 20), Rate(1, 2), 2)
    assert both.seconds == 2.0


def test_leakage_utility_and_cost_stand_side_by_side() -> None:
    (policy,) = report().to_json()["policies"]  # type: ignore[misc]
    assert {"leakage", "confirmation", "utility", "cost"} <= set(policy)
    assert report().to_json()["format"] == FORMAT
    assert policy["leakage"][1]["token_recovery"]["share"] == 0.9
    assert policy["leakage"][1]["token_recovery"]["low"] < 0.9 < policy["leakage"][1]["token_recovery"]["high"]


def test_the_worst_seat_and_attack_count() -> None:
    (policy,) = report().policies
    assert policy.worst("token_recovery") == 0.9
    assert policy.worst("personal_data") == 1.0
    assert policy.worst("confirmation") == 0.01


def test_layers_and_another_tenants_clock_are_said() -> None:
    timing = TenantFigures(TimingResult((1.0, 2.0), (1.5, 1.6)), TimingResult((1.0, 1.0), (2.0, 2.0)))
    (policy,) = report().policies
    policy = replace(policy, layers={0: Rate(9, 10)}, tenants=timing, seen={"network": "no traffic"})
    said = "\n".join(text_lines(replace(report(), policies=(policy,))))
    assert "network sees no traffic" in said
    assert "0: 90.0 %" in said
    assert "AUC 0.50" in said
    assert "1.00 [1.00, 1.00] if the cloud kept one cache for all" in said
    assert policy.worst("prefix_timing") == 0.5
    assert "0: 90.0 %" in markdown(replace(report(), policies=(policy,)))


def test_a_ceiling_that_is_exceeded_is_named_and_one_that_is_kept_is_not() -> None:
    assert exceeded(report(), [parse_ceiling("confirmation=0.01")]) == []
    (sentence,) = exceeded(report(), [parse_ceiling("token_recovery=0.89")])
    assert "token_recovery" in sentence
    assert "p<1>" in sentence


@pytest.mark.parametrize("text", ["personal_data", "personal_data=x", "similarity=0.1", "personal_data=1.5", "=0"])
def test_a_ceiling_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-above"):
        parse_ceiling(text)


def test_the_files_hold_the_same_figures_and_the_page_is_alone(tmp_path: Path) -> None:
    names = {path.name for path in write_report(report(), tmp_path / "out")}
    assert {"report.json", "report.md", "report.html"} <= names
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report().to_json()))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "p&lt;1&gt;" in page
    assert "p<1>" not in page
    assert "http://" not in page
    assert "90.0 %" in (tmp_path / "out" / "report.md").read_text()
