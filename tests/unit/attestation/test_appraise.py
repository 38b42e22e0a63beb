from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.attestation.appraise import appraise
from splitinfer.attestation.keyset import CERTIFICATE_SECONDS, Certificate, Keyset, KeysetReply, certify
from splitinfer.errors import ManifestError, RecipientMismatchError, SplitInferError, StaleKeysetError
from splitinfer.handoff import VerifiedRecipient
from splitinfer.sealing.signing import Purpose, sign
from tests.support.keys import NONCE, NOW, Deployment, Seen, Unseen, signed_reply

IDENTITY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
REPLICA = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


@pytest.fixture
def deployment() -> Deployment:
    return Deployment(IDENTITY)


def appraised(data: bytes, deployment: Deployment, *, now: int = NOW, seen: Seen | None = None) -> VerifiedRecipient:
    return appraise(data, pinned_sha256=deployment.pin, now=now, seen=Unseen() if seen is None else seen)


def a_certificate(*, signed_by: Ed25519PrivateKey = IDENTITY, **changes: object) -> Certificate:
    """Certify `REPLICA`, with fields changed before they are signed."""
    made = certify(
        IDENTITY,
        replica_id="0" * 32,
        replica_public_key=REPLICA.public_key().public_bytes_raw(),
        generation=1,
        now=NOW,
    )
    body = made.body.model_copy(update=changes)
    return Certificate(body=body, signature=sign(signed_by, Purpose.CERTIFICATE, body.to_bytes()).hex())


def a_keyset(certificate: Certificate | None = None, /, **changes: object) -> Keyset:
    fields: dict[str, object] = {
        "version": 1,
        "certificate": certificate or a_certificate(),
        "kem_public_key": "ab" * 1216,
        "receipt_public_key": "cd" * 32,
        "epoch": NOW,
        "not_before": NOW - 60,
        "not_after": NOW + 3600,
        **changes,
    }
    return Keyset(**fields)  # type: ignore[arg-type]


def test_a_replicas_keyset_is_appraised(deployment: Deployment) -> None:
    replica = deployment.replica(replica_id="7" * 32, generation=3)
    keys = replica.current()
    recipient = appraised(replica.reply(NONCE), deployment)
    assert recipient.identity_sha256 == deployment.pin
    assert (recipient.replica_id, recipient.generation, recipient.epoch) == ("7" * 32, 3, NOW)
    assert recipient.keyset_digest == keys.digest
    assert recipient.kem_public_key == keys.kem.public_bytes
    assert recipient.receipt_public_key == keys.receipt.public_key().public_bytes_raw()
    assert recipient.server_nonce == NONCE
    assert recipient.not_after == keys.keyset.not_after
    assert recipient.capabilities == ("decode", "prefill", "rounds")


def test_two_live_replicas_of_one_identity_are_accepted_in_turns(deployment: Deployment) -> None:
    seen = Seen()
    first = deployment.replica(replica_id="1" * 32, next_epoch=lambda now: now + 1000)
    second = deployment.replica(replica_id="2" * 32)
    for _ in range(3):
        for replica in (first, second):
            appraised(replica.reply(NONCE), deployment, seen=seen)
    assert seen.remembered == 6


def test_a_keyset_of_a_lower_epoch_of_the_same_replica_is_refused(deployment: Deployment) -> None:
    seen = Seen()
    appraised(signed_reply(a_keyset(epoch=NOW), REPLICA), deployment, seen=seen)
    appraised(signed_reply(a_keyset(epoch=NOW), REPLICA), deployment, seen=seen)
    with pytest.raises(StaleKeysetError):
        appraised(signed_reply(a_keyset(epoch=NOW - 1), REPLICA), deployment, seen=seen)
    appraised(signed_reply(a_keyset(epoch=NOW + 1), REPLICA), deployment, seen=seen)


def test_a_retired_generation_is_refused_for_every_replica(deployment: Deployment) -> None:
    seen = Seen()
    old = [deployment.replica(replica_id=name * 32, generation=1) for name in "12"]
    for replica in old:
        appraised(replica.reply(NONCE), deployment, seen=seen)
    appraised(deployment.replica(replica_id="3" * 32, generation=2).reply(NONCE), deployment, seen=seen)
    for replica in old:
        with pytest.raises(StaleKeysetError):
            appraised(replica.reply(NONCE), deployment, seen=seen)


def test_generations_of_two_identities_are_apart(deployment: Deployment) -> None:
    seen, other = Seen(), Deployment()
    appraised(other.replica(generation=9).reply(NONCE), other, seen=seen)
    appraised(deployment.replica(generation=1).reply(NONCE), deployment, seen=seen)


@pytest.mark.parametrize(
    "reply",
    [
        signed_reply(a_keyset(a_certificate(not_after=NOW)), REPLICA),
        signed_reply(a_keyset(a_certificate(signed_by=REPLICA)), REPLICA),
        signed_reply(a_keyset(version=2), REPLICA),
        signed_reply(a_keyset(not_after=NOW), REPLICA),
        signed_reply(a_keyset(), IDENTITY),
        b"{}",
    ],
    ids=["expired certificate", "self-signed", "version", "expired keyset", "another key", "no keyset"],
)
def test_nothing_of_a_refused_keyset_is_remembered(deployment: Deployment, reply: bytes) -> None:
    seen = Seen()
    with pytest.raises(SplitInferError):
        appraised(reply, deployment, seen=seen)
    assert seen == Seen()


def test_another_identity_is_refused_with_both_fingerprints(deployment: Deployment) -> None:
    other = Deployment()
    with pytest.raises(RecipientMismatchError) as caught:
        appraised(other.replica().reply(NONCE), deployment)
    assert deployment.pin in str(caught.value)
    assert other.pin in str(caught.value)


