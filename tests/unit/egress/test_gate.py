from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.egress.gate import CallRecord, Gate, Intent, Outcome, Permit
from splitinfer.egress.log import AuditLog
from splitinfer.errors import AuditLogError, EgressDeniedError, EmptyPromptError, StateError
from splitinfer.handoff import ReleasedTransfer, Route, VerifiedRecipient
from tests.support.keys import Deployment

DEPLOYMENT = Deployment()
RECIPIENT = DEPLOYMENT.appraised(DEPLOYMENT.replica(replica_id="a" * 32))
STRANGER = Deployment()
INTENT = Intent(
    mode="sealed-prefill",
    policy_sha256="1" * 64,
    recipient_identity_sha256=DEPLOYMENT.pin,
    protection="sealed",
    codec="raw",
    tokens_bucket=64,
    bytes_up_bound=1000,
    fields_in_clear=("version", "suite"),
)


def nothing_kept(intent_id: str, receipt: bytes) -> None:
    raise AssertionError("no receipt was expected")


def an_audit_log(directory: Path) -> AuditLog:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    return AuditLog.open(
        directory, origin="a/log", checkpoint_key=key, clock=lambda: 1_800_000_000.0, randomness=os.urandom
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    opened = an_audit_log(tmp_path / "audit")
    yield opened
    opened.close()


@pytest.fixture
def permit(log: AuditLog) -> Permit:
    return Gate(log, keep_receipt=nothing_kept).open(INTENT)


class Pulled:
    """A body that tells how much of it was taken."""

    def __init__(self, *pieces: memoryview | bytes) -> None:
        self.pieces, self.taken = pieces, 0

    def __iter__(self) -> Iterator[memoryview | bytes]:
        for piece in self.pieces:
            self.taken += 1
            yield piece


def send(
    permit: Permit,
    *pieces: memoryview | bytes,
    body_bytes: int | None = None,
    recipient: VerifiedRecipient | None = RECIPIENT,
) -> tuple[ReleasedTransfer, CallRecord]:
    size = sum(memoryview(piece).nbytes for piece in pieces) if body_bytes is None else body_bytes
    return permit.release(Route.PREFILL, body=pieces, body_bytes=size, recipient=recipient, transfer_id="b" * 32)


def outcomes(log: AuditLog) -> list[dict[str, object]]:
    return [dict(record) for record in log.records() if record["type"] == "outcome"]


# --- before anything leaves ------------------------------------------------------------------------------------


def test_an_intent_is_in_the_log_before_a_byte_is_released(log: AuditLog) -> None:
    permit = Gate(log, keep_receipt=nothing_kept).open(INTENT)
    (record,) = log.records()
    assert record["type"] == "intent"
    assert record["intent"] == permit.intent_id
    assert {name: record[name] for name in INTENT.record()} == INTENT.record()
    assert permit.calls == []


def failing(name: str) -> Callable[..., object]:
    def fail(*arguments: object, **keywords: object) -> object:
        raise AuditLogError(f"the audit log cannot be used (No space left on device), found in {name}")

    return fail


@pytest.mark.parametrize("step", ["checkpoint", "commit", "open_intent"])
def test_without_a_durable_intent_there_is_no_permit(log: AuditLog, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(log, step, failing(step))
    with pytest.raises(AuditLogError, match=step):
        Gate(log, keep_receipt=nothing_kept).open(INTENT)
    assert list(log.records()) == []


def test_a_closed_log_gives_no_permit(log: AuditLog) -> None:
    log.close()
    with pytest.raises(AuditLogError):
        Gate(log, keep_receipt=nothing_kept).open(INTENT)


def test_release_takes_nothing_from_the_body(permit: Permit) -> None:
    body = Pulled(b"x" * 10)
    permit.release(Route.PREFILL, body=body, body_bytes=10, recipient=RECIPIENT)
    assert (body.taken, permit.bytes_sent) == (0, 0)


# --- to whom, and how much -------------------------------------------------------------------------------------


def test_a_body_to_nobody_verified_is_denied(permit: Permit) -> None:
    with pytest.raises(EgressDeniedError):
        send(permit, b"x", recipient=None)


def test_a_body_announced_as_empty_gives_nothing_to_nobody(permit: Permit) -> None:
    released, _ = permit.release(Route.KEYSET, body=[b"secret"], body_bytes=0)
    with pytest.raises(EgressDeniedError):
        next(released.body)
    assert permit.bytes_sent == 0


def test_another_recipient_than_the_announced_one_is_denied(permit: Permit) -> None:
    other = STRANGER.appraised(STRANGER.replica())
    with pytest.raises(EgressDeniedError):
        send(permit, b"x", recipient=other)
    with pytest.raises(EgressDeniedError):
        permit.release(Route.KEYSET, recipient=other)
    assert permit.calls == []


def test_another_replica_of_the_same_identity_is_the_announced_recipient(permit: Permit) -> None:
    other = DEPLOYMENT.appraised(DEPLOYMENT.replica(replica_id="e" * 32))
    released, call = send(permit, b"x", recipient=other)
    assert released.replica_id == call.replica_id == "e" * 32


def test_exactly_the_bound_may_leave(permit: Permit) -> None:
    released, _ = send(permit, bytes(600), bytes(400))
    assert sum(len(piece) for piece in released.body) == 1000
    with pytest.raises(EgressDeniedError):
        send(permit, b"x")


def test_a_body_above_the_bound_is_denied_before_its_first_byte(permit: Permit) -> None:
    with pytest.raises(EgressDeniedError):
        send(permit, bytes(1001))
    assert permit.calls == []


@given(sizes=st.lists(st.integers(0, 700), min_size=2, max_size=5))
@settings(deadline=None, max_examples=20)
def test_no_more_than_the_bound_leaves_however_calls_are_interleaved(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bodies that were released and not pulled yet count too."""
    log = an_audit_log(tmp_path_factory.mktemp("log") / "audit")
    permit = Gate(log, keep_receipt=nothing_kept).open(INTENT)
    pulled = 0
    try:
        waiting = [send(permit, bytes(size))[0] for size in sizes]
        for released in waiting:
            pulled += sum(len(piece) for piece in released.body)
    except EgressDeniedError:
        assert sum(sizes) > INTENT.bytes_up_bound
    assert pulled <= INTENT.bytes_up_bound
    log.close()


@pytest.mark.parametrize("body_bytes", [-1, -1000])
def test_a_negative_size_is_denied(permit: Permit, body_bytes: int) -> None:
    def all_of_it() -> list[memoryview | bytes]:
        return list(send(permit, bytes(1), body_bytes=body_bytes)[0].body)

    with pytest.raises(EgressDeniedError):
        all_of_it()
    assert permit.bytes_sent == 0


# --- as it is pulled -------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 100), max_size=8), pulls=st.integers(0, 8))
@settings(deadline=None, max_examples=15)
def test_counts_are_of_what_was_pulled(sizes: list[int], pulls: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = an_audit_log(tmp_path_factory.mktemp("log") / "audit")
    permit = Gate(log, keep_receipt=nothing_kept).open(INTENT)
    released, call = send(permit, *(bytes(size) for size in sizes))
    for _ in range(min(pulls, len(sizes))):
        next(released.body)
    assert call.bytes_sent == permit.bytes_sent == sum(sizes[:pulls])
    permit.close(Outcome("aborted"))
    assert outcomes(log)[0]["bytes_sent"] == sum(sizes[:pulls])
    log.close()


def test_a_body_longer_than_released_stops_before_the_surplus(permit: Permit) -> None:
    released, call = send(permit, bytes(10), bytes(10), body_bytes=15)
    assert len(next(released.body)) == 10
    with pytest.raises(EgressDeniedError):
        next(released.body)
    assert call.bytes_sent == 10


def test_a_body_shorter_than_released_is_refused_at_its_end(permit: Permit) -> None:
    """`ReleasedTransfer.body` yields exactly `body_bytes`, so that no door announces a length that never comes."""
    released, call = send(permit, bytes(10), body_bytes=15)
    assert len(next(released.body)) == 10
    with pytest.raises(EgressDeniedError):
        next(released.body)
    assert call.bytes_sent == 10


def test_pieces_of_wider_items_are_counted_in_bytes(permit: Permit) -> None:
    wide = memoryview(bytearray(64)).cast("Q")
    released, call = send(permit, wide)
    list(released.body)
    assert call.bytes_sent == 64
    call.received(wide)
    assert call.bytes_received == 64


def test_what_comes_back_is_counted(permit: Permit) -> None:
    released, call = send(permit, b"")
    released.meter.received(b"12345")
    released.meter.received(memoryview(b"678"))
    assert call.bytes_received == permit.bytes_received == 8


# --- closing ---------------------------------------------------------------------------------------------------


def test_a_closed_permit_releases_nothing(permit: Permit) -> None:
    permit.close(Outcome("completed"))
    with pytest.raises(EgressDeniedError):
        send(permit, b"x")
    with pytest.raises(EgressDeniedError):
        permit.release(Route.KEYSET)


def test_closing_stops_a_body_in_the_middle(permit: Permit) -> None:
    released, _ = send(permit, b"first", b"second")
    next(released.body)
    permit.close(Outcome("aborted"))
    with pytest.raises(EgressDeniedError):
        next(released.body)
    assert permit.bytes_sent == len(b"first")


def test_closing_twice_logs_one_outcome(permit: Permit, log: AuditLog) -> None:
    permit.close(Outcome("completed"))
    permit.close(Outcome("failed", code="transport"))
    (outcome,) = outcomes(log)
    assert outcome["status"] == "completed"
    assert "code" not in outcome


def test_an_outcome_states_every_call(permit: Permit, log: AuditLog) -> None:
    permit.release(Route.KEYSET)[1].received(b"keyset")
    released, call = send(permit, bytes(100))
    list(released.body)
    call.sent_root = "f" * 64
    permit.close(Outcome("failed", code="transport"))
    (outcome,) = outcomes(log)
    assert outcome["intent"] == permit.intent_id
    assert (outcome["status"], outcome["code"]) == ("failed", "transport")
    assert (outcome["bytes_sent"], outcome["bytes_received"]) == (100, 6)
    assert outcome["calls"] == [
        {"route": "GET /v1/keyset", "bytes_sent": 0, "bytes_received": 6},
        {
            "route": "POST /v1/prefill",
            "transfer_id": "b" * 32,
            "replica_id": "a" * 32,
            "bytes_sent": 100,
            "bytes_received": 0,
            "sent_root": "f" * 64,
        },
    ]


def test_no_text_and_no_bytes_of_a_body_are_logged(permit: Permit, log: AuditLog) -> None:
    released, _ = send(permit, b"canary of a prompt")
    list(released.body)
    permit.close(Outcome("completed"))
    assert "canary" not in json.dumps([dict(record) for record in log.records()])


def test_a_receipt_is_kept_beside_the_log_and_committed_to(tmp_path: Path, log: AuditLog) -> None:
    kept: dict[str, bytes] = {}
    permit = Gate(log, keep_receipt=kept.__setitem__).open(INTENT)
    receipt = b'{"events":[{"count":12345,"event":"prefilled"}]}'
    permit.close(Outcome("completed", receipt=receipt))
    assert kept == {permit.intent_id: receipt}
    (outcome,) = outcomes(log)
    assert "12345" not in json.dumps(outcome)
    log.check_commitment(receipt, commitment=str(outcome["receipt_commitment"]), salt_id=str(outcome["receipt_salt"]))
    with pytest.raises(AuditLogError):
        log.check_commitment(
            receipt + b" ", commitment=str(outcome["receipt_commitment"]), salt_id=str(outcome["receipt_salt"])
        )


def test_an_outcome_is_logged_even_where_its_receipt_cannot_be_kept(log: AuditLog) -> None:
    def full(intent_id: str, receipt: bytes) -> None:
        raise StateError("the file cannot be written: No space left on device")

    permit = Gate(log, keep_receipt=full).open(INTENT)
    released, _ = send(permit, bytes(100))
    list(released.body)
    with pytest.raises(StateError):
        permit.close(Outcome("completed", receipt=b"{}"))
    assert [outcome["bytes_sent"] for outcome in outcomes(log)] == [100]


def test_an_intent_that_was_never_closed_is_unknown_after_the_log_was(tmp_path: Path) -> None:
    log = an_audit_log(tmp_path / "audit")
    Gate(log, keep_receipt=nothing_kept).open(INTENT)
    log.close()
    again = an_audit_log(tmp_path / "audit")
    (outcome,) = outcomes(again)
    assert (outcome["status"], outcome["bytes_up_at_most"]) == ("unknown", INTENT.bytes_up_bound)
    again.close()


# --- what does not leave ---------------------------------------------------------------------------------------


def test_denied_and_local_requests_are_logged_without_their_message(log: AuditLog) -> None:
    gate = Gate(log, keep_receipt=nothing_kept)
    gate.deny(EmptyPromptError("canary"), mode="sealed-decode", policy_sha256="1" * 64)
    gate.local(mode="local", policy_sha256="1" * 64, tokens_bucket=128)
    denied, local = log.records()
    assert (denied["type"], denied["code"]) == ("denied", "prompt_empty")
    assert (local["type"], local["tokens_bucket"], local["bytes_sent"]) == ("local", 128, 0)
    assert "canary" not in json.dumps(dict(denied))
    assert gate.size == 2
    assert gate.root == log.root


def test_an_intent_is_bound_to_the_head_of_the_log_it_was_made_on(log: AuditLog) -> None:
    permit = Gate(log, keep_receipt=nothing_kept).open(INTENT)
    (record,) = log.records()
    assert record["checkpoint_commitment"] == permit.checkpoint_commitment


def test_a_permit_shows_nothing_of_its_bodies(permit: Permit) -> None:
    released, _ = send(permit, b"canary")
    assert "canary" not in repr(released)
    assert "canary" not in repr(permit)


# --- reuse ------------------------------------------------------------------------------------------------------------

REUSE = {
    "mode": "public-prefix",
    "policy_sha256": "1" * 64,
    "recipient": "2" * 64,
    "tokens_bucket": 64,
    "transfer_id": "3" * 32,
    "received_root": "4" * 64,
}


def test_reuse_is_logged_with_the_transfer_that_it_came_from_and_no_bytes(log: AuditLog) -> None:
    gate = Gate(log, keep_receipt=nothing_kept)
    gate.reuse(**REUSE)
    gate.reuse(**REUSE, code="verification")
    first, second = log.records()
    stamped = {"seq", "time"}
    expected = {**REUSE, "type": "reuse", "protection": "none", "bytes_sent": 0}
    assert {name: value for name, value in first.items() if name not in stamped} == expected
    assert {name: value for name, value in second.items() if name not in stamped} == {
        **expected,
        "code": "verification",
    }
