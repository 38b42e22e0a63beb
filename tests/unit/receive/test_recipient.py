from __future__ import annotations

import itertools
import os
import threading

import pytest

from splitinfer.errors import LimitExceededError, ReplayError
from splitinfer.receive import recipient
from splitinfer.receive.recipient import NONCE_SECONDS, NonceTable, TransferTable
from tests.support.keys import NOW, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_nonce_is_used_once(clock: Clock) -> None:
    table = NonceTable(clock=clock, randomness=os.urandom)
    nonce = table.issue()
    assert len(nonce) == 32
    table.use(nonce.hex())
    with pytest.raises(ReplayError):
        table.use(nonce.hex())


@pytest.mark.parametrize("nonce", ["", "0" * 64, "zz"])
def test_an_unknown_nonce_is_refused(clock: Clock, nonce: str) -> None:
    with pytest.raises(ReplayError):
        NonceTable(clock=clock, randomness=os.urandom).use(nonce)


def test_a_nonce_lasts_sixty_seconds(clock: Clock) -> None:
    table = NonceTable(clock=clock, randomness=os.urandom)
    first, second = table.issue(), table.issue()
    clock.seconds += NONCE_SECONDS
    table.use(first.hex())
    clock.seconds += 0.001
    with pytest.raises(ReplayError):
        table.use(second.hex())


def test_a_nonce_from_the_future_is_refused(clock: Clock) -> None:
    table = NonceTable(clock=clock, randomness=os.urandom)
    nonce = table.issue()
    clock.seconds -= 1
    with pytest.raises(ReplayError):
        table.use(nonce.hex())


def test_a_nonce_that_came_too_late_does_not_come_back_with_the_clock(clock: Clock) -> None:
    table = NonceTable(clock=clock, randomness=os.urandom)
    nonce = table.issue()
    clock.seconds += 100
    with pytest.raises(ReplayError):
        table.use(nonce.hex())
    clock.seconds -= 100
    with pytest.raises(ReplayError):
        table.use(nonce.hex())


def test_the_oldest_nonce_makes_room(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipient, "MAX_NONCES", 3)
    table = NonceTable(clock=clock, randomness=os.urandom)
    nonces = [table.issue() for _ in range(4)]
    with pytest.raises(ReplayError):
        table.use(nonces[0].hex())
    for nonce in nonces[1:]:
        table.use(nonce.hex())


def test_of_two_threads_one_spends_a_nonce(clock: Clock) -> None:
    table = NonceTable(clock=clock, randomness=os.urandom)
    outcomes: list[bool] = []

    def spend(nonce: str, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            table.use(nonce)
            outcomes.append(True)
        except ReplayError:
            outcomes.append(False)

    for _ in range(20):
        barrier, nonce = threading.Barrier(2), table.issue().hex()
        threads = [threading.Thread(target=spend, args=(nonce, barrier)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes.count(True) == outcomes.count(False) == 20


def test_a_transfer_is_executed_once(clock: Clock) -> None:
    table = TransferTable(clock=clock)
    table.begin(b"device", "id", expires_at=NOW + 300)
    with pytest.raises(ReplayError):
        table.begin(b"device", "id", expires_at=NOW + 600)


def test_ids_of_two_senders_do_not_collide(clock: Clock) -> None:
    table = TransferTable(clock=clock)
    table.begin(b"device", "id", expires_at=NOW + 300)
    table.begin(b"another", "id", expires_at=NOW + 300)


def test_a_full_table_forgets_only_what_expired(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipient, "MAX_TRANSFERS", 3)
    table = TransferTable(clock=clock)
    for name, seconds in (("a", 10), ("b", 20), ("c", 30)):
        table.begin(b"device", name, expires_at=NOW + seconds)
    with pytest.raises(LimitExceededError):
        table.begin(b"device", "d", expires_at=NOW + 40)
    clock.seconds += 15
    table.begin(b"device", "d", expires_at=NOW + 40)
    for name in ("b", "c", "d"):
        with pytest.raises(ReplayError):
            table.begin(b"device", name, expires_at=NOW + 40)


def test_a_sender_that_fills_its_share_keeps_no_other_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipient, "MAX_SENDER_TRANSFERS", 3)
    table = TransferTable(clock=clock)
    for number in range(3):
        table.begin(b"device", str(number), expires_at=NOW + 10)
    with pytest.raises(LimitExceededError):
        table.begin(b"device", "3", expires_at=NOW + 10)
    table.begin(b"another", "0", expires_at=NOW + 10)
    clock.seconds += 10
    table.begin(b"device", "3", expires_at=NOW + 20)


def test_nothing_is_forgotten_before_it_expires(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipient, "MAX_TRANSFERS", 8)
    table = TransferTable(clock=clock)
    begun: dict[str, int] = {}
    for number in itertools.chain(range(40)):
        clock.seconds = NOW + number
        name = str(number)
        table.begin(b"device", name, expires_at=NOW + number + 5)
        begun[name] = NOW + number + 5
        for seen, until in begun.items():
            if until > clock.seconds:
                with pytest.raises(ReplayError):
                    table.begin(b"device", seen, expires_at=until)
