from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from splitinfer.cli.main import main
from tests.support import tiny_models

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.build(tmp_path_factory.mktemp("command") / "llama"))


def run(*words: str) -> int:
    return main(["evaluate", *words])


COMMON = (
    *("--prompts", "1", "--max-new-tokens", "2", "--attack", "read,dictionary"),
    *("--tenant-texts", "0", "--active", "0"),
)


def test_the_report_is_one_json_object_and_a_ceiling_that_is_kept_passes(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("public-prefix", "--model", model, *COMMON, "--json", "--out", str(tmp_path / "out"))
    assert run(*words, "--fail-above", "personal_data=0.01") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["failures"] == []
    assert [policy["policy"] for policy in printed["policies"]] == ["public-prefix"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["policies"] == printed["policies"]


def test_a_ceiling_that_is_exceeded_ends_with_exit_code_3(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sealed-decode", "--model", model, "--seat", "recipient", *COMMON)
    assert run(*words, "--fail-above", "personal_data=0.01") == 3
    printed = capsys.readouterr()
    assert "error[policy]: sealed-decode: personal_data is 1.0000" in printed.err
    assert "dictionary" in printed.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no policy"),
        (("local", "--seat", "moon"), "--seat takes"),
        (("local", "--attack", "telepathy"), "telepathy"),
        (("local", "--fail-above", "x=1"), "--fail-above takes"),
        (("local", "--codec", "zip"), "no codec 'zip'"),
        (("local", "--seed", "-1"), "0 or more"),
        (("local", "--active", "-1"), "0 times or more"),
        (("noised-decode", "--clipped", "0"), "--clipped takes"),
        (("local", "--captures", "nowhere"), "stands alone"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("policy", "exit_code"), [("public-prefix", 0), ("sealed-decode", 3)])
def test_the_gate_for_a_pipeline_ends_with_the_exit_code_that_it_promises(
    policy: str, exit_code: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Path(__file__).resolve().parents[3] / "examples" / "leakage_gate.py"
    monkeypatch.setattr("sys.argv", [str(gate), policy, "--model", model, *COMMON])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(gate), run_name="__main__")
    assert ended.value.code == exit_code