def test_an_identity_that_is_named_but_did_not_sign_is_refused(deployment: Deployment) -> None:
    for signed_by in (REPLICA, Ed25519PrivateKey.generate()):
        with pytest.raises(RecipientMismatchError):
            appraised(signed_reply(a_keyset(a_certificate(signed_by=signed_by)), REPLICA), deployment)


def test_a_keyset_that_its_replica_did_not_sign_is_refused(deployment: Deployment) -> None:
    for key in (IDENTITY, Ed25519PrivateKey.generate()):
        with pytest.raises(RecipientMismatchError):
            appraised(signed_reply(a_keyset(), key), deployment)


def test_a_certificate_signature_is_no_keyset_signature(deployment: Deployment) -> None:
    """The identity may certify itself as a replica: the two purposes still have contexts of their own."""
    public = IDENTITY.public_key().public_bytes_raw().hex()
    keyset = a_keyset(a_certificate(replica_key=public))
    wrong = sign(IDENTITY, Purpose.CERTIFICATE, keyset.to_bytes()).hex()
    with pytest.raises(RecipientMismatchError):
        appraised(KeysetReply(keyset=keyset, signature=wrong, nonce=NONCE.hex()).to_bytes(), deployment)


@given(
    name=st.sampled_from(["kem_public_key", "receipt_public_key", "epoch", "not_before", "not_after"]),
)
@settings(deadline=None, max_examples=10)
def test_every_field_of_a_keyset_is_signed(name: str) -> None:
    keyset = a_keyset()
    value = getattr(keyset, name)
    changed = keyset.model_copy(update={name: value - 1 if isinstance(value, int) else "00" + value[2:]})
    signature = sign(REPLICA, Purpose.KEYSET, keyset.to_bytes()).hex()
    reply = KeysetReply(keyset=changed, signature=signature, nonce=NONCE.hex()).to_bytes()
    with pytest.raises(RecipientMismatchError):
        appraised(reply, Deployment(IDENTITY))


@pytest.mark.parametrize("name", ["replica_id", "replica_key", "capabilities", "generation", "not_after"])
def test_every_field_of_a_certificate_is_signed(deployment: Deployment, name: str) -> None:
    made = a_certificate()
    other = a_certificate(
        replica_id="1" * 32,
        replica_key="0" * 64,
        capabilities=["prefill"],
        generation=2,
        not_after=made.body.not_after - 1,
    )
    body = made.body.model_copy(update={name: getattr(other.body, name)})
    with pytest.raises(RecipientMismatchError):
        appraised(signed_reply(a_keyset(Certificate(body=body, signature=made.signature)), REPLICA), deployment)


@pytest.mark.parametrize("seconds", [CERTIFICATE_SECONDS + 3601, 2 * CERTIFICATE_SECONDS, 2**52])
def test_a_certificate_that_lasts_longer_than_a_day_is_refused(deployment: Deployment, seconds: int) -> None:
    certificate = a_certificate(not_after=NOW + seconds)
    with pytest.raises(StaleKeysetError):
        appraised(signed_reply(a_keyset(certificate), REPLICA), deployment)


def test_a_fresh_certificate_is_accepted_by_a_clock_that_is_an_hour_behind(deployment: Deployment) -> None:
    keyset = a_keyset(not_before=NOW - 3600)
    appraised(signed_reply(keyset, REPLICA), deployment, now=NOW - 3600)


@pytest.mark.parametrize(
    "changes",
    [
        {"not_before": NOW + 1},
        {"not_after": NOW},
        {"not_after": NOW - 1},
        {"not_before": NOW + 10, "not_after": NOW + 5},
        {"not_after": NOW + CERTIFICATE_SECONDS + 1},
    ],
    ids=str,
)
def test_a_keyset_out_of_its_time_or_outliving_its_certificate_is_refused(
    deployment: Deployment, changes: dict[str, object]
) -> None:
    with pytest.raises(StaleKeysetError):
        appraised(signed_reply(a_keyset(None, **changes), REPLICA), deployment)


def test_the_first_and_the_last_second_count(deployment: Deployment) -> None:
    reply = signed_reply(a_keyset(not_before=NOW, not_after=NOW + 10), REPLICA)
    appraised(reply, deployment, now=NOW)
    appraised(reply, deployment, now=NOW + 9)
    for now in (NOW - 1, NOW + 10):
        with pytest.raises(StaleKeysetError):
            appraised(reply, deployment, now=now)


@pytest.mark.parametrize("version", [0, 2, 65536])
def test_another_version_is_refused(deployment: Deployment, version: int) -> None:
    with pytest.raises(ManifestError):
        appraised(signed_reply(a_keyset(version=version), REPLICA), deployment)
    with pytest.raises(ManifestError):
        appraised(signed_reply(a_keyset(a_certificate(version=version)), REPLICA), deployment)


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=40)
def test_any_bytes_are_refused_by_a_typed_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        appraised(data, Deployment(IDENTITY))


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_any_changed_bit_but_the_nonces_is_refused(at: int, bit: int) -> None:
    reply = signed_reply(a_keyset(), REPLICA)
    changed = bytearray(reply)
    changed[at % len(reply)] ^= 1 << bit
    seen = Seen()
    try:
        recipient = appraised(bytes(changed), Deployment(IDENTITY), seen=seen)
    except (ManifestError, RecipientMismatchError):
        assert seen == Seen()
        return
    assert recipient.server_nonce != NONCE
    assert recipient.keyset_digest == a_keyset().digest


def test_a_verified_recipient_shows_no_key_material(deployment: Deployment) -> None:
    recipient = appraised(signed_reply(a_keyset(), REPLICA), deployment)
    assert repr(recipient.kem_public_key)[2:40] not in repr(recipient)
