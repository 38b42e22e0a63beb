"""Appraisal of a keyset against the pinned identity: keyset bytes in, `VerifiedRecipient` out; on the device.

The only module that makes a `VerifiedRecipient`.
"""

from __future__ import annotations

from typing import Protocol

from splitinfer.attestation.keyset import CERTIFICATE_SECONDS, Certificate, Keyset, KeysetReply, identity_sha256
from splitinfer.errors import AuthenticationError, RecipientMismatchError, StaleKeysetError
from splitinfer.handoff import VerifiedRecipient
from splitinfer.sealing.signing import Purpose, verify
from splitinfer.sealing.wire import parse_wire

__all__ = ["SeenKeysets", "appraise"]


class SeenKeysets(Protocol):
    """What the device remembers: the highest epoch of each replica and the highest generation of each identity."""

    def highest_epoch(self, replica_id: str) -> int:
        """Return the highest epoch accepted of this replica, or 0."""

    def highest_generation(self, identity_sha256: str) -> int:
        """Return the highest generation accepted of this identity, or 0."""

    def remember(self, *, identity_sha256: str, generation: int, replica_id: str, epoch: int) -> None:
        """Record what was accepted, durably."""


def appraise(data: bytes, *, pinned_sha256: str, now: int, seen: SeenKeysets) -> VerifiedRecipient:
    """Check who answers: identity, certificate, keyset, freshness; remember what was accepted.

    Raises:
        ManifestError: not a keyset, or of another version.
        RecipientMismatchError: certified by another identity than the pinned one, or not properly certified.
        StaleKeysetError: expired, not yet valid, of a lower epoch or a retired generation.
    """
    reply = parse_wire(KeysetReply, data, what="keyset")
    keyset, certificate = reply.keyset, reply.keyset.certificate
    identity = _check_identity(certificate, pinned_sha256)
    _check_signatures(reply, identity)
    _check_times(keyset, now)
    _check_seen(certificate, keyset, pinned_sha256, seen)
    seen.remember(
        identity_sha256=pinned_sha256,
        generation=certificate.body.generation,
        replica_id=certificate.body.replica_id,
        epoch=keyset.epoch,
    )
    return _recipient(reply, pinned_sha256)


def _check_identity(certificate: Certificate, pinned_sha256: str) -> bytes:
    identity = bytes.fromhex(certificate.body.identity)
    found = identity_sha256(identity)
    if found != pinned_sha256:
        raise RecipientMismatchError(
            f"the recipient's identity is {found}, the policy pins {pinned_sha256}; nothing was sent"
        )
    return identity


def _check_signatures(reply: KeysetReply, identity: bytes) -> None:
    body = reply.keyset.certificate.body
    try:
        verify(identity, Purpose.CERTIFICATE, body.to_bytes(), bytes.fromhex(reply.keyset.certificate.signature))
        verify(
            bytes.fromhex(body.replica_key),
            Purpose.KEYSET,
            reply.keyset.to_bytes(),
            bytes.fromhex(reply.signature),
        )
    except AuthenticationError as error:
        raise RecipientMismatchError("the keyset is not certified by the pinned identity; nothing was sent") from error


def _check_times(keyset: Keyset, now: int) -> None:
    body = keyset.certificate.body
    if not now < body.not_after <= now + CERTIFICATE_SECONDS + 3600:
        raise StaleKeysetError("the replica certificate has expired or is valid for longer than a day; certify it anew")
    if not keyset.not_before <= now < keyset.not_after <= body.not_after:
        raise StaleKeysetError("the keyset has expired or is not yet valid; check both clocks")


def _check_seen(certificate: Certificate, keyset: Keyset, pinned_sha256: str, seen: SeenKeysets) -> None:
    body = certificate.body
    if body.generation < seen.highest_generation(pinned_sha256):
        raise StaleKeysetError("the replica's certificate is of a retired generation; certify it anew")
    if keyset.epoch < seen.highest_epoch(body.replica_id):
        raise StaleKeysetError("the keyset is older than one seen before of this replica; it may be replayed")


def _recipient(reply: KeysetReply, pinned_sha256: str) -> VerifiedRecipient:
    body = reply.keyset.certificate.body
    return VerifiedRecipient(
        identity_sha256=pinned_sha256,
        replica_id=body.replica_id,
        generation=body.generation,
        epoch=reply.keyset.epoch,
        keyset_digest=reply.keyset.digest,
        kem_public_key=bytes.fromhex(reply.keyset.kem_public_key),
        receipt_public_key=bytes.fromhex(reply.keyset.receipt_public_key),
        not_after=reply.keyset.not_after,
        capabilities=tuple(body.capabilities),
        server_nonce=bytes.fromhex(reply.nonce),
    )
