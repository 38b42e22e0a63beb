"""Every benchmark runs and says what it measured; marks say whether they are reached; drawings repeat byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import Mark

ROOT = Path(__file__).resolve().parents[3]
KEYS = {"benchmark", "setting", "rows", "marks", "machine"}
SCRIPTS = [
    "sealing",
    "codecs",
    pytest.param("prefill", marks=pytest.mark.slow),
    pytest.param("transfer", marks=pytest.mark.slow),
    pytest.param("growth", marks=pytest.mark.slow),
    pytest.param("second_question", marks=pytest.mark.slow),
    pytest.param("loss", marks=pytest.mark.slow),
    pytest.param("transform_codec", marks=pytest.mark.slow),
    pytest.param("streaming", marks=pytest.mark.slow),
    pytest.param("served_rounds", marks=pytest.mark.slow),
]
LOSS = {
    "prompt_tokens": 512,
    "rows": [
        {"codec": "lossless", "times_smaller_padded": 1.4, "kl_nats": 0.0, "top1_agreement": 1.0},
        {"codec": "q8", "times_smaller_padded": 1.9, "kl_nats": 1e-5, "top1_agreement": 0.99},
    ],
}
LINE = {"prefill_over": 1.0, "first_token": 2.0, "wire": [[0.5, 1000], [1.5, 2000]]}
STREAMING = {"timelines": [{"direction": "up", "share": 0.8, "sequential": LINE, "streamed": LINE}]}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, cwd=ROOT)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_and_names_what_it_measured_and_where(script: str) -> None:
    found: dict[str, Any] = json.loads(run(script, "--quick", "--json").stdout)
    assert set(found) >= KEYS
    assert found["benchmark"] == script
    assert found["rows"]
    assert {"processor", "cores", "memory_gib", "versions", "date"} <= set(found["machine"])
    assert all(mark["verdict"].startswith(("reached", "missed by")) for mark in found["marks"])


def test_a_mark_is_reached_on_its_own_side_of_the_bar_only() -> None:
    assert Mark("x", 1.2, 1.0, "at least").is_reached
    assert Mark("x", 1.0, 1.0, "at most").is_reached
    missed = Mark("x", 0.75, 1.0, "at least")
    assert (missed.is_reached, missed.verdict) == (False, "missed by 0.25")
    assert not Mark("x", float("nan"), 1.0, "at most").is_reached


@pytest.mark.parametrize(("drawing", "report"), [("loss", LOSS), ("streaming", STREAMING)])
def test_a_drawing_repeats_byte_for_byte(tmp_path: Path, drawing: str, report: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    for name in ("a.svg", "b.svg"):
        run("plots", drawing, str(tmp_path / "report.json"), str(tmp_path / name))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_a_benchmark_that_is_not_there_is_skipped_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import all as all_of_them

    monkeypatch.setattr(all_of_them, "ROOT", tmp_path)
    found = all_of_them.run("sealing", is_quick=True, limit_seconds=5)
    assert found == {"failure": "skipped: benchmarks/sealing.py is not there"}
    assert "skipped" in all_of_them.document({"sealing": found})
