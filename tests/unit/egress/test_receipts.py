from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.egress.gate import CallRecord, Gate, Intent, Outcome, Permit
from splitinfer.egress.log import AuditLog
from splitinfer.egress.receipts import check_kept_receipts, check_receipt
from splitinfer.errors import AuthenticationError, BrokenLogError, VerificationError
from splitinfer.handoff import Route, VerifiedRecipient
from splitinfer.sealing.receipt import Event, Receipt
from tests.support.device_cloud import receipt, signed_receipt
from tests.support.keys import Deployment

MANIFEST = "2" * 64
ROOT = "3" * 64
CHECKED = (
    "transfer_id",
    "manifest_sha256",
    "ciphertext_root",
    "replica_id",
    "keyset_digest",
    "protection",
    "log_checkpoint",
)


class Scene:
    """A permit with one call, and the receipt that its recipient owes for it."""

    def __init__(self, directory: Path) -> None:
        deployment = Deployment()
        replica = deployment.replica(replica_id="a" * 32)
        self.recipient: VerifiedRecipient = deployment.appraised(replica)
        self.key = replica.current().receipt
        intent = Intent(
            mode="sealed-prefill",
            policy_sha256="1" * 64,
            recipient_identity_sha256=deployment.pin,
            protection="sealed",
            codec="raw",
            tokens_bucket=64,
            bytes_up_bound=100,
            fields_in_clear=(),
        )
        self.directory = directory
        self.receipts = directory / "receipts"
        self.receipts.mkdir(parents=True)
        self.log = AuditLog.open(
            directory / "audit",
            origin="a/log",
            checkpoint_key=Ed25519PrivateKey.generate(),
            clock=lambda: 1_800_000_000.0,
            randomness=os.urandom,
        )
        self.permit: Permit = Gate(self.log, keep_receipt=self.keep).open(intent)
        _, self.call = self.permit.release(Route.PREFILL, recipient=self.recipient, transfer_id="b" * 32)
        self.call.sent_root = ROOT

    def keep(self, intent_id: str, data: bytes) -> None:
        (self.receipts / f"{intent_id}.json").write_bytes(data)

    def receipt(self, key: Ed25519PrivateKey | None = None, /, **changes: object) -> Receipt:
        fields: dict[str, object] = {
            "transfer_id": "b" * 32,
            "manifest_sha256": MANIFEST,
            "ciphertext_root": ROOT,
            "replica_id": "a" * 32,
            "keyset_digest": self.recipient.keyset_digest.hex(),
            "protection": "sealed",
            "log_checkpoint": self.permit.checkpoint_commitment,
        }
        return signed_receipt(key or self.key, **{**fields, **changes})

    def check(
        self, made: Receipt, *, call: CallRecord | None = None, recipient: VerifiedRecipient | None = None
    ) -> None:
        check_receipt(
            made,
            permit=self.permit,
            call=call or self.call,
            recipient=recipient or self.recipient,
            manifest_sha256=MANIFEST,
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_the_receipt_that_is_owed_is_accepted(scene: Scene) -> None:
    scene.check(scene.receipt())


@pytest.mark.parametrize("name", CHECKED)
def test_a_signed_receipt_of_something_else_is_refused_by_the_fields_name(scene: Scene, name: str) -> None:
    value = getattr(scene.receipt().body, name)
    other = "none" if name == "protection" else ("0" if value[0] != "0" else "1") + value[1:]
    with pytest.raises(VerificationError, match=name) as caught:
        scene.check(scene.receipt(None, **{name: other}))
    assert not isinstance(caught.value, AuthenticationError)


@pytest.mark.parametrize("name", [*CHECKED, "version", "served_at", "events"])
def test_a_receipt_changed_after_it_was_signed_is_not_authentic(scene: Scene, name: str) -> None:
    made = scene.receipt()
    other = receipt(
        version=1, protection="other", served_at=1, events=[Event(event="erased", count=9)], log_checkpoint="0" * 64
    )
    value = 2 if name == "version" else getattr(other, name)
    changed = made.model_copy(update={"body": made.body.model_copy(update={name: value})})
    with pytest.raises(AuthenticationError):
        scene.check(changed)


def test_a_receipt_signed_by_another_key_is_not_authentic(scene: Scene) -> None:
    with pytest.raises(AuthenticationError):
        scene.check(scene.receipt(Ed25519PrivateKey.generate()))


def test_a_receipt_of_another_replica_is_not_authentic(scene: Scene) -> None:
    other = Deployment()
    recipient = other.appraised(other.replica(replica_id="a" * 32))
    with pytest.raises(AuthenticationError):
        scene.check(scene.receipt(), recipient=recipient)


def test_a_receipt_for_an_earlier_call_is_refused(scene: Scene) -> None:
    later = replace(scene.call, transfer_id="c" * 32)
    with pytest.raises(VerificationError, match="transfer_id"):
        scene.check(scene.receipt(), call=later)


def test_a_receipt_without_the_checkpoint_it_was_sent_anchors_nothing(scene: Scene) -> None:
    with pytest.raises(VerificationError, match="log_checkpoint"):
        scene.check(scene.receipt(log_checkpoint="0" * 64))


def close(scene: Scene) -> Path:
    scene.permit.close(Outcome("completed", receipt=scene.receipt().to_bytes()))
    return scene.receipts / f"{scene.permit.intent_id}.json"


def kept(scene: Scene) -> int:
    return check_kept_receipts(scene.directory / "audit", scene.receipts, scene.log.records())


def test_a_kept_receipt_is_the_one_that_was_logged(scene: Scene) -> None:
    close(scene)
    assert kept(scene) == 1


def test_a_changed_kept_receipt_is_found(scene: Scene) -> None:
    path = close(scene)
    path.write_bytes(path.read_bytes().replace(b'"count":3', b'"count":4'))
    with pytest.raises(BrokenLogError):
        kept(scene)


def test_an_erased_receipt_or_salt_is_passed_over(scene: Scene) -> None:
    path = close(scene)
    salt = next(str(record["receipt_salt"]) for record in scene.log.records() if "receipt_salt" in record)
    scene.log.erase(salt)
    assert kept(scene) == 0
    path.unlink()
    assert kept(scene) == 0
