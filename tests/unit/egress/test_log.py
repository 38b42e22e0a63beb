"""What the log promises to its caller, and what it refuses."""

from __future__ import annotations

import errno
import secrets
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.log import AuditLog
from splitinfer.egress.records import MAX_RECORD_BYTES
from splitinfer.egress.verification import verify
from splitinfer.errors import AuditLogError, BrokenLogError
from splitinfer.merkle import EMPTY_ROOT
from tests.support.audit_scenario import DIRECTORY, KEY, ORIGIN, numbers, open_log
from tests.support.lossy_files import LossyDisk, LossyFiles

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
BAD_DISK = OSError(errno.EIO, "Input/output error")


def _open(directory: Path, **changes: object) -> AuditLog:
    parts = {
        "origin": ORIGIN,
        "checkpoint_key": KEY,
        "clock": lambda: 1_800_000_000.5,
        "randomness": secrets.token_bytes,
    }
    return AuditLog.open(directory, **{**parts, **changes})


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    log = _open(tmp_path / "audit")
    yield log
    log.close()


def test_append_numbers_and_dates_the_record(log: AuditLog) -> None:
    assert log.append({"type": "denied", "code": "egress_denied"}) == 0
    assert log.append({"type": "local"}) == 1
    first = next(iter(log.records()))
    assert first == {"type": "denied", "code": "egress_denied", "seq": 0, "time": 1_800_000_000_500}
    assert [record["seq"] for record in log.records(since=1)] == [1]


def test_empty_log_has_the_empty_root(log: AuditLog) -> None:
    assert (log.size, log.root) == (0, EMPTY_ROOT)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"type": ""},
        {"type": 3},
        {"type": "intent"},
        {"type": "outcome"},
        {"type": "cut"},
        {"type": "local", "seq": 3},
        {"type": "local", "time": 3},
        {"type": "local", "epsilon": 0.5},
        {"type": "local", "value": b"bytes"},
        {"type": "local", "value": (1, 2)},
        {"type": "local", "value": [1, [2.0]]},
        {"type": "local", "value": {"a": {1, 2}}},
        {"type": "local", "value": {3: "a"}},
        {"type": "local", "value": 2**60},
        {"type": "local", "value": "\ud800"},
        {"type": "local", "value": "x" * MAX_RECORD_BYTES},
    ],
    ids=lambda record: ascii(record)[:40],
)
def test_record_that_the_log_cannot_hold_is_refused(log: AuditLog, record: dict) -> None:
    with pytest.raises(AuditLogError):
        log.append(record)
    assert log.size == 0


def test_record_nested_without_end_is_refused(log: AuditLog) -> None:
    endless: list = []
    endless.append(endless)
    with pytest.raises(AuditLogError):
        log.append({"type": "local", "value": endless})


def test_refusal_does_not_quote_the_record(log: AuditLog) -> None:
    with pytest.raises(AuditLogError) as caught:
        log.append({"type": "local", "value": "secret words \ud800"})
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_append_if_sees_the_records_so_far(log: AuditLog) -> None:
    log.append({"type": "spent", "amount": 3})
    index = log.append_if(lambda records: {"type": "spent", "amount": 1 + sum(r["amount"] for r in records)})
    assert index == 1
    assert list(log.records())[1]["amount"] == 4


def test_append_if_appends_nothing_where_build_raises(log: AuditLog) -> None:
    def refuse(records: object) -> dict:
        raise KeyError("over the limit")

    with pytest.raises(KeyError):
        log.append_if(refuse)
    assert log.size == 0
    assert log.append({"type": "local"}) == 0


def test_intent_and_its_outcome_carry_one_id(log: AuditLog) -> None:
    intent = log.open_intent({"mode": "sealed-decode", "bytes_up_bound": 100})
    assert log.close_intent(intent, {"status": "done", "bytes_up": 90}) == 1
    first, second = log.records()
    assert (first["type"], second["type"]) == ("intent", "outcome")
    assert first["intent"] == second["intent"] == intent
    assert first["owner"]


