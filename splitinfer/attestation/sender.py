"""Who sends: a device's id towards one keyset; the device states it, the cloud looks it up."""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["sender_id"]


def sender_id(keyset_digest: bytes, device_public_key: bytes) -> str:
    """Return HMAC-SHA256(keyset digest, device public key) in hex.

    Somebody who does not know the device key cannot link the ids that it has towards two keysets.
    """
    return hmac.new(keyset_digest, device_public_key, hashlib.sha256).hexdigest()
