"""The clear heads of a transfer's two streams: what an observer may read; both sides.

The public manifest names a version, a suite, two ids, a keyset, a chunk size and an expiry, and nothing else.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from splitinfer.sealing.keys import WRAP_BYTES
from splitinfer.sealing.wire import Count, Hex16, Hex32, Hex64, Seconds, Short, Version, WireModel

__all__ = ["PublicManifest", "ReplyHead", "RequestHead"]

HexWrap = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * WRAP_BYTES}}}$")]


class PublicManifest(WireModel):
    """What an observer may read of a transfer; its digest binds the wrap, the stream keys and every signature."""

    version: Version
    suite: Short
    transfer_id: Hex16
    keyset_digest: Hex32
    sender_id: Hex32
    chunk_bytes: Count
    expires_at: Seconds


class RequestHead(WireModel):
    """The clear head of a request: manifest, wrapped content key, stream nonce, commitment, sender authentication."""

    manifest: PublicManifest
    wrap: HexWrap
    stream_nonce: Hex32
    commitment: Hex32
    server_nonce: Hex32
    signature: Hex64

    def signed_bytes(self) -> bytes:
        """Return what the device key signs: everything in the head but the signature."""
        return self.model_copy(update={"signature": "0" * 128}).to_bytes()


class ReplyHead(WireModel):
    """The clear head of a reply; its keys derive from the request's content key and manifest."""

    version: Version
    transfer_id: Hex16
    chunk_bytes: Count
    stream_nonce: Hex32
    commitment: Hex32
