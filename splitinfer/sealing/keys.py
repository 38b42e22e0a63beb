"""Content keys and what is derived from them: HPKE wrap to a recipient, stream keys with commitment; both sides.

HPKE (RFC 9180, base mode, single shot) over X-Wing (ML-KEM-768 + X25519) wraps one fresh 32-byte content key per
transfer. HKDF-Expand-SHA512 (RFC 5869) derives from it one key set for each stream and direction. The schedule is
that of C2SP chunked-encryption with our own label, per-chunk AAD and chunk sizes, so it is not that format.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from splitinfer.errors import AuthenticationError

__all__ = [
    "CONTENT_KEY_BYTES",
    "KEM_PUBLIC_KEY_BYTES",
    "SUITE",
    "WRAP_BYTES",
    "Direction",
    "KemKey",
    "StreamKeys",
    "check_commitment",
    "derive_record_keys",
    "derive_stream_keys",
    "unwrap_content_key",
    "wrap_content_key",
]

SUITE = "xwing-hkdf-sha512-aes256gcm-blake3"
CONTENT_KEY_BYTES = 32
_MLKEM_PUBLIC_BYTES = 1184
KEM_PUBLIC_KEY_BYTES = _MLKEM_PUBLIC_BYTES + 32
WRAP_BYTES = 1088 + 32 + CONTENT_KEY_BYTES + 16
_WRAP_LABEL = b"splitinfer/v1/wrap\x00"
_STREAM_LABEL = b"splitinfer/v1/stream\x00"
_RECORDS_LABEL = b"splitinfer/v1/records\x00"


class Direction(IntEnum):
    """Which way a stream runs; part of its keys and of every chunk's associated data."""

    REQUEST = 0
    REPLY = 1


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """Keys of one stream: AES-256-GCM key, 12-byte base nonce, 32-byte commitment (public)."""

    aead_key: bytes = field(repr=False)
    base_nonce: bytes = field(repr=False)
    commitment: bytes


def _suite() -> Suite:
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA512, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class KemKey:
    """An X-Wing key pair that lives in memory only and is dropped at its keyset's `not_after`."""

    mlkem: MLKEM768PrivateKey = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> KemKey:
        """Make a fresh pair."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @property
    def public_bytes(self) -> bytes:
        """Encode the public half: ML-KEM-768 encapsulation key, then X25519 key; 1,216 bytes."""
        return self.mlkem.public_key().public_bytes_raw() + self.x25519.public_key().public_bytes_raw()


def wrap_content_key(content_key: bytes, *, public_key: bytes, manifest_digest: bytes) -> bytes:
    """Encrypt the content key to the recipient; bound to the public manifest through `info`.

    Raises AuthenticationError for a public key that cannot be used (malformed, or an X25519 point of small order).
    """
    try:
        recipient = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC_BYTES:]),
        )
        return _suite().encrypt(content_key, recipient, info=_WRAP_LABEL + manifest_digest)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthenticationError from error


def unwrap_content_key(wrapped: bytes, *, private_key: KemKey, manifest_digest: bytes) -> bytes:
    """Recover the content key; raises AuthenticationError for any cause, decapsulation or tag alike."""
    try:
        content_key = _suite().decrypt(
            wrapped, MLKEM768X25519PrivateKey(private_key.mlkem, private_key.x25519), info=_WRAP_LABEL + manifest_digest
        )
    except (InvalidTag, ValueError) as error:
        raise AuthenticationError from error
    if len(content_key) != CONTENT_KEY_BYTES:
        raise AuthenticationError
    return content_key


def derive_stream_keys(content_key: bytes, *, direction: Direction, manifest_digest: bytes, nonce: bytes) -> StreamKeys:
    """Derive one stream's keys: info = label, direction byte, suite, 0x00, SHA-256(public manifest), 32-byte nonce."""
    return _derived(_STREAM_LABEL, content_key, direction, manifest_digest + nonce)


def derive_record_keys(
    content_key: bytes, *, direction: Direction, manifest_digest: bytes, nonces: tuple[bytes, bytes]
) -> StreamKeys:
    """Derive the keys of a session's records in one direction; `nonces` are those of request and reply stream."""
    return _derived(_RECORDS_LABEL, content_key, direction, manifest_digest + nonces[0] + nonces[1])


def _derived(label: bytes, content_key: bytes, direction: Direction, context: bytes) -> StreamKeys:
    info = label + bytes([direction]) + SUITE.encode() + b"\x00" + context
    okm = HKDFExpand(hashes.SHA512(), length=76, info=info).derive(content_key)
    return StreamKeys(aead_key=okm[:32], base_nonce=okm[32:44], commitment=okm[44:])


def check_commitment(keys: StreamKeys, received: bytes) -> None:
    """Compare the key commitment in constant time; raises AuthenticationError."""
    if not hmac.compare_digest(keys.commitment, received):
        raise AuthenticationError
