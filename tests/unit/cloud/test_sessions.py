"""The cloud's session cache: one device, one session, bounded in number, bytes and time, wiped on every way out."""

from __future__ import annotations

from typing import Any

import pytest

from splitinfer.cache.memory import memory_bytes
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud.sessions import SessionLimits, Sessions, Turn
from splitinfer.errors import ReplayError, SessionLostError
from splitinfer.handoff import CacheLayout
from splitinfer.sealing.manifest import ModelWire, SessionWire
from tests.support.codec_slabs import normal
from tests.support.device_cloud import MODEL, request_manifest
from tests.support.layouts import full, sliding
from tests.support.turns import is_wiped

DEVICE, OTHER = b"d" * 32, b"o" * 32
LAYOUT = CacheLayout((full(),))
ROOT, NEXT_ROOT = "a" * 64, "b" * 64


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def sessions_of(clock: Clock, **limits: Any) -> Sessions:
    return Sessions(SessionLimits(**limits), model=ModelWire.of(MODEL), clock=clock)


def begin(sessions: Sessions, sender: bytes = DEVICE, *, session_id: str = "6" * 32, **place: Any) -> Turn:
    fields: dict[str, Any] = {"turn": 0, "parent_root": "", "base_tokens": 0, "keep": True, **place}
    return sessions.begin(sender, request_manifest(session=SessionWire(session_id=session_id, **fields)))


def kept(sessions: Sessions, sender: bytes = DEVICE, *, tokens: int = 20, **place: Any) -> CacheSnapshot:
    """Keep a first turn's cache and return it."""
    snapshot = normal(LAYOUT, tokens)
    assert begin(sessions, sender, **place).keep(snapshot, root=ROOT)
    return snapshot


def second(sessions: Sessions, sender: bytes = DEVICE, **place: Any) -> Turn:
    return begin(sessions, sender, **{"turn": 1, "parent_root": ROOT, "base_tokens": 20, **place})


def test_the_next_turn_gets_the_cache_that_was_kept_and_has_it_to_itself(clock: Clock) -> None:
    sessions = sessions_of(clock)
    snapshot = kept(sessions)
    turn = second(sessions)
    assert turn.base is snapshot
    assert len(sessions) == 0
    with pytest.raises(SessionLostError):
        second(sessions)
    turn.drop_base()
    assert is_wiped(snapshot)


def test_a_lower_base_gets_the_first_tokens(clock: Clock) -> None:
    sessions = sessions_of(clock)
    kept(sessions)
    base = second(sessions, base_tokens=7).base
    assert base is not None
    assert base.true_tokens == 7


@pytest.mark.parametrize(
    "wrong",
    [{"turn": 2}, {"turn": 3}, {"parent_root": NEXT_ROOT}, {"base_tokens": 21}],
    ids=["skipped", "far", "parent", "base"],
)
def test_a_turn_that_does_not_go_on_is_refused_and_what_was_held_is_wiped(clock: Clock, wrong: dict[str, Any]) -> None:
    sessions = sessions_of(clock)
    snapshot = kept(sessions)
    with pytest.raises(ReplayError):
        second(sessions, **wrong)
    assert len(sessions) == 0
    assert is_wiped(snapshot)


def test_a_base_to_which_a_window_cannot_go_back_is_refused(clock: Clock) -> None:
    sessions = sessions_of(clock)
    snapshot = normal(CacheLayout((sliding(9),)), 20)
    begin(sessions).keep(snapshot, root=ROOT)
    with pytest.raises(ReplayError):
        second(sessions, base_tokens=10)
    assert is_wiped(snapshot)


@pytest.mark.parametrize("other", [{"sender": OTHER}, {"session_id": "7" * 32}])
def test_what_is_kept_is_found_by_its_device_and_session_alone(clock: Clock, other: dict[str, Any]) -> None:
    sessions = sessions_of(clock)
    snapshot = kept(sessions)
    with pytest.raises(SessionLostError):
        second(sessions, **other)
    assert second(sessions).base is snapshot


def test_a_first_turn_forgets_what_was_held_before(clock: Clock) -> None:
    sessions = sessions_of(clock)
    snapshot = kept(sessions)
    assert begin(sessions).base is None
    assert is_wiped(snapshot)


