"""A transfer's two streams as their senders make them: `seal_request` on the device, `seal_reply` on the cloud.

Both take plaintext pieces and give the clear head and a lazy `SealedStream` whose length is known at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from splitinfer.handoff import VerifiedRecipient
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.heads import PublicManifest, ReplyHead, RequestHead
from splitinfer.sealing.keys import (
    CONTENT_KEY_BYTES,
    SUITE,
    Direction,
    derive_stream_keys,
    wrap_content_key,
)
from splitinfer.sealing.manifest import manifest_region
from splitinfer.sealing.signing import Purpose, Signer
from splitinfer.sealing.stream import ChunkCipher, ChunkRoot, SealedStream
from splitinfer.sealing.wire import VERSION

__all__ = ["EXPIRY_SECONDS", "HEAD_BOUND_BYTES", "SealedBody", "TransferKeys", "seal_reply", "seal_request"]

EXPIRY_SECONDS = 300
HEAD_BOUND_BYTES = 4096
TRANSFER_ID_BYTES = 16
NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class TransferKeys:
    """What ties a reply to its request: transfer id, content key, SHA-256 of the public manifest."""

    transfer_id: bytes
    content_key: bytes = field(repr=False)
    manifest_digest: bytes


@dataclass(frozen=True, slots=True)
class SealedBody:
    """A whole HTTP body: the length-prefixed head, then the chunks. `nonce` is the stream's, in clear in the head."""

    head: bytes
    stream: SealedStream
    nonce: bytes

    @property
    def body_bytes(self) -> int:
        """Return the exact length."""
        return len(self.head) + self.stream.body_bytes

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """Yield head and chunks; a chunk is valid until the next is asked for."""
        yield self.head
        yield from self.stream


def seal_request(
    pieces: Iterable[memoryview | bytes],
    *,
    sealed_manifest: bytes,
    following_bytes: int,
    chunk_bytes: int,
    recipient: VerifiedRecipient,
    sender_id: str,
    signer: Signer,
    now: int,
    randomness: Callable[[int], bytes],
) -> tuple[SealedBody, TransferKeys]:
    """Seal `sealed_manifest` and the `following_bytes` of `pieces` to the recipient, under a fresh content key."""
    content_key, transfer_id, nonce = (
        randomness(CONTENT_KEY_BYTES),
        randomness(TRANSFER_ID_BYTES),
        randomness(NONCE_BYTES),
    )
    manifest = PublicManifest(
        version=VERSION,
        suite=SUITE,
        transfer_id=transfer_id.hex(),
        keyset_digest=recipient.keyset_digest.hex(),
        sender_id=sender_id,
        chunk_bytes=chunk_bytes,
        expires_at=min(now + EXPIRY_SECONDS, recipient.not_after),
    )
    keys = TransferKeys(transfer_id, content_key, manifest.digest)
    wrap = wrap_content_key(content_key, public_key=recipient.kem_public_key, manifest_digest=keys.manifest_digest)
    plaintext = _Plaintext.of(sealed_manifest, pieces, following_bytes, chunk_bytes)
    stream, commitment = _stream(plaintext, keys=keys, direction=Direction.REQUEST, nonce=nonce, signer=signer)
    unsigned = RequestHead(
        manifest=manifest,
        wrap=wrap.hex(),
        stream_nonce=nonce.hex(),
        commitment=commitment.hex(),
        server_nonce=recipient.server_nonce.hex(),
        signature="0" * 128,
    )
    signature = signer(Purpose.REQUEST, unsigned.signed_bytes())
    head = unsigned.model_copy(update={"signature": signature.hex()})
    return SealedBody(prefixed(head.to_bytes()), stream, nonce), keys


def seal_reply(
    pieces: Iterable[memoryview | bytes],
    *,
    response_manifest: bytes,
    following_bytes: int,
    chunk_bytes: int,
    keys: TransferKeys,
    signer: Signer,
    randomness: Callable[[int], bytes],
) -> SealedBody:
    """Seal a reply under keys derived from the request's content key and a fresh nonce of the recipient's."""
    nonce = randomness(NONCE_BYTES)
    plaintext = _Plaintext.of(response_manifest, pieces, following_bytes, chunk_bytes)
    stream, commitment = _stream(plaintext, keys=keys, direction=Direction.REPLY, nonce=nonce, signer=signer)
    head = ReplyHead(
        version=VERSION,
        transfer_id=keys.transfer_id.hex(),
        chunk_bytes=chunk_bytes,
        stream_nonce=nonce.hex(),
        commitment=commitment.hex(),
    )
    return SealedBody(prefixed(head.to_bytes()), stream, nonce)


@dataclass(frozen=True, slots=True)
class _Plaintext:
    region: bytes = field(repr=False)
    pieces: Iterable[memoryview | bytes] = field(repr=False)
    following_bytes: int
    chunk_bytes: int

    @classmethod
    def of(
        cls, manifest: bytes, pieces: Iterable[memoryview | bytes], following_bytes: int, chunk_bytes: int
    ) -> _Plaintext:
        return cls(manifest_region(manifest, chunk_bytes=chunk_bytes), pieces, following_bytes, chunk_bytes)

    def __iter__(self) -> Iterator[memoryview | bytes]:
        yield self.region
        yield from self.pieces


def _stream(
    plaintext: _Plaintext, *, keys: TransferKeys, direction: Direction, nonce: bytes, signer: Signer
) -> tuple[SealedStream, bytes]:
    derived = derive_stream_keys(
        keys.content_key, direction=direction, manifest_digest=keys.manifest_digest, nonce=nonce
    )
    stream = SealedStream(
        cipher=ChunkCipher(derived, transfer_id=keys.transfer_id, direction=direction),
        direction=direction,
        chunk_bytes=plaintext.chunk_bytes,
        data_bytes=len(plaintext.region) + plaintext.following_bytes,
        manifest_digest=keys.manifest_digest,
        pieces=plaintext,
        signer=signer,
        chunks=ChunkRoot(),
    )
    return stream, derived.commitment