@pytest.mark.parametrize("bound", [None, -1, True, "9"])
def test_intent_without_a_bound_of_bytes_is_refused(log: AuditLog, bound: object) -> None:
    with pytest.raises(AuditLogError):
        log.open_intent({"bytes_up_bound": bound})
    assert log.size == 0


def test_outcome_without_status_is_refused(log: AuditLog) -> None:
    intent = log.open_intent({"bytes_up_bound": 1})
    with pytest.raises(AuditLogError):
        log.close_intent(intent, {})


def test_second_outcome_of_one_intent_is_refused(log: AuditLog) -> None:
    intent = log.open_intent({"bytes_up_bound": 1})
    log.close_intent(intent, {"status": "done"})
    for unknown in (intent, "never opened"):
        with pytest.raises(AuditLogError):
            log.close_intent(unknown, {"status": "done"})


def test_intent_of_another_owner_cannot_be_closed(log: AuditLog, tmp_path: Path) -> None:
    intent = log.open_intent({"bytes_up_bound": 1})
    other = _open(tmp_path / "audit")
    with pytest.raises(AuditLogError):
        other.close_intent(intent, {"status": "done"})
    other.close()
    log.close_intent(intent, {"status": "done"})


def test_intent_without_outcome_is_unknown_after_close(log: AuditLog, tmp_path: Path) -> None:
    intent = log.open_intent({"bytes_up_bound": 77})
    log.close()
    outcome = list(_open(tmp_path / "audit").records())[-1]
    assert (outcome["intent"], outcome["status"], outcome["bytes_up_at_most"]) == (intent, "unknown", 77)


def test_two_logs_on_one_directory_see_each_other(log: AuditLog, tmp_path: Path) -> None:
    other = _open(tmp_path / "audit")
    assert log.append({"type": "local"}) == 0
    assert other.append({"type": "local"}) == 1
    assert log.size == 2
    assert log.root == other.root
    other.close()


def test_threads_that_append_at_once_lose_nothing(log: AuditLog) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        indices = list(pool.map(lambda number: log.append({"type": "local", "number": number}), range(60)))
    assert sorted(indices) == list(range(60))
    by_index = {record["seq"]: record["number"] for record in log.records()}
    assert by_index == {index: number for number, index in enumerate(indices)}


def test_closed_log_refuses_every_call(log: AuditLog) -> None:
    log.close()
    log.close()
    for call in (lambda: log.append({"type": "local"}), log.checkpoint, lambda: log.size, log.records):
        with pytest.raises(AuditLogError):
            call()


