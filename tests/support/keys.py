"""A deployment's identity and replicas with a clock that tests set, and what a device has seen of them, in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.attestation.appraise import SeenKeysets, appraise
from splitinfer.attestation.keyset import (
    CERTIFICATE_SECONDS,
    KEYSET_SECONDS,
    Certificate,
    Keyset,
    KeysetReply,
    Replica,
    certify,
    identity_sha256,
)
from splitinfer.handoff import VerifiedRecipient
from splitinfer.sealing.signing import Purpose, sign

NOW = 1_800_000_000
NONCE = bytes(range(32))


@dataclass(frozen=True, slots=True)
class Unseen:
    """Nothing seen before and nothing remembered."""

    def highest_epoch(self, replica_id: str) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def highest_generation(self, identity_sha256: str) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def remember(self, *, identity_sha256: str, generation: int, replica_id: str, epoch: int) -> None:
        """Keep nothing."""


@dataclass
class Clock:
    """Unix seconds that stand still until a test moves them."""

    seconds: float = NOW

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Deployment:
    """An identity that certifies replicas."""

    identity: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    clock: Clock = field(default_factory=Clock)

    @property
    def pin(self) -> str:
        return identity_sha256(self.identity.public_key().public_bytes_raw())

    def certificate(
        self, key: Ed25519PrivateKey, *, replica_id: str, generation: int = 1, seconds: int = CERTIFICATE_SECONDS
    ) -> Certificate:
        return certify(
            self.identity,
            replica_id=replica_id,
            replica_public_key=key.public_key().public_bytes_raw(),
            generation=generation,
            now=int(self.clock()),
            seconds=seconds,
        )

    def replica(
        self,
        *,
        replica_id: str = "0" * 32,
        generation: int = 1,
        certificate_seconds: int = CERTIFICATE_SECONDS,
        keyset_seconds: int = KEYSET_SECONDS,
        next_epoch: Callable[[int], int] | None = None,
    ) -> Replica:
        """Make one replica; its epochs are Unix seconds, raised by one where they would repeat."""
        key = Ed25519PrivateKey.generate()
        held = self.certificate(key, replica_id=replica_id, generation=generation, seconds=certificate_seconds)
        epochs = [0]

        def following(now: int) -> int:
            epochs.append(max(epochs[-1] + 1, now))
            return epochs[-1]

        return Replica(
            key, lambda: held, next_epoch=next_epoch or following, clock=self.clock, keyset_seconds=keyset_seconds
        )

    def appraised(
        self, replica: Replica, *, nonce: bytes = NONCE, seen: SeenKeysets | None = None
    ) -> VerifiedRecipient:
        """Return what a device that pins this deployment makes of the replica's present keyset."""
        return appraise(
            replica.reply(nonce), pinned_sha256=self.pin, now=int(self.clock()), seen=Unseen() if seen is None else seen
        )


@dataclass
class Seen:
    """Implements `SeenKeysets` with two dicts; counts what it was told."""

    epochs: dict[str, int] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    remembered: int = 0

    def highest_epoch(self, replica_id: str) -> int:
        return self.epochs.get(replica_id, 0)

    def highest_generation(self, identity_sha256: str) -> int:
        return self.generations.get(identity_sha256, 0)

    def remember(self, *, identity_sha256: str, generation: int, replica_id: str, epoch: int) -> None:
        self.remembered += 1
        self.epochs[replica_id] = max(epoch, self.highest_epoch(replica_id))
        self.generations[identity_sha256] = max(generation, self.highest_generation(identity_sha256))


def signed_reply(keyset: Keyset, key: Ed25519PrivateKey, *, nonce: bytes = NONCE) -> bytes:
    """Sign a keyset of any content with a replica's key and encode it as `GET /v1/keyset` does."""
    signature = sign(key, Purpose.KEYSET, keyset.to_bytes()).hex()
    return KeysetReply(keyset=keyset, signature=signature, nonce=nonce.hex()).to_bytes()


fresh = os.urandom
