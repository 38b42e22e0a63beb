"""The store's keys: one 32-byte store key to a key for names and a key that wraps file keys; on the device.

HKDF-Expand-SHA512 (RFC 5869) derives both, each under its own label; the store key is uniformly random, so there is
nothing to extract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

__all__ = ["STORE_KEY_BYTES", "StoreKeys"]

STORE_KEY_BYTES = 32
_NAME_LABEL = b"splitinfer/v1/store/name\x00"
_WRAP_LABEL = b"splitinfer/v1/store/wrap\x00"


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """What the store key gives: an HMAC-SHA256 key for file names, an AES-256-GCM key for file keys."""

    name_key: bytes = field(repr=False)
    wrap_key: bytes = field(repr=False)

    @classmethod
    def of(cls, store_key: bytes) -> Self:
        """Derive both keys from the 32-byte store key."""
        return cls(_derived(store_key, _NAME_LABEL), _derived(store_key, _WRAP_LABEL))


def _derived(store_key: bytes, label: bytes) -> bytes:
    return HKDFExpand(hashes.SHA512(), length=32, info=label).derive(store_key)