def test_files_and_directories_are_private(log: AuditLog, tmp_path: Path) -> None:
    log.append({"type": "local"})
    log.checkpoint()
    log.commit(b"value")
    for path in [tmp_path / "audit", *(tmp_path / "audit").rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name


@pytest.mark.parametrize("origin", ["", "with space", "with+plus", "line\nbreak"])
def test_origin_that_no_note_can_carry_is_refused(tmp_path: Path, origin: str) -> None:
    with pytest.raises(AuditLogError):
        _open(tmp_path / "audit", origin=origin)


def test_log_of_another_origin_or_key_is_refused(log: AuditLog, tmp_path: Path) -> None:
    log.checkpoint()
    with pytest.raises(AuditLogError, match="origin"):
        _open(tmp_path / "audit", origin="another.example")
    with pytest.raises(BrokenLogError):
        _open(tmp_path / "audit", checkpoint_key=Ed25519PrivateKey.generate())


def test_missing_parent_directory_is_an_audit_log_error(tmp_path: Path) -> None:
    with pytest.raises(AuditLogError):
        _open(tmp_path / "missing" / "audit")


def test_commitment_is_linked_until_its_salt_is_erased(log: AuditLog) -> None:
    commitment, salt_id = log.commit(b"value")
    assert log.commit(b"value")[0] != commitment
    log.check_commitment(b"value", commitment=commitment, salt_id=salt_id)
    with pytest.raises(AuditLogError, match="another value"):
        log.check_commitment(b"other", commitment=commitment, salt_id=salt_id)
    log.erase(salt_id)
    assert list(log.records())[-1]["salt"] == salt_id
    with pytest.raises(AuditLogError, match="erased"):
        log.check_commitment(b"value", commitment=commitment, salt_id=salt_id)


def test_salt_id_that_is_a_path_is_refused(log: AuditLog) -> None:
    with pytest.raises(AuditLogError):
        log.erase("../log")


# --- a disk that fails ------------------------------------------------------------------------------------------------


def _simulated() -> tuple[LossyDisk, LossyFiles, AuditLog]:
    disk = LossyDisk()
    files = LossyFiles(disk)
    return disk, files, open_log(files, numbers())


def test_full_disk_refuses_the_intent_and_the_torn_rest_is_cut_and_logged() -> None:
    _, files, log = _simulated()
    log.append({"type": "local"})
    files.fail_at = {"write log": FULL}
    with pytest.raises(AuditLogError, match="No space left"):
        log.open_intent({"bytes_up_bound": 1})
    assert log.size == 1
    files.fail_at = {}
    assert log.append({"type": "local"}) == 2
    assert [record["type"] for record in log.records()] == ["local", "cut", "local"]


@pytest.mark.parametrize("operation", ["open", "link", "fsync"])
def test_directory_that_cannot_be_written_refuses_to_open(operation: str) -> None:
    files = LossyFiles(LossyDisk())
    files.fail_at = {operation: READ_ONLY}
    with pytest.raises(AuditLogError):
        open_log(files, numbers())


def test_failed_fsync_makes_the_log_read_only_and_is_never_tried_again() -> None:
    disk, files, log = _simulated()
    log.append({"type": "local", "name": "before"})
    files.fail_at = {"fsync": BAD_DISK}
    with pytest.raises(AuditLogError, match="fsync"):
        log.append({"type": "local", "name": "lost"})
    files.fail_at = {}
    operations = disk.operations
    for call in (lambda: log.append({"type": "local"}), log.checkpoint, lambda: log.open_intent({"bytes_up_bound": 1})):
        with pytest.raises(AuditLogError, match="fsync"):
            call()
    log.close()
    assert disk.operations == operations


def test_failed_fsync_of_a_small_file_makes_the_log_read_only_too() -> None:
    _, files, log = _simulated()
    log.append({"type": "local"})
    files.fail_at = {"fsync": BAD_DISK}
    with pytest.raises(AuditLogError):
        log.checkpoint()
    files.fail_at = {}
    with pytest.raises(AuditLogError, match="fsync"):
        log.append({"type": "local"})
    assert log.size == 1


def test_log_can_be_opened_again_after_a_failed_fsync() -> None:
    disk, files, log = _simulated()
    files.fail_at = {"fsync": BAD_DISK}
    with pytest.raises(AuditLogError):
        log.append({"type": "local"})
    files.kill()
    again = open_log(LossyFiles(disk), numbers(start=1 << 20))
    again.append({"type": "local"})
    again.close()
    verify(DIRECTORY, KEY.public_key(), files=LossyFiles(disk))


@pytest.mark.parametrize("records", [100, 1000])
def test_opening_reads_the_same_for_a_log_of_any_size(records: int) -> None:
    disk, _, log = _simulated()
    for _ in range(records):
        log.append({"type": "local"})
    log.checkpoint()
    log.close()
    disk.bytes_read.clear()
    again = open_log(LossyFiles(disk), numbers(start=1 << 20))
    assert again.size == records
    assert disk.bytes_read["log"] == 0
    assert disk.bytes_read.total() < 2000


def test_log_without_its_saved_state_is_read_from_the_start() -> None:
    disk, _, log = _simulated()
    log.append({"type": "local"})
    root = log.root
    log.close()
    LossyFiles(disk).unlink(DIRECTORY / "state")
    assert open_log(LossyFiles(disk), numbers(start=1 << 20)).root == root
