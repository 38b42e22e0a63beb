"""The wire forms of identity, replica certificate and keyset, and how the recipient issues them.

A deployment's long-term Ed25519 identity key signs replica certificates (chain length exactly one); a replica is one
process, holds its X-Wing and receipt keys in memory and signs its own short-lived keyset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints

from splitinfer.errors import StateError
from splitinfer.sealing.keys import KEM_PUBLIC_KEY_BYTES, KemKey
from splitinfer.sealing.signing import Purpose, Signer, sign, signer
from splitinfer.sealing.wire import VERSION, Hex16, Hex32, Hex64, Seconds, Version, WireModel

__all__ = [
    "CAPABILITIES",
    "CERTIFICATE_SECONDS",
    "KEYSET_SECONDS",
    "Certificate",
    "CertificateBody",
    "Keyset",
    "KeysetReply",
    "Replica",
    "ReplicaKeys",
    "certify",
    "identity_sha256",
    "replica_id_of",
]

CERTIFICATE_SECONDS = 24 * 3600
KEYSET_SECONDS = 3600
# What a replica of this version can be asked for.
CAPABILITIES = ("decode", "prefill", "rounds")
HexKem = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * KEM_PUBLIC_KEY_BYTES}}}$")]
Capability = Annotated[str, StringConstraints(pattern=r"^[a-z-]{1,32}$")]


class CertificateBody(WireModel):
    """What the identity key says of one replica."""

    version: Version
    identity: Hex32
    replica_id: Hex16
    replica_key: Hex32
    capabilities: Annotated[list[Capability], Field(max_length=16)]
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)]
    not_after: Seconds


class Certificate(WireModel):
    """A certificate body and the identity's signature over it."""

    body: CertificateBody
    signature: Hex64


class Keyset(WireModel):
    """The keys to which a device may seal, until `not_after`."""

    version: Version
    certificate: Certificate
    kem_public_key: HexKem
    receipt_public_key: Hex32
    epoch: Seconds
    not_before: Seconds
    not_after: Seconds


class KeysetReply(WireModel):
    """What `GET /v1/keyset` answers: a signed keyset and a one-time nonce for the request signature."""

    keyset: Keyset
    signature: Hex64
    nonce: Hex32


def identity_sha256(identity_public_key: bytes) -> str:
    """Return the fingerprint that policies pin: hex SHA-256 of the raw 32-byte Ed25519 key."""
    return hashlib.sha256(identity_public_key).hexdigest()


def replica_id_of(replica_public_key: bytes) -> str:
    """Return a replica's id: the first 16 bytes of SHA-256 of its raw Ed25519 key, in hex."""
    return hashlib.sha256(replica_public_key).hexdigest()[:32]


def certify(
    identity: Ed25519PrivateKey,
    *,
    replica_id: str,
    replica_public_key: bytes,
    generation: int,
    now: int,
    seconds: int = CERTIFICATE_SECONDS,
) -> Certificate:
    """Sign a replica certificate, valid for a day at most; raises StateError for a longer one."""
    if not 0 < seconds <= CERTIFICATE_SECONDS:
        raise StateError(f"a replica certificate is valid for 1 to {CERTIFICATE_SECONDS} seconds")
    body = CertificateBody(
        version=VERSION,
        identity=identity.public_key().public_bytes_raw().hex(),
        replica_id=replica_id,
        replica_key=replica_public_key.hex(),
        capabilities=list(CAPABILITIES),
        generation=generation,
        not_after=now + seconds,
    )
    return Certificate(body=body, signature=sign(identity, Purpose.CERTIFICATE, body.to_bytes()).hex())


@dataclass(frozen=True, slots=True)
class ReplicaKeys:
    """One keyset and the private keys behind it, in memory only."""

    keyset: Keyset
    signature: bytes
    kem: KemKey = field(repr=False)
    receipt: Ed25519PrivateKey = field(repr=False)

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the canonical keyset."""
        return self.keyset.digest

    @property
    def signer(self) -> Signer:
        """Return the signer of receipts and reply trailers."""
        return signer(self.receipt)


class Replica:
    """A process's keysets: makes a new one in good time, keeps the old until its `not_after`, then drops its keys."""

    def __init__(
        self,
        replica_key: Ed25519PrivateKey,
        certificate: Callable[[], Certificate],
        *,
        next_epoch: Callable[[int], int],
        clock: Callable[[], float],
        keyset_seconds: int = KEYSET_SECONDS,
    ) -> None:
        self._key = replica_key
        self._certificate = certificate
        self._next_epoch = next_epoch
        self._clock = clock
        self._seconds = keyset_seconds
        self._keysets: list[ReplicaKeys] = []

    @property
    def replica_id(self) -> str:
        """Return the id in this replica's certificate."""
        return self._certificate().body.replica_id

    def current(self) -> ReplicaKeys:
        """Return the keyset to hand out; renewed when half of its time has gone and a new one would last longer.

        Raises StateError where the replica's certificate has expired: nothing is served without one.
        """
        now = int(self._clock())
        self.drop_expired()
        newest = self._keysets[-1].keyset.not_after if self._keysets else now
        if newest - now < self._seconds // 2 and self._end(now) > newest:
            self._keysets.append(self._issue(now))
        if not self._keysets:
            raise StateError("the replica certificate has expired; certify this replica again")
        return self._keysets[-1]

    def _end(self, now: int) -> int:
        return min(now + self._seconds, self._certificate().body.not_after)

    def find(self, digest_hex: str) -> ReplicaKeys | None:
        """Return the live keyset with this digest, or None; an expired one is gone."""
        self.drop_expired()
        return next((keys for keys in self._keysets if keys.digest.hex() == digest_hex), None)

    def drop_expired(self) -> None:
        """Forget keysets and their private keys after their `not_after`."""
        now = int(self._clock())
        self._keysets = [keys for keys in self._keysets if keys.keyset.not_after > now]

    def _issue(self, now: int) -> ReplicaKeys:
        certificate = self._certificate()
        kem, receipt = KemKey.generate(), Ed25519PrivateKey.generate()
        keyset = Keyset(
            version=VERSION,
            certificate=certificate,
            kem_public_key=kem.public_bytes.hex(),
            receipt_public_key=receipt.public_key().public_bytes_raw().hex(),
            epoch=self._next_epoch(now),
            not_before=now - 60,
            not_after=self._end(now),
        )
        signature = sign(self._key, Purpose.KEYSET, keyset.to_bytes())
        return ReplicaKeys(keyset=keyset, signature=signature, kem=kem, receipt=receipt)

    def reply(self, nonce: bytes) -> bytes:
        """Encode the answer to `GET /v1/keyset`."""
        keys = self.current()
        return KeysetReply(keyset=keys.keyset, signature=keys.signature.hex(), nonce=nonce.hex()).to_bytes()
