"""Keys through the command line: show, allow, trust, create an identity, certify a replica elsewhere."""

from __future__ import annotations

import json
import os
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinfer.handoff import Route
from splitinfer.home import Home
from splitinfer.home.cloud_state import allowed_devices, make_replica
from splitinfer.home.remotes import load_remote
from splitinfer.model.engine import Engine
from tests.integration.conftest import CommandLine
from tests.support import bad_servers
from tests.support.bad_servers import bad_server
from tests.support.http_exchange import Served, served
from tests.support.memory_clouds import CountingCloud, Paired

ASK = ("--private-text", "Who?", "--max-new-tokens", "2")


@pytest.fixture
def door(pair: Paired, tiny_on_cloud: Engine) -> Iterator[Served]:
    with served(pair.service(tiny_on_cloud)) as opened:
        yield opened


@pytest.fixture
def stranger(tmp_path: Path) -> Home:
    """The state folder of a device that knows no cloud yet."""
    return Home(tmp_path / "stranger")


class Terminal:
    """A pseudo-terminal as this process's stdin, with something typed."""

    def __init__(self, typed: str) -> None:
        self._typed = typed

    def __enter__(self) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        os.write(self._master, self._typed.encode())
        self._before, sys.stdin = sys.stdin, os.fdopen(slave, "r")

    def __exit__(self, *_: object) -> None:
        sys.stdin.close()
        os.close(self._master)
        sys.stdin = self._before


def test_show_prints_public_keys_only_and_the_same_each_time(command: CommandLine, stranger: Home) -> None:
    first, second = (command("keys", "show", "--json", home=stranger) for _ in range(2))
    assert first.out == second.out
    facts = json.loads(first.out)
    assert set(facts) == {"device_key", "checkpoint_key"}
    secrets = [path.read_text().strip() for path in (stranger.path / "keys").glob("*.key")]
    assert len(secrets) == 2
    assert not any(secret in first.out for secret in secrets)
    assert {path.stat().st_mode & 0o777 for path in (stranger.path / "keys").glob("*.key")} == {0o600}


def test_create_identity_makes_one_and_refuses_a_second(command: CommandLine, stranger: Home) -> None:
    made = json.loads(command("keys", "create-identity", "--json", home=stranger).out)
    shown = json.loads(command("keys", "show", "--json", home=stranger).out)
    assert shown["identity_sha256"] == made["identity_sha256"]
    assert shown["generation"] == "1"
    assert command("keys", "create-identity", home=stranger).is_refusal("state", 2, "already")


@pytest.mark.parametrize("key", ["", "abc", "A" * 64, "g" * 64, "../../etc/passwd"])
def test_allow_takes_a_device_key_only(key: str, command: CommandLine, stranger: Home) -> None:
    assert command("keys", "allow", key, home=stranger).is_refusal("state", 2, "64 lower-case")
    assert allowed_devices(stranger) == ()


def test_allow_keeps_every_key_once(command: CommandLine, stranger: Home) -> None:
    for key in ("a" * 64, "b" * 64, "a" * 64):
        assert command("keys", "allow", key, home=stranger).code == 0
    assert [key.hex() for key in allowed_devices(stranger)] == ["a" * 64, "b" * 64]


def test_trust_with_a_fingerprint_saves_it_and_asks_nobody(command: CommandLine, stranger: Home) -> None:
    with bad_server(bad_servers.hang_up) as server:
        ran = command("keys", "trust", "office", server.url, "--identity", "c" * 64, home=stranger)
    assert ran.code == 0
    assert server.connections == 0
    remote = load_remote(stranger, "office")
    assert (remote.url, remote.identity_sha256) == (server.url, "c" * 64)


def test_trust_without_a_fingerprint_or_a_terminal_shows_it_and_saves_nothing(
    command: CommandLine, door: Served, pair: Paired, stranger: Home
) -> None:
    ran = command("keys", "trust", "office", door.url, home=stranger)
    assert ran.is_refusal("usage", 2, "--identity")
    assert pair.pin in ran.err
    assert not (stranger.path / "remotes" / "office.toml").exists()


def test_trust_on_a_terminal_asks_and_takes_yes(
    command: CommandLine, door: Served, pair: Paired, stranger: Home
) -> None:
    with Terminal("y\n"):
        ran = command("keys", "trust", "office", door.url, home=stranger)
    assert ran.code == 0
    assert pair.pin in ran.err
    assert load_remote(stranger, "office").identity_sha256 == pair.pin


@pytest.mark.parametrize("typed", ["n\n", "\n", "yess\n"])
def test_trust_on_a_terminal_takes_nothing_else(typed: str, command: CommandLine, door: Served, stranger: Home) -> None:
    with Terminal(typed):
        ran = command("keys", "trust", "office", door.url, home=stranger)
    assert ran.code == 2
    # The user's own Enter would have ended the line of the question.
    assert ran.err.endswith("[y/N] error[usage]: not trusted; nothing was saved\n")
    assert not (stranger.path / "remotes" / "office.toml").exists()


