from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.attestation.appraise import appraise
from splitinfer.errors import StaleKeysetError, StateError
from splitinfer.home import Home
from splitinfer.home.seen import SeenFile
from tests.support.keys import NONCE, Deployment

REPLICA, IDENTITY = "1" * 32, "2" * 64


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


def remember(seen: SeenFile, *, generation: int = 1, epoch: int = 1, replica_id: str = REPLICA) -> None:
    seen.remember(identity_sha256=IDENTITY, generation=generation, replica_id=replica_id, epoch=epoch)


def test_nothing_was_seen_at_first(home: Home) -> None:
    seen = SeenFile(home)
    assert (seen.highest_epoch(REPLICA), seen.highest_generation(IDENTITY)) == (0, 0)


@given(events=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2**53), st.integers(0, 100)), max_size=8))
@settings(deadline=None, max_examples=25)
def test_a_number_never_goes_down(events: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    home = Home(tmp_path_factory.mktemp("home") / "state")
    for index, (name, epoch, generation) in enumerate(events):
        remember(SeenFile(home), replica_id=name, epoch=epoch, generation=generation)
        past = events[: index + 1]
        for replica in "ab":
            highest = max((e for n, e, _ in past if n == replica), default=0)
            assert SeenFile(home).highest_epoch(replica) == highest
        assert SeenFile(home).highest_generation(IDENTITY) == max(g for _, _, g in past)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '"text"',
        "0",
        '{"epochs": {}}',
        '{"epochs": [], "generations": {}}',
        '{"epochs": {"a": null}, "generations": {}}',
        '{"epochs": {"a": "many"}, "generations": {}}',
        '{"epochs": {"a": Infinity}, "generations": {}}',
        '{"epochs": {"a": NaN}, "generations": {}}',
        '{"epochs": {"a": 1.5}, "generations": {}}',
        '{"epochs": {"a": [1]}, "generations": {}}',
        "[" * 100_000,
        "\x00" * 100,
    ],
    ids=lambda text: text[:30],
)
def test_a_damaged_file_refuses_rather_than_forgets(home: Home, text: str) -> None:
    path = home.path / "seen.json"
    path.write_text(text)
    seen = SeenFile(home)
    with pytest.raises(StateError):
        seen.highest_epoch(REPLICA)
    with pytest.raises(StateError):
        seen.highest_generation(IDENTITY)
    with pytest.raises(StateError):
        remember(seen)
    assert path.read_text() == text


def test_bytes_that_are_no_text_refuse(home: Home) -> None:
    (home.path / "seen.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StateError):
        SeenFile(home).highest_epoch(REPLICA)


def test_a_file_that_cannot_be_read_refuses(home: Home) -> None:
    (home.path / "seen.json").mkdir()
    with pytest.raises(StateError):
        SeenFile(home).highest_epoch(REPLICA)


def test_a_lock_that_cannot_be_had_refuses_by_a_typed_error(home: Home) -> None:
    (home.path / "seen.lock").mkdir()
    with pytest.raises(StateError):
        remember(SeenFile(home))


def test_what_was_known_before_is_not_written_again(home: Home) -> None:
    remember(SeenFile(home), epoch=5, generation=2)
    path = home.path / "seen.json"
    before = path.stat().st_ino
    remember(SeenFile(home), epoch=4, generation=1)
    assert path.stat().st_ino == before
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_device_that_starts_again_still_refuses_an_older_keyset(home: Home) -> None:
    deployment = Deployment()
    replica = deployment.replica(keyset_seconds=7200)
    old = replica.reply(NONCE)
    deployment.clock.seconds += 3601
    deployment.appraised(replica, seen=SeenFile(home))
    with pytest.raises(StaleKeysetError):
        appraise(old, pinned_sha256=deployment.pin, now=int(deployment.clock()), seen=SeenFile(Home(home.path)))


def test_a_number_is_raised_under_the_lock_only(home: Home) -> None:
    remember(SeenFile(home), epoch=1)
    waiting = threading.Thread(target=remember, args=(SeenFile(home),), kwargs={"epoch": 2})
    with (home.path / "seen.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting.start()
        waiting.join(0.2)
        assert SeenFile(home).highest_epoch(REPLICA) == 1
    waiting.join(30)
    assert SeenFile(home).highest_epoch(REPLICA) == 2


WRITER = """
import sys
from pathlib import Path
from splitinfer.home import Home
from splitinfer.home.seen import SeenFile
path, name = sys.argv[1:]
for epoch in range(1, 31):
    seen = SeenFile(Home(Path(path)))
    seen.remember(identity_sha256="i", generation=epoch, replica_id=name, epoch=epoch)
    seen.remember(identity_sha256="i", generation=1, replica_id="both", epoch=epoch)
"""


def test_two_processes_lose_nothing_of_each_other(home: Home) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(home.path), name]) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    written = json.loads((home.path / "seen.json").read_text())
    assert written == {"epochs": {"a": 30, "b": 30, "both": 30}, "generations": {"i": 30}}
