"""Checkpoints are C2SP signed notes; proofs are C2SP tlog-proofs; a changed one is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.egress.checkpoint import open_checkpoint, open_note, sign_checkpoint
from splitinfer.egress.proofs import check_proof, prove
from splitinfer.errors import AuditLogError, BrokenLogError
from splitinfer.merkle import EMPTY_ROOT
from tests.support.audit_process import KEY, ORIGIN, open_real

PUBLIC = KEY.public_key()
NOTE = sign_checkpoint(KEY, origin=ORIGIN, size=12, root=bytes(range(32))).note

# The example of C2SP signed-note: verifier key example.com/foo+530d903a+AekyeRrm...
SAMPLE_KEY = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")[1:]
SAMPLE_NOTE = (
    "This is an example message.\n\n\N{EM DASH} example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)


def test_published_signed_note_opens() -> None:
    public = Ed25519PublicKey.from_public_bytes(SAMPLE_KEY)
    assert open_note(SAMPLE_NOTE, public, name="example.com/foo") == "This is an example message.\n"


def test_checkpoint_has_the_three_lines_and_one_signature() -> None:
    lines = NOTE.split("\n")
    assert lines[:4] == [ORIGIN, "12", base64.b64encode(bytes(range(32))).decode(), ""]
    assert lines[4].startswith(f"\N{EM DASH} {ORIGIN} ")
    opened = open_checkpoint(NOTE, PUBLIC, origin=ORIGIN)
    assert (opened.size, opened.root, opened.note) == (12, bytes(range(32)), NOTE)


def test_lines_of_other_signers_are_passed_over() -> None:
    other = Ed25519PrivateKey.generate()
    cosigned = NOTE + sign_checkpoint(other, origin="witness", size=1, root=EMPTY_ROOT).note.split("\n")[4] + "\n"
    assert open_checkpoint(cosigned, PUBLIC).size == 12


@given(position=st.integers(0, len(NOTE) - 1), character=st.characters(codec="utf-8"))
@settings(deadline=None, max_examples=300)
def test_changed_checkpoint_is_refused(position: int, character: str) -> None:
    changed = NOTE[:position] + character + NOTE[position + 1 :]
    if changed != NOTE:
        with pytest.raises(BrokenLogError):
            open_checkpoint(changed, PUBLIC, origin=ORIGIN)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(BrokenLogError):
        open_checkpoint(text, PUBLIC)
    with pytest.raises(BrokenLogError):
        check_proof(text, PUBLIC)


@pytest.mark.parametrize("size", ["", "-1", "012", "1_0", "+1", "\N{ARABIC-INDIC DIGIT ONE}", "1" * 30])
def test_size_that_is_no_plain_decimal_is_refused(size: str) -> None:
    body = f"{ORIGIN}\n{size}\n{base64.b64encode(EMPTY_ROOT).decode()}\n\n\N{EM DASH} {ORIGIN} AAAA\n"
    with pytest.raises(BrokenLogError, match="size"):
        open_checkpoint(body, PUBLIC)


# --- proofs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    log = open_real(tmp_path / "audit")
    for number in range(7):
        log.append({"type": "local", "number": number})
    log.checkpoint()
    log.append({"type": "local", "number": 7})
    log.close()
    return tmp_path / "audit"


def test_proof_of_every_record_holds_and_returns_the_record(directory: Path) -> None:
    for index in range(7):
        proven = check_proof(prove(directory, index), PUBLIC, origin=ORIGIN)
        assert (proven.index, proven.record["number"], proven.checkpoint.size) == (index, index, 7)


@pytest.mark.parametrize("index", [-1, 7, 8])
def test_record_that_no_checkpoint_covers_cannot_be_proven(directory: Path, index: int) -> None:
    with pytest.raises(AuditLogError, match="checkpoint covers 7 records"):
        prove(directory, index)


def test_changed_proof_is_refused(directory: Path) -> None:
    text = prove(directory, 4)
    missed = []
    for position, character in enumerate(text):
        other = "A" if character != "A" else "B"
        try:
            check_proof(text[:position] + other + text[position + 1 :], PUBLIC)
            missed.append(position)
        except BrokenLogError:
            pass
    assert missed == []


def test_proof_of_another_record_under_this_index_is_refused(directory: Path) -> None:
    text, other = prove(directory, 4), prove(directory, 5)
    mixed = "\n".join([text.split("\n")[0], other.split("\n")[1], *text.split("\n")[2:]])
    with pytest.raises(BrokenLogError):
        check_proof(mixed, PUBLIC)


def test_truncated_proof_is_refused(directory: Path) -> None:
    text = prove(directory, 4)
    for length in range(len(text)):
        with pytest.raises(BrokenLogError):
            check_proof(text[:length], PUBLIC)


def test_proof_under_another_key_is_refused(directory: Path) -> None:
    with pytest.raises(BrokenLogError):
        check_proof(prove(directory, 4), Ed25519PrivateKey.generate().public_key())


def test_log_that_does_not_fit_its_checkpoint_proves_nothing(directory: Path) -> None:
    other = sign_checkpoint(KEY, origin=ORIGIN, size=7, root=EMPTY_ROOT)
    (directory / "checkpoint").write_text(other.note)
    with pytest.raises(BrokenLogError):
        prove(directory, 4)