def test_trust_is_logged_as_a_call_that_sent_nothing(command: CommandLine, door: Served, stranger: Home) -> None:
    command("keys", "trust", "office", door.url, home=stranger)
    records = json.loads(command("audit", "show", "--json", home=stranger).out)["records"]
    intent, outcome = records
    assert (intent["mode"], intent["bytes_up_bound"]) == ("trust", 0)
    assert (outcome["status"], outcome["bytes_sent"]) == ("completed", 0)


def test_trust_of_something_that_is_no_cloud_saves_nothing(command: CommandLine, stranger: Home) -> None:
    with bad_server(bad_servers.html) as server:
        ran = command("keys", "trust", "office", server.url, home=stranger)
    assert ran.is_refusal("transport", 5)
    assert not (stranger.path / "remotes").exists() or not list((stranger.path / "remotes").iterdir())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("../evil", "http://127.0.0.1:1", "--identity", "c" * 64), "state"),
        (("office", "http://127.0.0.1:1", "--identity", "xyz"), "usage"),
        (("office", "http://127.0.0.1:1", "--identity", "C" * 64), "usage"),
        (("office", "http://cloud.example:8471", "--identity", "c" * 64), "usage"),
        (("office", "ftp://cloud.example", "--identity", "c" * 64), "usage"),
        (("office", "cloud.example", "--identity", "c" * 64), "usage"),
    ],
)
def test_trust_refuses_what_could_not_be_used(
    arguments: tuple[str, ...], code: str, command: CommandLine, stranger: Home
) -> None:
    assert command("keys", "trust", *arguments, home=stranger).is_refusal(code, 2)
    assert not (stranger.path / "remotes" / "office.toml").exists()


def test_device_that_is_no_longer_allowed_is_refused_at_once(command: CommandLine, door: Served, pair: Paired) -> None:
    pair.point_at(door.url)
    run = ("run", "--policy", "sealed-decode", *ASK)
    assert command(*run, home=pair.device).code == 0
    kept = (pair.cloud.path / "allowed").read_text()
    (pair.cloud.path / "allowed").write_text("")
    assert command(*run, home=pair.device).is_refusal("remote_refused", 5, "authentication")
    assert pair.last["status"] == "refused"
    assert command("keys", "allow", kept.strip(), home=pair.cloud).code == 0
    assert command(*run, home=pair.device).code == 0


def test_device_that_was_never_allowed_is_refused(
    command: CommandLine, door: Served, pair: Paired, stranger: Home
) -> None:
    command("keys", "trust", "default", door.url, "--identity", pair.pin, home=stranger)
    ran = command("run", "--policy", "sealed-prefill", *ASK, home=stranger)
    assert ran.is_refusal("remote_refused", 5)


def test_replica_with_a_certificate_from_elsewhere_works(
    command: CommandLine, pair: Paired, tiny_on_cloud: Engine, tmp_path: Path
) -> None:
    replica = Home(tmp_path / "replica")
    key = json.loads(command("keys", "replica", "--json", home=replica).out)["replica_key"]
    made = command("keys", "certify", key, "-o", replica.path / "replica.cert", home=pair.cloud)
    assert made.code == 0
    assert not replica.has_key("identity")
    cloud = CountingCloud(pair.service(tiny_on_cloud, replica=make_replica(replica)))
    with served(cloud) as opened:
        pair.point_at(opened.url)
        assert command("run", "--policy", "sealed-decode", *ASK, home=pair.device).code == 0
    assert cloud.routes == [Route.KEYSET, Route.DECODE]


def test_without_any_certificate_nothing_is_served(command: CommandLine, stranger: Home) -> None:
    ran = command("serve", "--port", "0", home=stranger)
    assert ran.is_refusal("state", 2, "create-identity", "certify")
    assert not stranger.has_key("identity")


def test_certificate_of_another_replica_is_refused(command: CommandLine, pair: Paired, tmp_path: Path) -> None:
    first, second = Home(tmp_path / "first"), Home(tmp_path / "second")
    key = json.loads(command("keys", "replica", "--json", home=first).out)["replica_key"]
    command("keys", "replica", home=second)
    command("keys", "certify", key, "-o", second.path / "replica.cert", home=pair.cloud)
    assert command("serve", "--port", "0", home=second).is_refusal("state", 2, "another replica key")


def test_broken_certificate_is_refused(command: CommandLine, stranger: Home) -> None:
    (stranger.path / "replica.cert").write_text("{}")
    assert command("serve", "--port", "0", home=stranger).is_refusal("state", 2, "replica.cert")


@pytest.mark.parametrize("hours", ["0", "25", "-1"])
def test_certificate_is_valid_for_a_day_at_most(hours: str, command: CommandLine, pair: Paired, tmp_path: Path) -> None:
    pair.cloud.key("identity")
    ran = command("keys", "certify", "a" * 64, "-o", tmp_path / "cert", "--hours", hours, home=pair.cloud)
    assert ran.is_refusal("usage", 2, "1 to 24")
    assert not (tmp_path / "cert").exists()


def test_certify_needs_the_identity_key(command: CommandLine, stranger: Home, tmp_path: Path) -> None:
    ran = command("keys", "certify", "a" * 64, "-o", tmp_path / "cert", home=stranger)
    assert ran.is_refusal("state", 2, "identity key")
    assert not stranger.has_key("identity")