def test_public_text_has_no_session(clock: Clock) -> None:
    sessions = sessions_of(clock)
    snapshot = kept(sessions)
    place = SessionWire(session_id="6" * 32, turn=0, parent_root="", base_tokens=0, keep=False)
    turn = sessions.begin(DEVICE, request_manifest(session=place, public=True))
    assert not turn.keep(normal(LAYOUT, 3), root=ROOT)
    assert not is_wiped(snapshot)


def test_nothing_is_kept_without_leave(clock: Clock) -> None:
    sessions = sessions_of(clock)
    assert not begin(sessions, keep=False).keep(normal(LAYOUT, 3), root=ROOT)
    assert (len(sessions), sessions.size_bytes) == (0, 0)


def test_an_idle_session_expires_and_is_wiped(clock: Clock) -> None:
    sessions = sessions_of(clock, idle_seconds=600.0)
    old = kept(sessions)
    clock.now += 599
    young = kept(sessions, session_id="7" * 32)
    clock.now += 1
    sessions.drop_expired()
    assert (is_wiped(old), is_wiped(young)) == (True, False)
    with pytest.raises(SessionLostError):
        second(sessions)


def test_an_expired_session_is_not_continued_even_before_anybody_swept(clock: Clock) -> None:
    sessions = sessions_of(clock, idle_seconds=600.0)
    snapshot = kept(sessions)
    clock.now += 600
    with pytest.raises(SessionLostError):
        second(sessions)
    assert is_wiped(snapshot)


def test_the_least_recently_used_session_makes_room(clock: Clock) -> None:
    sessions = sessions_of(clock, max_sessions=2)
    first = kept(sessions)
    others = [kept(sessions, session_id=digit * 32) for digit in "78"]
    assert len(sessions) == 2
    assert [is_wiped(snapshot) for snapshot in (first, *others)] == [True, False, False]


def test_sessions_stay_within_their_bytes(clock: Clock) -> None:
    size = memory_bytes(normal(LAYOUT, 20))
    sessions = sessions_of(clock, max_bytes=2 * size)
    snapshots = [kept(sessions, session_id=digit * 32) for digit in "678"]
    assert sessions.size_bytes == 2 * size
    assert [is_wiped(snapshot) for snapshot in snapshots] == [True, False, False]


@pytest.mark.parametrize("is_counted", [True, False])
def test_a_device_that_opens_many_sessions_pushes_out_its_own(clock: Clock, is_counted: bool) -> None:
    size = memory_bytes(normal(LAYOUT, 20))
    sessions = sessions_of(clock, **({"max_sessions": 3} if is_counted else {"max_bytes": 3 * size}))
    victim = kept(sessions, OTHER)
    for number in range(8):
        kept(sessions, session_id=f"{number:032x}")
    assert not is_wiped(victim)
    assert second(sessions, OTHER).base is victim


@pytest.mark.parametrize("limits", [{"max_bytes": 10}, {"max_sessions": 0}])
def test_what_has_no_room_stays_the_callers(clock: Clock, limits: dict[str, int]) -> None:
    sessions = sessions_of(clock, **limits)
    snapshot = normal(LAYOUT, 20)
    assert not begin(sessions).keep(snapshot, root=ROOT)
    assert not is_wiped(snapshot)


def test_a_session_is_forgotten_by_its_own_device_alone(clock: Clock) -> None:
    sessions = sessions_of(clock)
    snapshot = kept(sessions)
    sessions.forget(OTHER, "6" * 32)
    assert not is_wiped(snapshot)
    sessions.forget(DEVICE, "6" * 32)
    assert is_wiped(snapshot)
    sessions.forget(DEVICE, "6" * 32)


def test_a_closed_table_is_wiped_and_keeps_nothing_more(clock: Clock) -> None:
    sessions = sessions_of(clock)
    snapshot, turn = kept(sessions), begin(sessions, session_id="7" * 32)
    sessions.close()
    assert is_wiped(snapshot)
    assert not turn.keep(normal(LAYOUT, 3), root=ROOT)
