"""`splitinfer policy` on built-in policies and files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from splitinfer.cli.policy import add_parser
from splitinfer.errors import PolicyError
from trust_models.policy import builtin_names, load_builtin, parse_policy


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["policy", *arguments])
    return args.handler(args)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text('mode = "sealed-decode" # mine\n[remote]\nname = "default"')
    return str(path)


def test_list_names_every_builtin_policy_and_what_the_cloud_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(builtin_names())
    assert "the cloud reads: nothing" in lines[0]
    assert _run("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["policies"]
    assert [row["name"] for row in rows] == list(builtin_names())
    assert rows[0]["private_text_readable_by"] == ["device"]


@pytest.mark.parametrize("name", builtin_names())
def test_shown_policy_can_be_used_as_a_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("show", name) == 0
    assert parse_policy(capsys.readouterr().out, origin="shown") == load_builtin(name)


def test_show_json_has_every_setting(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("show", file, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["policy"]["transfer"]["chunk_tokens"] == 512
    assert len(shown["digest"]) == 64


def test_show_keeps_the_text_and_ends_with_a_newline(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("show", file) == 0
    assert capsys.readouterr().out == Path(file).read_text() + "\n"


def test_explain_speaks_plainly_or_in_json(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("explain", file) == 0
    text = capsys.readouterr().out
    assert text.startswith("Mode\n")
    assert _run("explain", file, "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["explanation"] + "\n" == text
    assert fields["mode"] == "sealed-decode"


def test_check_says_mode_and_digest(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("check", file) == 0
    assert "usable, mode sealed-decode, digest " in capsys.readouterr().out
    assert _run("check", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["usable"] is True


def test_check_takes_files_only() -> None:
    with pytest.raises(PolicyError, match="no policy file"):
        _run("check", "sealed-decode")


@pytest.mark.parametrize("command", ["show", "explain", "check"])
def test_unusable_file_is_a_policy_error(command: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('mode = "enclave-decode"')
    with pytest.raises(PolicyError, match="'enclave-decode' is not known") as refused:
        _run(command, str(path))
    assert refused.value.exit_code == 3
