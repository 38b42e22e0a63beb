"""Several real processes on one log: kill -9 anywhere, appends at once, intents of the living and of the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinfer.egress.verification import verify
from tests.support.audit_process import KEY, open_real

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tests" / "support" / "audit_process.py"


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a process that holds an intent open, and return it with the intent's id."""
    process = _start("hold", str(tmp_path / "audit"))
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_log_opens_again_after_kill_9_at_every_operation(tmp_path: Path) -> None:
    process = _start("kill-everywhere", str(tmp_path))
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(output)["killed_points"] > 60


def test_two_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    processes = [_start("append", str(directory), name, "40") for name in ("one", "two")]
    for process in processes:
        assert process.communicate(timeout=100)[1] == ""
        assert process.returncode == 0
    names = [record["name"] for record in open_real(directory).records()]
    assert sorted(names) == sorted(f"{name} {number}" for name in ("one", "two") for number in range(40))
    assert [name for name in names if name.startswith("one")] == [f"one {number}" for number in range(40)]
    assert verify(directory, KEY.public_key()).size == 80


def test_intent_of_a_living_process_is_left_open(tmp_path: Path, holder: tuple[subprocess.Popen[str], str]) -> None:
    process, intent = holder
    open_real(tmp_path / "audit").close()
    assert verify(tmp_path / "audit", KEY.public_key()).open_intents == 1
    process.communicate("close\n")
    outcomes = [record for record in open_real(tmp_path / "audit").records() if record["type"] == "outcome"]
    assert [(outcome["intent"], outcome["status"]) for outcome in outcomes] == [(intent, "done")]


def test_intent_of_a_killed_process_is_closed_as_unknown(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], str]
) -> None:
    process, intent = holder
    process.kill()
    process.wait()
    outcome = list(open_real(tmp_path / "audit").records())[-1]
    assert outcome["type"] == "outcome"
    assert (outcome["intent"], outcome["status"], outcome["bytes_up_at_most"]) == (intent, "unknown", 99)
