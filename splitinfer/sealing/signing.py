"""Ed25519 signatures, each under its own context, so that none can be read as another; both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from splitinfer.errors import AuthenticationError

__all__ = ["Purpose", "Signer", "sign", "signer", "verify"]

Signer = Callable[["Purpose", bytes], bytes]


class Purpose(StrEnum):
    """What a signature is for; part of what is signed."""

    CERTIFICATE = "replica-certificate"
    KEYSET = "keyset"
    REQUEST = "request"
    REQUEST_TRAILER = "request-trailer"
    REPLY_TRAILER = "reply-trailer"
    RECEIPT = "receipt"
    TRANSFER_STATE = "transfer-state"
    TRANSFER_STATE_ANSWER = "transfer-state-answer"
    TRANSFER_RESUME = "transfer-resume"


def _message(purpose: Purpose, payload: bytes) -> bytes:
    return b"splitinfer/v1/" + purpose.value.encode() + b"\x00" + hashlib.sha256(payload).digest()


def sign(key: Ed25519PrivateKey, purpose: Purpose, payload: bytes) -> bytes:
    """Sign SHA-256(payload) under the purpose's context; 64 bytes."""
    return key.sign(_message(purpose, payload))


def signer(key: Ed25519PrivateKey) -> Signer:
    """Bind a key, so that code that signs need not hold it."""
    return lambda purpose, payload: sign(key, purpose, payload)


def verify(public_key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> None:
    """Check a signature; raises AuthenticationError for any cause."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _message(purpose, payload))
    except (InvalidSignature, ValueError) as error:
        raise AuthenticationError from error
