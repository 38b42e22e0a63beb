from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitinfer.evaluation.report import FORMAT
from tests.support.quoted_figures import disagreements

ROOT = Path(__file__).resolve().parents[3]
REPORTS = ROOT / "docs" / "reports"


@pytest.mark.parametrize("document", ["threat_model.md", "README.md", "docs/evaluation.md"])
def test_quoted_numbers_are_those_of_the_committed_reports(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert disagreements(text, REPORTS) == []


def test_committed_reports_are_of_the_present_format() -> None:
    for path in REPORTS.glob("*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report["format"] == FORMAT, path.name
        assert report["policies"], path.name


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("recovered 12.5 %<!-- r.json#policies.0.share -->", 0),
        ("recovered 12.4 %<!-- r.json#policies.0.share -->", 1),
        ("sent 1,024 <!-- r.json#policies.0.bytes --> bytes", 0),
        ("sent 1,025 <!-- r.json#policies.0.bytes --> bytes", 1),
        ("of a report 3 <!-- none.json#a -->, of a value 3 <!-- r.json#policies.9 -->", 2),
        ("12.5 % of nothing quoted", 0),
    ],
)
def test_a_number_that_its_report_does_not_say_is_found(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"policies": [{"share": 0.125, "bytes": 1024}]}), encoding="utf-8")
    assert len(disagreements(text, tmp_path)) == count
