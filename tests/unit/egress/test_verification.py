"""Whatever was changed in a stored log is found, at the latest by `verify`."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.log import AuditLog
from splitinfer.egress.records import framed, record_bytes
from splitinfer.egress.verification import read_records, verify
from splitinfer.errors import AuditLogError, BrokenLogError
from splitinfer.merkle import Frontier, leaf_hash, root_of
from tests.support.audit_process import KEY, open_real

PUBLIC = KEY.public_key()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make a small closed log of four records, with a checkpoint after three and one salt."""
    path = tmp_path / "audit"
    log = open_real(path)
    log.append({"type": "local", "mode": "local"})
    intent = log.open_intent({"bytes_up_bound": 5})
    log.close_intent(intent, {"status": "done"})
    log.checkpoint()
    log.append({"type": "denied"})
    log.commit(b"value")
    log.close()
    return path


def test_report_states_what_the_log_is(directory: Path) -> None:
    report = verify(directory, PUBLIC)
    assert (report.size, report.checkpoint_size, report.against_size) == (4, 3, None)
    assert (report.open_intents, report.cuts, report.salts) == (0, 0, 1)
    assert report.root == root_of([leaf_hash(record_bytes(dict(record))) for record in read_records(directory)])


@pytest.mark.parametrize("name", ["log", "state", "checkpoint", "salts/*"])
@pytest.mark.parametrize("mask", [0x01, 0x80, None], ids=["low bit", "high bit", "zero byte"])
def test_every_changed_byte_is_found(directory: Path, name: str, mask: int | None) -> None:
    path = next(iter(directory.glob(name)))
    data = path.read_bytes()
    missed = []
    for position, byte in enumerate(data):
        other = 0 if mask is None else byte ^ mask
        if other == byte:
            continue
        path.write_bytes(data[:position] + bytes([other]) + data[position + 1 :])
        try:
            verify(directory, PUBLIC)
            missed.append(position)
        except BrokenLogError:
            pass
    assert missed == []


@pytest.mark.parametrize("name", ["log", "state", "checkpoint"])
def test_every_truncation_is_found(directory: Path, name: str) -> None:
    data = (directory / name).read_bytes()
    for length in range(len(data)):
        (directory / name).write_bytes(data[:length])
        with pytest.raises(BrokenLogError):
            verify(directory, PUBLIC)
        with pytest.raises(BrokenLogError):
            open_real(directory)


def test_appended_bytes_are_found(directory: Path) -> None:
    for name in ("log", "state", "checkpoint"):
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data + b"x")
        with pytest.raises(BrokenLogError):
            verify(directory, PUBLIC)
        (directory / name).write_bytes(data)


def test_deleted_checkpoint_is_found_by_open_and_verify(directory: Path) -> None:
    (directory / "checkpoint").unlink()
    with pytest.raises(BrokenLogError):
        verify(directory, PUBLIC)
    with pytest.raises(BrokenLogError):
        open_real(directory)


def test_older_checkpoint_put_back_is_found(directory: Path) -> None:
    older = (directory / "checkpoint").read_bytes()
    log = open_real(directory)
    log.checkpoint()
    log.close()
    (directory / "checkpoint").write_bytes(older)
    with pytest.raises(BrokenLogError):
        verify(directory, PUBLIC)
    with pytest.raises(BrokenLogError):
        open_real(directory)


def test_checkpoint_signed_by_another_key_is_refused(directory: Path) -> None:
    with pytest.raises(BrokenLogError):
        verify(directory, Ed25519PrivateKey.generate().public_key())


def _rewrite(directory: Path, records: list[dict]) -> None:
    """Write these records as a well-formed log, as somebody would who knows the format but not the key."""
    stamped = [{**record, "seq": index} for index, record in enumerate(records)]
    (directory / "log").write_bytes(b"".join(framed(record_bytes(record)) for record in stamped))
    (directory / "state").unlink()


def test_rewritten_record_is_found_by_the_checkpoint(directory: Path) -> None:
    records = [dict(record) for record in read_records(directory)]
    _rewrite(directory, [{**records[0], "mode": "other"}, *records[1:]])
    with pytest.raises(BrokenLogError, match="first 3 records"):
        verify(directory, PUBLIC)
    with pytest.raises(BrokenLogError, match="first 3 records"):
        open_real(directory)


def test_removed_record_is_found_by_the_checkpoint(directory: Path) -> None:
    records = [dict(record) for record in read_records(directory)]
    _rewrite(directory, records[:2])
    with pytest.raises(BrokenLogError):
        verify(directory, PUBLIC)
    with pytest.raises(BrokenLogError):
        open_real(directory)


