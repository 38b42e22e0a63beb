"""`splitinfer demo`: every mode, the right answer where nothing is noised, no process left behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from splitinfer.embedded import demo
from tests.integration.conftest import CommandLine
from tests.support.memory_clouds import EXACT_MODES
from tests.support.processes import ROOT, run_cli
from trust_models.modes import MODES


def processes_naming(word: str) -> list[str]:
    """Return the command lines of running processes that hold this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if word in line and "splitinfer" in line:
            found.append(line)
    return found


def test_demo_shows_every_mode_and_leaves_no_process(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = tmp_path / "kept"
    ran = command("demo", "--keep", kept, engine="real")
    assert ran.code == 0, ran.err
    shown = {line.split(" ")[0]: line for line in ran.out.splitlines() if line.split(" ")[0] in MODES}
    assert list(shown) == list(MODES)
    rows = [shown[mode] for mode in EXACT_MODES]
    assert all(demo.ANSWER in row for row in rows)
    assert rows[0].rstrip().endswith("nothing")
    assert "audit log: 17 records, verified" in ran.out
    assert processes_naming(str(kept / "cloud")) == []
    checked = command("audit", "verify", home=kept / "device")
    assert checked.code == 0


@pytest.mark.slow
def test_demo_as_a_process_prints_json_and_ends(tmp_path: Path) -> None:
    ran = run_cli("demo", "--json", home=tmp_path / "home", timeout=280)
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert [run["mode"] for run in printed["runs"]] == list(MODES)
    assert {run["text"].strip() for run in printed["runs"] if run["mode"] in EXACT_MODES} == {demo.ANSWER}
    port = int(printed["url"].rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
