from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.attestation.keyset import CERTIFICATE_SECONDS, certify
from splitinfer.attestation.sender import sender_id
from splitinfer.errors import SplitInferError, StateError
from tests.support.keys import NONCE, NOW, Deployment


@pytest.mark.parametrize("seconds", [0, -1, CERTIFICATE_SECONDS + 1])
def test_a_certificate_is_valid_for_a_day_at_most(seconds: int) -> None:
    with pytest.raises(StateError):
        certify(
            Ed25519PrivateKey.generate(),
            replica_id="0" * 32,
            replica_public_key=bytes(32),
            generation=1,
            now=NOW,
            seconds=seconds,
        )


def test_a_keyset_is_kept_until_it_is_half_spent() -> None:
    deployment = Deployment()
    replica = deployment.replica(keyset_seconds=1000)
    first = replica.current()
    deployment.clock.seconds += 500
    assert replica.current() is first
    deployment.clock.seconds += 1
    assert replica.current() is not first


def test_an_old_keyset_is_held_to_its_last_second_and_no_longer() -> None:
    deployment = Deployment()
    replica = deployment.replica(keyset_seconds=1000)
    digest = replica.current().digest.hex()
    deployment.clock.seconds += 600
    assert replica.current().digest.hex() != digest
    deployment.clock.seconds = NOW + 999
    assert replica.find(digest) is not None
    deployment.clock.seconds = NOW + 1000
    assert replica.find(digest) is None
    deployment.clock.seconds = NOW
    assert replica.find(digest) is None, "a clock set back brings no destroyed key back"


def test_keys_are_never_shared_by_keysets() -> None:
    deployment = Deployment()
    replica = deployment.replica(keyset_seconds=10)
    keysets = []
    for _ in range(4):
        keysets.append(replica.current().keyset)
        deployment.clock.seconds += 9
    assert len({keyset.kem_public_key for keyset in keysets}) == 4
    assert len({keyset.receipt_public_key for keyset in keysets}) == 4
    epochs = [keyset.epoch for keyset in keysets]
    assert epochs == sorted(set(epochs))


def test_a_keyset_ends_with_its_certificate() -> None:
    deployment = Deployment()
    replica = deployment.replica(certificate_seconds=100)
    assert replica.current().keyset.not_after == NOW + 100


def test_a_certificate_near_its_end_does_not_make_a_keyset_for_every_call() -> None:
    """The call needs no authentication: it may not cost a key pair that is held, and an epoch, each time."""
    deployment = Deployment()
    replica = deployment.replica(certificate_seconds=600)
    assert len({replica.current().digest for _ in range(5)}) == 1


def test_an_expired_certificate_serves_nothing() -> None:
    deployment = Deployment()
    replica = deployment.replica(certificate_seconds=600)
    replica.current()
    deployment.clock.seconds += 600
    with pytest.raises(SplitInferError):
        replica.reply(NONCE)


def test_an_unknown_digest_finds_nothing() -> None:
    replica = Deployment().replica()
    replica.current()
    assert replica.find("0" * 64) is None
    assert replica.find("") is None


def test_sender_ids_towards_two_keysets_cannot_be_compared() -> None:
    key = bytes(range(32))
    assert sender_id(bytes(32), key) == sender_id(bytes(32), key)
    assert sender_id(bytes(32), key) != sender_id(bytes(31) + b"\x01", key)
    assert sender_id(bytes(32), key) != sender_id(bytes(32), key[::-1])


def test_expired_private_keys_are_forgotten_without_any_request() -> None:
    deployment = Deployment()
    replica = deployment.replica(keyset_seconds=1000)
    replica.current()
    deployment.clock.seconds += 1000
    replica.drop_expired()
    assert replica._keysets == []
