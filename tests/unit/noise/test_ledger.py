"""The ledger lives in the audit log: durable before a release, one budget a subject, across processes and crashes."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from splitinfer.egress.log import AuditLog
from splitinfer.errors import BudgetExceededError, CryptoParameterError, UnsupportedEventError
from splitinfer.noise.accounting import Adjacency, Limit, embedding_event, sigma_for
from splitinfer.noise.gaussian import epsilon_of
from splitinfer.noise.ledger import Charge, charge, spending
from splitinfer.noise.sensitivity import Distance
from tests.support.audit_process import open_real
from tests.support.audit_scenario import numbers, open_log
from tests.support.lossy_files import LossyDisk, LossyFiles, PowerLoss, Survivors

ROOT = Path(__file__).resolve().parents[3]
D = Distance(1.0, is_exact=True, rows=9)
ADJACENCY, DELTA = Adjacency(2), 1e-5
SIGMA = sigma_for(D, ADJACENCY, epsilon=1.0, delta=DELTA, tokens=64)
TEN_RELEASES = epsilon_of(math.sqrt(10) * math.sqrt(2) / SIGMA, DELTA)


def wanted(number: int, *, subject: str = "anna", epsilon: float = TEN_RELEASES) -> Charge:
    event = embedding_event(D, sigma=SIGMA, tokens=64, key_sha256=f"{number:064x}")
    return Charge(subject, event, Limit(ADJACENCY, epsilon, DELTA))


def spend(log: AuditLog, one: Charge) -> int:
    return log.append_if(lambda records: charge(records, one, fields={"policy_sha256": "cd" * 32}))


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return open_real(tmp_path / "audit")


def test_budget_lasts_for_exactly_as_many_releases_as_it_pays_for(log: AuditLog) -> None:
    for number in range(10):
        spend(log, wanted(number))
    with pytest.raises(BudgetExceededError):
        spend(log, wanted(10))
    assert log.size == 10, "a refused release is not charged"
    assert spending(log.records(), subject="anna", limit=wanted(0).limit).releases == 10


def test_budget_is_one_a_subject(log: AuditLog) -> None:
    for number in range(10):
        spend(log, wanted(number))
    spend(log, wanted(10, subject="bert"))
    assert spending(log.records(), subject="bert", limit=wanted(0).limit).releases == 1


def test_what_was_spent_survives_closing_the_log(tmp_path: Path) -> None:
    for number in range(10):
        log = open_real(tmp_path / "audit")
        spend(log, wanted(number))
        log.close()
    with pytest.raises(BudgetExceededError):
        spend(open_real(tmp_path / "audit"), wanted(10))


def test_numbers_in_the_log_read_back_bit_for_bit(log: AuditLog) -> None:
    spend(log, wanted(1))
    total = spending(log.records(), subject="anna", limit=wanted(0).limit)
    assert total.mu == wanted(1).event.mu(ADJACENCY)
    record = next(iter(log.records()))
    assert float(record["epsilon_spent"]) == total.epsilon
    assert not any(isinstance(value, float) for value in record.values())


def test_a_source_of_randomness_that_repeats_is_refused_whoever_the_subject_is(log: AuditLog) -> None:
    spend(log, wanted(1))
    for subject in ("anna", "bert"):
        with pytest.raises(CryptoParameterError, match="repeats"):
            spend(log, wanted(1, subject=subject))
    assert log.size == 1


@pytest.mark.parametrize(
    "change",
    [
        {"form": 2},
        {"mechanism": "laplace"},
        {"mechanism": None},
        {"mu_one_token": 3},
        {"mu_one_token": "much"},
        {"mu_one_token": "nan"},
        {"mu_whole_prompt": "-1.0"},
        {"mechanism": "empirical"},
        {"key_sha256": None},
    ],
)
def test_a_record_that_cannot_be_priced_refuses_every_later_release(log: AuditLog, change: dict[str, object]) -> None:
    record = charge([], wanted(1), fields={})
    log.append({**record, **change})
    with pytest.raises(UnsupportedEventError):
        spend(log, wanted(2, epsilon=math.inf))
    spend(log, wanted(3, subject="bert"))


def test_other_records_are_passed_over(log: AuditLog) -> None:
    log.append({"type": "local", "subject": "anna", "mechanism": "laplace"})
    log.open_intent({"bytes_up_bound": 5, "mu_one_token": "7"})
    spend(log, wanted(1))
    assert spending(log.records(), subject="anna", limit=wanted(0).limit).releases == 1


SPENDER = """
import sys
from tests.support.audit_process import open_real
from tests.unit.noise.test_ledger import spend, wanted
from splitinfer.errors import BudgetExceededError
from pathlib import Path
log, paid = open_real(Path(sys.argv[1])), 0
for number in range(8):
    try:
        spend(log, wanted(1000 * int(sys.argv[2]) + number))
        paid += 1
    except BudgetExceededError:
        pass
print(paid)
"""


def test_two_processes_cannot_spend_one_budget_twice(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(tmp_path / "audit"), str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    paid = [int(process.communicate(timeout=200)[0]) for process in processes]
    assert sum(paid) == 10
    assert spending(open_real(tmp_path / "audit").records(), subject="anna", limit=wanted(0).limit).releases == 10


@pytest.mark.parametrize("kind", ["none", "all", "torn", "zeros", "random 1"])
def test_a_loss_of_power_anywhere_never_forgets_a_release_that_was_allowed(kind: str) -> None:
    """Whatever was paid for before the power went is counted after it: never less is spent than was released."""
    point, is_lost = 0, True
    while is_lost:
        point += 1
        disk, released = LossyDisk(), 0
        disk.power_loss_at = point
        is_lost = False
        try:
            log = open_log(LossyFiles(disk), numbers())
            for number in range(4):
                spend(log, wanted(number))
                released += 1
        except PowerLoss:
            is_lost = True
        log = open_log(LossyFiles(disk.after_power_loss(Survivors(kind))), numbers(start=1 << 32))
        assert released <= spending(log.records(), subject="anna", limit=wanted(0).limit).releases <= released + 1
        with contextlib.suppress(CryptoParameterError):
            spend(log, wanted(released))
    assert point > 20


def test_record_is_canonical_and_holds_no_count_of_private_tokens() -> None:
    record = charge([], wanted(1), fields={"tokens_bucket": 64})
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record) == {
        "type",
        "form",
        "subject",
        "mechanism",
        "mu_one_token",
        "mu_whole_prompt",
        "key_sha256",
        "adjacency_tokens",
        "delta",
        "epsilon_spent",
        "epsilon_limit",
        "tokens_bucket",
    }