def test_rewritten_log_is_found_by_its_saved_state(directory: Path) -> None:
    state = (directory / "state").read_bytes()
    records = [dict(record) for record in read_records(directory)]
    _rewrite(directory, [*records[:3], {**records[3], "type": "local_"}])
    (directory / "state").write_bytes(state)
    with pytest.raises(BrokenLogError):
        verify(directory, PUBLIC)


def test_log_extends_an_older_checkpoint(directory: Path) -> None:
    older = (directory / "checkpoint").read_text()
    log = open_real(directory)
    log.append({"type": "local"})
    log.close()
    assert verify(directory, PUBLIC, against=older).against_size == 3


def test_log_and_checkpoint_rolled_back_together_are_found_against_a_kept_checkpoint(
    directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory, tmp_path / "older")
    log = open_real(directory)
    log.append({"type": "local"})
    kept = log.checkpoint().note
    log.close()
    verify(tmp_path / "older", PUBLIC)
    with pytest.raises(BrokenLogError, match="cut"):
        verify(tmp_path / "older", PUBLIC, against=kept)


def test_two_logs_forked_from_one_head_are_found_against_each_other(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "fork")
    notes = []
    for path, kind in ((directory, "local"), (tmp_path / "fork", "denied")):
        log = open_real(path)
        log.append({"type": kind})
        notes.append(log.checkpoint().note)
        log.close()
    for path, note in zip((directory, tmp_path / "fork"), reversed(notes), strict=True):
        with pytest.raises(BrokenLogError, match="first 5 records"):
            verify(path, PUBLIC, against=note)


def test_checkpoint_of_another_log_is_refused(directory: Path, tmp_path: Path) -> None:
    other = AuditLog.open(
        tmp_path / "other", origin="other", checkpoint_key=KEY, clock=lambda: 0.0, randomness=secrets.token_bytes
    )
    note = other.checkpoint().note
    other.close()
    with pytest.raises(BrokenLogError, match="origin"):
        verify(directory, PUBLIC, against=note)


def test_unfinished_record_is_reported_until_the_log_is_opened(directory: Path) -> None:
    with (directory / "log").open("ab") as file:
        file.write(framed(b"x" * 50)[:30])
    with pytest.raises(BrokenLogError, match="incomplete"):
        verify(directory, PUBLIC)
    open_real(directory).close()
    assert verify(directory, PUBLIC).cuts == 1


def test_changed_byte_behind_the_saved_state_is_found_at_open(directory: Path) -> None:
    state = (directory / "state").read_bytes()
    log = open_real(directory)
    log.append({"type": "local"})
    log.close()
    (directory / "state").write_bytes(state)
    data = (directory / "log").read_bytes()
    for position in range(len(data) - 40, len(data)):
        (directory / "log").write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(BrokenLogError):
            open_real(directory)


@pytest.mark.parametrize(
    "payload",
    [b"{}", b"[]", b'{"seq":4,"type":"a" }', b'{"seq":4,"seq":4}', b'{"seq":5}', b"\xff", b"[" * 5000, b'{"a":NaN}'],
    ids=lambda payload: ascii(payload[:24]),
)
def test_record_that_nobody_here_would_write_is_found(directory: Path, payload: bytes) -> None:
    with (directory / "log").open("ab") as file:
        file.write(framed(payload))
    with pytest.raises(BrokenLogError):
        verify(directory, PUBLIC)


@pytest.mark.parametrize(
    "record",
    [
        {"type": "outcome", "intent": "unknown", "status": "done"},
        {"type": "intent", "intent": "a"},
        {"type": "intent", "intent": "a", "owner": "b", "bytes_up_bound": "9"},
    ],
)
def test_intents_and_outcomes_that_do_not_fit_are_found(directory: Path, record: dict) -> None:
    with (directory / "log").open("ab") as file:
        file.write(framed(record_bytes({**record, "seq": 4})))
    with pytest.raises(BrokenLogError):
        verify(directory, PUBLIC)


def test_directory_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditLogError):
        verify(tmp_path, PUBLIC)


def test_root_is_the_same_by_the_frontier_and_by_all_leaves(directory: Path) -> None:
    leaves = [leaf_hash(record_bytes(dict(record))) for record in read_records(directory)]
    assert Frontier(leaves).root() == verify(directory, PUBLIC).root
