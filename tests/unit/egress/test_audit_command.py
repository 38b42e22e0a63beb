"""`splitinfer audit` on a real log directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from splitinfer.cli.audit import add_parser
from splitinfer.errors import AuditLogError, BrokenLogError, StateError, UsageError
from tests.support.audit_process import KEY, ORIGIN, open_real


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a state folder with keys and a log of a refusal, an intent and its outcome."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "checkpoint.pub").write_text(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex() + "\n")
    (keys / "checkpoint.key").write_text(KEY.private_bytes_raw().hex() + "\n")
    (keys / "checkpoint.key").chmod(0o600)
    log = open_real(tmp_path / "audit")
    log.append({"type": "denied", "mode": "sealed-decode", "code": "egress_denied"})
    recipient = {"identity_sha256": "ab" * 32}
    intent = log.open_intent({"mode": "sealed-decode", "recipient": recipient, "bytes_up_bound": 500})
    log.close_intent(intent, {"status": "done", "bytes_up": 400, "protection": "sealed"})
    log.close()
    return tmp_path


def _run(home: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["--home", str(home), "audit", *arguments])
    return args.handler(args)


def test_show_prints_one_readable_line_a_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(home, "show") == 0
    denied, intent, outcome = capsys.readouterr().out.splitlines()
    assert "denied" in denied
    assert "mode=sealed-decode" in denied
    assert "code=egress_denied" in denied
    assert "recipient=identity_sha256:abababababababab..." in intent
    assert "bytes_up_bound=500" in intent
    assert "protection=sealed" in outcome
    assert "status=done" in outcome
    assert "bytes_up=400" in outcome


def test_show_since_starts_at_that_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(home, "show", "--since", "2", "--json")
    assert [record["type"] for record in json.loads(capsys.readouterr().out)["records"]] == ["outcome"]
    with pytest.raises(UsageError):
        _run(home, "show", "--since", "-1")


def test_show_escapes_control_characters(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_real(home / "audit")
    log.append({"type": "local", "status": "\x1b[2J"})
    log.close()
    _run(home, "show")
    assert "\x1b" not in capsys.readouterr().out


def test_checkpoint_then_verify_against_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = home / "kept.checkpoint"
    assert _run(home, "checkpoint", "-o", str(kept)) == 0
    assert kept.read_text().startswith(f"{ORIGIN}\n3\n")
    log = open_real(home / "audit")
    log.append({"type": "local"})
    log.close()
    assert _run(home, "verify", "--against", str(kept), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["size"], report["checkpoint_size"], report["against_size"]) == (4, 3, 3)
    assert _run(home, "verify", "--against", str(kept)) == 0
    assert "extends the given checkpoint of 3 records" in capsys.readouterr().out


def test_verify_needs_no_private_key_and_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "keys" / "checkpoint.key").unlink()
    before = {path: path.read_bytes() for path in (home / "audit").rglob("*") if path.is_file()}
    assert _run(home, "verify") == 0
    assert "3 records verified" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (home / "audit").rglob("*") if path.is_file()} == before
    with pytest.raises(StateError):
        _run(home, "checkpoint")


def test_verify_of_a_changed_log_is_refused(home: Path) -> None:
    data = (home / "audit" / "log").read_bytes()
    (home / "audit" / "log").write_bytes(data[:30] + b"!" + data[31:])
    with pytest.raises(BrokenLogError):
        _run(home, "verify")


def test_prove_then_check_the_proof_elsewhere(
    home: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AuditLogError, match="make a new one"):
        _run(home, "prove", "1")
    _run(home, "checkpoint")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "keys").mkdir()
    (elsewhere / "keys" / "checkpoint.pub").write_text((home / "keys" / "checkpoint.pub").read_text())
    proof = elsewhere / "1.tlog-proof"
    assert _run(home, "prove", "1", "-o", str(proof)) == 0
    capsys.readouterr()
    assert _run(elsewhere, "check-proof", str(proof)) == 0
    assert "record 1 is in the log" in capsys.readouterr().out
    assert _run(elsewhere, "check-proof", str(proof), "--json") == 0
    assert json.loads(capsys.readouterr().out)["record"]["type"] == "intent"
    proof.write_text(proof.read_text().replace("index 1", "index 2"))
    with pytest.raises(BrokenLogError):
        _run(elsewhere, "check-proof", str(proof))


def test_log_option_reads_another_directory(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "audit").rename(home / "moved")
    assert _run(home, "verify", "--log", str(home / "moved")) == 0
    with pytest.raises(AuditLogError):
        _run(home, "verify")


def test_checkpoint_of_a_missing_log_makes_none(home: Path) -> None:
    with pytest.raises(AuditLogError):
        _run(home, "checkpoint", "--log", str(home / "nothing"))
    assert not (home / "nothing").exists()


def test_private_key_that_others_can_read_is_refused(home: Path) -> None:
    (home / "keys" / "checkpoint.key").chmod(0o644)
    with pytest.raises(StateError, match="0600"):
        _run(home, "checkpoint")


@pytest.mark.parametrize("text", ["", "zz", "00" * 31])
def test_malformed_public_key_is_refused(home: Path, text: str) -> None:
    (home / "keys" / "checkpoint.pub").write_text(text)
    with pytest.raises(StateError, match="64 hex digits"):
        _run(home, "verify")


def test_missing_files_are_usage_errors(home: Path) -> None:
    for arguments in (["verify", "--against", str(home / "no")], ["check-proof", str(home / "no")]):
        with pytest.raises(UsageError):
            _run(home, *arguments)


def _grown(home: Path) -> tuple[Path, Path]:
    """Keep a checkpoint of three records, then let the log grow and prove that it extends them."""
    kept, proof = home / "kept.checkpoint", home / "extends.proof"
    _run(home, "checkpoint", "-o", str(kept))
    log = open_real(home / "audit")
    for _ in range(4):
        log.append({"type": "local"})
    log.close()
    _run(home, "checkpoint", "-o", str(home / "newer.checkpoint"))
    assert _run(home, "prove", "--extends", "3", "-o", str(proof)) == 0
    return kept, proof


def test_an_auditor_checks_an_extension_without_the_log(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, proof = _grown(home)
    for path in (home / "audit").iterdir():
        path.rename(home / f"gone-{path.name}")
    capsys.readouterr()
    assert _run(home, "check-proof", str(proof), "--against", str(kept)) == 0
    assert "of 7 records extends the one of 3" in capsys.readouterr().out


def test_an_extension_is_checked_against_an_older_checkpoint_only(home: Path) -> None:
    kept, proof = _grown(home)
    with pytest.raises(UsageError, match="--against"):
        _run(home, "check-proof", str(proof))
    with pytest.raises(BrokenLogError, match="another size"):
        _run(home, "check-proof", str(proof), "--against", str(home / "newer.checkpoint"))
    text = proof.read_text()
    lines = text.split("\n")
    proof.write_text("\n".join([*lines[:2], *lines[3:]]))
    with pytest.raises(BrokenLogError):
        _run(home, "check-proof", str(proof), "--against", str(kept))
    other = lines[2].translate(str.maketrans("ABab", "BAba"))
    proof.write_text("\n".join([*lines[:2], other, *lines[3:]]))
    if other != lines[2]:
        with pytest.raises(BrokenLogError):
            _run(home, "check-proof", str(proof), "--against", str(kept))


def test_no_extension_is_proved_beyond_the_last_checkpoint(home: Path) -> None:
    _grown(home)
    for size in ("0", "8"):
        with pytest.raises(AuditLogError, match="covers 7 records"):
            _run(home, "prove", "--extends", size)


def test_an_erased_salt_is_gone_and_its_erasure_logged(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_real(home / "audit")
    commitment, salt_id = log.commit(b"value")
    log.close()
    assert _run(home, "erase", salt_id, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"erased": salt_id, "seq": 3}
    assert not (home / "audit" / "salts" / salt_id).exists()
    assert _run(home, "verify") == 0
    assert commitment
