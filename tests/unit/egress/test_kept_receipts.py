"""Receipts lie beside the log; the log commits to them."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.gate import Gate, Intent, Outcome
from splitinfer.egress.log import AuditLog
from splitinfer.egress.receipts import check_kept_receipts
from splitinfer.egress.verification import read_records
from splitinfer.errors import BrokenLogError

RECEIPT = b'{"body":{"events":[{"count":152,"event":"prefilled"}]}}'
INTENT = Intent("sealed-prefill", "0" * 64, "1" * 64, "sealed", "raw", 192, 100, ())


@pytest.fixture
def logged(tmp_path: Path) -> tuple[Path, Path]:
    receipts = tmp_path / "receipts"
    receipts.mkdir()
    log = AuditLog.open(
        tmp_path / "audit",
        origin="test/log",
        checkpoint_key=Ed25519PrivateKey.generate(),
        clock=time.time,
        randomness=secrets.token_bytes,
    )
    gate = Gate(log, keep_receipt=lambda intent, data: (receipts / f"{intent}.json").write_bytes(data) and None)
    gate.open(INTENT).close(Outcome("completed", receipt=RECEIPT))
    log.close()
    return tmp_path / "audit", receipts


def check(paths: tuple[Path, Path]) -> int:
    return check_kept_receipts(*paths, read_records(paths[0]))


def test_a_kept_receipt_is_the_one_that_was_logged(logged: tuple[Path, Path]) -> None:
    assert check(logged) == 1


def test_a_changed_receipt_is_found(logged: tuple[Path, Path]) -> None:
    (path,) = logged[1].iterdir()
    path.write_bytes(RECEIPT.replace(b"152", b"153"))
    with pytest.raises(BrokenLogError, match="not the one that was logged"):
        check(logged)


def test_the_log_itself_holds_no_exact_token_count(logged: tuple[Path, Path]) -> None:
    assert not any("events" in str(record) or "receipt" in record for record in read_records(logged[0]))


def test_an_erased_salt_unlinks_the_receipt_and_the_rest_still_verifies(logged: tuple[Path, Path]) -> None:
    for record in read_records(logged[0]):
        if "receipt_salt" in record:
            (logged[0] / "salts" / str(record["receipt_salt"])).unlink()
    assert check(logged) == 0
