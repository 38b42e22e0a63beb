"""Figures in documents are those of committed reports: a changed number is found, an unknown name refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.quote_reports import main
from tools.quoting.documents import DOCUMENTS, disagreements, rewritten
from tools.quoting.quotes import NOT_MEASURED
from tools.quoting.reports import REPORTS, QuoteError, load_committed

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "docs" / "reports"
RATE = {"share": 0.125, "low": 0.1, "high": 0.15, "successes": 1, "trials": 8}
ROWS = [
    {"seat": "recipient", "attack": attack, "seconds": 1.0, "by_tenth": [], "rouge_l": 0.1}
    | {figure: {**RATE, "share": share} for figure in ("token_recovery", "exact_prompt", "personal_data")}
    for attack, share in (("prior", 0.5), ("dictionary", 0.25), ("answer", 0.125))
]
POLICY = {
    "policy": "sealed-decode",
    "codec": "raw",
    "seen": {},
    "by_layer": {},
    "leakage": ROWS,
    "confirmation": {"recipient": RATE},
    "utility": {"answers": RATE, "kl_nats": 0.0, "top1_agreement": 1.0},
    "tenants": None,
    "noise": None,
    "cost": {"bytes_up": 1024.0, "bytes_down": 1.0},
}
EVALUATION = {
    "format": "splitinfer-evaluation/1",
    "weights_sha256": "ab" * 32,
    "prompts": 8,
    "seed": 0,
    "policies": [POLICY],
}
ATTACKS = {
    "format": "splitinfer-attacks/1",
    "weights_sha256": "ab" * 32,
    "is_quick": False,
    "bars": [{"name": "audit, half", "figure": "refuted", "mark": "refuted", "is_reached": True}],
}
DICTIONARY = "evaluation/sealed-decode/recipient/dictionary/token_recovery"


def quote(name: str, shown: str) -> str:
    return f"of <!-- quote {name} -->{shown}<!-- end quote --> tokens"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tree with its documents and two reports that were just measured."""
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(quote(DICTIONARY, "?") + quote("attacks/bars", ""), encoding="utf-8")
    (tmp_path / "docs" / "reports").mkdir()
    for name, report in (("evaluation", EVALUATION), ("attacks", ATTACKS)):
        measured(tmp_path, name, report)
    return tmp_path


def measured(project: Path, name: str, report: dict[str, Any]) -> None:
    path = project / REPORTS[name].written_to
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report), encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_show_what_the_committed_reports_say(document: str) -> None:
    assert disagreements((ROOT / document).read_text(encoding="utf-8"), COMMITTED) == []


def test_committed_reports_are_known_and_of_their_format() -> None:
    for path in COMMITTED.glob("*.json"):
        assert load_committed(path.stem, COMMITTED) is not None


def test_one_command_commits_reports_and_brings_the_documents_after_them(project: Path) -> None:
    assert main(["--check"], root=project) == 1
    assert main([], root=project) == 0
    text = (project / "threat_model.md").read_text(encoding="utf-8")
    assert "25.0 % [10.0, 15.0]<" in text
    assert "| audit, half | refuted | refuted | reached |" in text
    committed = json.loads((project / "docs" / "reports" / "evaluation.json").read_text())
    assert set(committed["policies"][0]["leakage"][0]) >= {"seat", "attack", "token_recovery"}
    assert "seconds" not in committed["policies"][0]["leakage"][0]
    assert main(["--check"], root=project) == 0


def test_a_changed_number_is_found(project: Path) -> None:
    assert main([], root=project) == 0
    path = project / "docs" / "evaluation.md"
    path.write_text(path.read_text(encoding="utf-8").replace("25.0 %", "24.0 %"), encoding="utf-8")
    assert main(["--check"], root=project) == 1
    assert "24.0 %" in disagreements(path.read_text(encoding="utf-8"), project / "docs" / "reports")[0]


def test_what_was_not_measured_says_so_and_shows_no_number(tmp_path: Path) -> None:
    assert disagreements(quote(DICTIONARY, NOT_MEASURED), tmp_path) == []
    assert len(disagreements(quote(DICTIONARY, "25.0 %"), tmp_path)) == 1
    assert "make bench-attacks" in rewritten(quote("attacks/bars", ""), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "nothing/setting",
        "evaluation/sealed-decode/moon/dictionary/token_recovery",
        "evaluation/sealed-decode/recipient/dictionary/similarity",
        "evaluation/everything",
        "attacks/foo",
        "noise/bar/x",
    ],
)
def test_a_name_that_quotes_nothing_is_refused_measured_or_not(tmp_path: Path, name: str) -> None:
    assert len(disagreements(quote(name, NOT_MEASURED), tmp_path)) == 1
    with pytest.raises(QuoteError):
        rewritten(quote(name, ""), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "evaluation/masked/recipient/dictionary/token_recovery",
        "evaluation/sealed-decode/recipient/telepathy/token_recovery",
        "evaluation/sealed-decode/tenants",
        "attacks/bar/no such bar",
    ],
)
def test_a_figure_that_its_report_lacks_leaves_every_file_as_it_was(project: Path, name: str) -> None:
    path = project / "README.md"
    path.write_text(quote(name, NOT_MEASURED), encoding="utf-8")
    before = {document: (project / document).read_text(encoding="utf-8") for document in DOCUMENTS}
    assert main([], root=project) == 1
    assert {document: (project / document).read_text(encoding="utf-8") for document in DOCUMENTS} == before
    assert not list((project / "docs" / "reports").glob("*.json"))


@pytest.mark.parametrize(
    "text", ["<!-- quote attacks/bars --> 1", "1 <!-- end quote -->", "<!-- end quote --><!-- quote attacks/bars -->"]
)
def test_a_quote_without_its_end_is_found(tmp_path: Path, text: str) -> None:
    assert len(disagreements(text, tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("evaluation", {**EVALUATION, "prompts": 2}),
        ("attacks", {**ATTACKS, "is_quick": True}),
        ("attacks", {**ATTACKS, "format": "other"}),
    ],
)
def test_a_small_or_foreign_report_is_not_committed(project: Path, name: str, report: dict[str, Any]) -> None:
    measured(project, name, report)
    assert main([], root=project) == 1
    assert not list((project / "docs" / "reports").glob("*.json"))


def test_a_report_from_elsewhere_is_taken_under_its_name(project: Path) -> None:
    folder = project / "elsewhere"
    folder.mkdir()
    (project / REPORTS["evaluation"].written_to).rename(folder / "report.json")
    assert main(["--from", str(folder), "--as", "evaluation"], root=project) == 0
    assert (project / "docs" / "reports" / "evaluation.json").exists()
