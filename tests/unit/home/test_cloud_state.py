from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.attestation.appraise import appraise
from splitinfer.attestation.keyset import Certificate, certify, identity_sha256
from splitinfer.errors import SplitInferError, StateError
from splitinfer.handoff import VerifiedRecipient
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, generation, make_replica
from tests.support.keys import NONCE, NOW, Clock, Unseen

KEY = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def appraised(home: Home, data: bytes, clock: Clock) -> VerifiedRecipient:
    pin = identity_sha256(home.key("identity").public_key().public_bytes_raw())
    return appraise(data, pinned_sha256=pin, now=int(clock()), seen=Unseen())


def test_nobody_is_allowed_at_first(home: Home) -> None:
    assert allowed_devices(home) == ()


def test_allowed_devices_are_kept_in_order_and_once(home: Home) -> None:
    for key in (KEY, "cd" * 32, KEY):
        allow_device(home, key)
    assert allowed_devices(home) == (bytes.fromhex(KEY), bytes.fromhex("cd" * 32))
    assert (home.path / "allowed").stat().st_mode & 0o777 == 0o600


def test_a_removed_device_is_gone_at_once(home: Home) -> None:
    allow_device(home, KEY)
    allow_device(home, "cd" * 32)
    (home.path / "allowed").write_text("cd" * 32 + "\n")
    assert allowed_devices(home) == (bytes.fromhex("cd" * 32),)
    (home.path / "allowed").unlink()
    assert allowed_devices(home) == ()


@pytest.mark.parametrize("key", ["", "ab", KEY.upper(), KEY + "0", KEY + "\n", f"{KEY}\n{KEY}", "zz" * 32, " " + KEY])
def test_a_device_key_of_another_form_is_refused(home: Home, key: str) -> None:
    with pytest.raises(StateError):
        allow_device(home, key)
    assert not (home.path / "allowed").exists()


@pytest.mark.parametrize(
    "content", [b"zz", KEY[:-1].encode(), (KEY + "," + KEY).encode(), b"\xff\xfe", KEY.upper().encode()]
)
def test_a_damaged_file_of_devices_allows_nobody(home: Home, content: bytes) -> None:
    (home.path / "allowed").write_bytes(content)
    with pytest.raises(StateError):
        allowed_devices(home)
    with pytest.raises(StateError):
        allow_device(home, KEY)
    assert (home.path / "allowed").read_bytes() == content


def test_the_generation_is_one_at_first_and_then_what_the_file_says(home: Home) -> None:
    assert generation(home) == 1
    (home.path / "generation").write_text("7\n")
    assert generation(home) == 7


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "99999999999", "1 2", "\x00"])
def test_a_generation_that_is_none_is_refused_by_a_typed_error(home: Home, clock: Clock, text: str) -> None:
    (home.path / "generation").write_text(text)
    home.key("identity")
    with pytest.raises(StateError):
        make_replica(home, clock=clock).reply(NONCE)


def test_without_identity_and_certificate_nothing_is_served(home: Home) -> None:
    with pytest.raises(StateError, match="certif"):
        make_replica(home)
    assert not home.has_key("identity"), "an identity was made by itself"


def test_an_identity_at_hand_certifies_the_replica(home: Home, clock: Clock) -> None:
    home.key("identity")
    replica = make_replica(home, clock=clock)
    recipient = appraised(home, replica.reply(NONCE), clock)
    assert recipient.replica_id == replica.replica_id
    assert recipient.generation == 1


def test_two_replicas_of_one_folder_differ(home: Home, clock: Clock) -> None:
    home.key("identity")
    first, second = make_replica(home, clock=clock), make_replica(home, clock=clock)
    assert first.replica_id != second.replica_id
    assert first.current().keyset.epoch != second.current().keyset.epoch


def test_epochs_go_up_over_restarts_and_a_clock_that_is_set_back(home: Home, clock: Clock) -> None:
    home.key("identity")
    epochs = []
    for seconds in (NOW, NOW, NOW - 1000, NOW + 5000, NOW + 10):
        clock.seconds = seconds
        epochs.append(make_replica(home, clock=clock).current().keyset.epoch)
    assert epochs == sorted(set(epochs))
    assert epochs[0] == NOW
    assert epochs[3] == NOW + 5000


@pytest.mark.parametrize("text", ["", "x", "1.5", "\x00", str(2**53)])
def test_an_epoch_that_is_none_is_refused_by_a_typed_error(home: Home, clock: Clock, text: str) -> None:
    home.key("identity")
    (home.path / "epoch").write_text(text)
    with pytest.raises(StateError):
        make_replica(home, clock=clock).reply(NONCE)


def test_a_self_certified_replica_renews_its_certificate_in_good_time(home: Home, clock: Clock) -> None:
    home.key("identity")
    replica = make_replica(home, clock=clock)
    for hour in range(72):
        clock.seconds = NOW + hour * 3600
        appraised(home, replica.reply(NONCE), clock)
        assert replica.current().keyset.not_after > clock.seconds + 1000


def test_a_raised_generation_is_in_the_next_replicas_certificate(home: Home, clock: Clock) -> None:
    home.key("identity")
    (home.path / "generation").write_text("2")
    assert appraised(home, make_replica(home, clock=clock).reply(NONCE), clock).generation == 2


def stored_certificate(home: Home, *, key: bytes | None = None, now: int = NOW, seconds: int = 86400) -> Certificate:
    public = home.key("replica").public_key().public_bytes_raw() if key is None else key
    made = certify(
        home.key("identity"), replica_id="7" * 32, replica_public_key=public, generation=4, now=now, seconds=seconds
    )
    (home.path / "replica.cert").write_bytes(made.to_bytes() + b"\n")
    return made


def test_a_stored_certificate_is_used(home: Home, clock: Clock) -> None:
    stored_certificate(home)
    replica = make_replica(home, clock=clock)
    recipient = appraised(home, replica.reply(NONCE), clock)
    assert (recipient.replica_id, recipient.generation) == ("7" * 32, 4)


def test_a_certificate_of_another_replica_key_is_refused(home: Home, clock: Clock) -> None:
    stored_certificate(home, key=Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    with pytest.raises(StateError, match="another replica key"):
        make_replica(home, clock=clock)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]"])
def test_a_damaged_certificate_is_refused_rather_than_replaced(home: Home, clock: Clock, content: bytes) -> None:
    stored_certificate(home)
    (home.path / "replica.cert").write_bytes(content)
    with pytest.raises(StateError):
        make_replica(home, clock=clock)
    assert (home.path / "replica.cert").read_bytes() == content


def test_an_expired_certificate_serves_nothing(home: Home, clock: Clock) -> None:
    stored_certificate(home, now=NOW - 86400)
    with pytest.raises(SplitInferError):
        make_replica(home, clock=clock).reply(NONCE)
