"""A request's intake on the cloud: clear head, then sealed manifest, then slabs, in the order of `checks.CHECKS`.

The only module that makes a `VerifiedTransfer` (for replies too). Every failure wipes the sink but one: a source that
was lost (TransportError) leaves everything in place, so that it can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from splitinfer.errors import (
    AuthenticationError,
    LimitExceededError,
    ManifestError,
    StaleKeysetError,
    TransportError,
)
from splitinfer.handoff import Sink, Source, VerifiedTransfer
from splitinfer.receive.chunks import ChunkReader
from splitinfer.receive.reading import read_head
from splitinfer.sealing.heads import PublicManifest, RequestHead
from splitinfer.sealing.keys import SUITE, Direction, KemKey, check_commitment, derive_stream_keys, unwrap_content_key
from splitinfer.sealing.manifest import RequestManifest
from splitinfer.sealing.signing import Purpose, verify
from splitinfer.sealing.stream import CHUNK_BYTES, ChunkCipher
from splitinfer.sealing.wire import parse_wire

__all__ = ["HeldKeyset", "OpenedRequest", "Receiving", "RecipientState", "finish_verified", "open_request"]
__all__ += ["require_chunk_bytes", "require_sender"]

MAX_EXPIRY_SECONDS = 600
T = TypeVar("T")


class HeldKeyset(Protocol):
    """A keyset that the recipient still holds."""

    @property
    def kem(self) -> KemKey:
        """Return its private X-Wing key."""

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the canonical keyset."""


class SignedByDevice(Protocol):
    """A clear head with a server nonce and a device's signature."""

    @property
    def server_nonce(self) -> str:
        """Return the nonce that the recipient handed out."""

    @property
    def signature(self) -> str:
        """Return the device's signature."""

    def signed_bytes(self) -> bytes:
        """Return what was signed."""


class NamesSender(Protocol):
    """What says to which keyset something is sealed, and by which device."""

    @property
    def keyset_digest(self) -> str:
        """Return the digest of the keyset."""

    @property
    def sender_id(self) -> str:
        """Return the device's name under that keyset."""


class RecipientState(Protocol):
    """What the recipient knows and remembers, asked for during intake."""

    def now(self) -> int:
        """Return Unix seconds."""

    def keyset(self, digest_hex: str) -> HeldKeyset | None:
        """Return the live keyset with this digest."""

    def sender(self, sender_id: str, keyset_digest: bytes) -> bytes | None:
        """Return the public key of the allowed device with this sender id."""

    def use_nonce(self, nonce: str) -> None:
        """Spend a server nonce; raises ReplayError where it is unknown, used or old."""

    def begin(self, sender: bytes, manifest: PublicManifest) -> None:
        """Mark the transfer as open; raises ReplayError where it was seen before."""


class Receiving(Generic[T]):
    """A stream's contents on their way into a sink; `run` is called again after a lost source.

    `data_bytes` counts slabs and tail; `check_tail` is called with the tail once the trailer verified.
    """

    def __init__(
        self,
        reader: ChunkReader,
        sink: Sink[T],
        sizes: Iterator[int],
        *,
        data_bytes: int,
        sender: bytes,
        tail_bytes: int = 0,
        check_tail: Callable[[bytes], None] | None = None,
    ) -> None:
        self._reader, self._sink, self._sizes = reader, sink, sizes
        self._data_bytes, self._sender = data_bytes, sender
        self._tail_bytes, self._check_tail = tail_bytes, check_tail
        self._is_begun = False
        self._tail: bytes | None = None

    def run(self) -> VerifiedTransfer[T]:
        """Fill the sink, read the tail, run the last checks, and only then let the sink finish.

        Raises TransportError where the source is lost: nothing is wiped then, so that `run` can go on with another;
        who gives up instead calls `wipe`. Any other error wipes the sink.
        """
        try:
            payload = self._payload()
        except TransportError:
            raise
        except BaseException:
            self.wipe()
            raise
        self._reader.wipe()
        return VerifiedTransfer(payload, ciphertext_root=self._reader.root(), chunk_count=self._reader.count)

    def wipe(self) -> None:
        """Overwrite and drop what was received."""
        self._sink.wipe()
        self._reader.wipe()

    def _payload(self) -> T:
        reader = self._reader
        if not self._is_begun:
            reader.expect(self._data_bytes)
            self._is_begun = True
        if self._tail is None:
            reader.fill(self._sink, self._sizes)
            self._tail = reader.read(self._tail_bytes)
        reader.finish(self._sender)
        if self._check_tail is not None:
            self._check_tail(self._tail)
        return self._sink.finish()


@dataclass(slots=True)
class OpenedRequest:
    """A request whose head passed checks 1 to 5 and 7 to 10: its sender is known, its content is still to be read.

    `manifest` and `receive` raise TransportError where the source is lost. After `reader.attach` they are called again
    and go on; `wipe` gives up.
    """

    head: RequestHead
    manifest_digest: bytes
    content_key: bytes = field(repr=False)
    sender: bytes
    reader: ChunkReader
    sealed_manifest_sha256: str = ""
    _manifest: RequestManifest | None = field(default=None, init=False, repr=False)
    _receiving: Receiving[Any] | None = field(default=None, init=False, repr=False)

    def manifest(self) -> RequestManifest:
        """Open and parse the sealed manifest (checks 1, 2, 11)."""
        if self._manifest is None:
            data = self.reader.manifest()
            self._manifest = parse_wire(RequestManifest, data, what="sealed manifest")
            self.sealed_manifest_sha256 = self._manifest.digest.hex()
        return self._manifest

    def receive(self, sink: Sink[T], sizes: Iterator[int], *, data_bytes: int) -> VerifiedTransfer[T]:
        """Receive the slabs and run checks 11 to 13; on any failure but a lost source the sink is wiped.

        Called again after that, it goes on into the sink of the first call, and the one given is not used.
        """
        if self._receiving is None:
            self._receiving = Receiving(self.reader, sink, sizes, data_bytes=data_bytes, sender=self.sender)
        verified: VerifiedTransfer[T] = self._receiving.run()
        self._receiving = None
        return verified

    def wipe(self) -> None:
        """Overwrite and drop what was received so far."""
        if self._receiving is not None:
            self._receiving.wipe()
        self.reader.wipe()


def open_request(source: Source, state: RecipientState) -> OpenedRequest:
    """Read the clear head and run checks 1 to 5 and 7 to 10."""
    head = parse_wire(RequestHead, read_head(source), what="request head")
    manifest = head.manifest
    require_chunk_bytes(manifest.chunk_bytes)
    if manifest.suite != SUITE:
        raise ManifestError(f"the suite must be {SUITE}")
    _check_expiry(manifest.expires_at, state.now())
    keyset, sender = require_sender(head, manifest, state, purpose=Purpose.REQUEST)
    state.begin(sender, manifest)
    return _unwrapped(head, keyset, sender, source)


def require_sender(
    head: SignedByDevice, names: NamesSender, state: RecipientState, *, purpose: Purpose
) -> tuple[HeldKeyset, bytes]:
    """Run checks 5, 7 and 8 on a signed head: its keyset is held, its sender allowed, its server nonce spent by it.

    Returns the keyset and the sender's public key. Raises StaleKeysetError, AuthenticationError, ReplayError.
    """
    keyset = state.keyset(names.keyset_digest)
    if keyset is None:
        raise StaleKeysetError("what came is sealed to a keyset that is not held here; fetch it again, send anew")
    sender = state.sender(names.sender_id, keyset.digest)
    if sender is None:
        raise AuthenticationError
    verify(sender, purpose, head.signed_bytes(), bytes.fromhex(head.signature))
    state.use_nonce(head.server_nonce)
    return keyset, sender


def _unwrapped(head: RequestHead, keyset: HeldKeyset, sender: bytes, source: Source) -> OpenedRequest:
    digest = head.manifest.digest
    content_key = unwrap_content_key(bytes.fromhex(head.wrap), private_key=keyset.kem, manifest_digest=digest)
    nonce = bytes.fromhex(head.stream_nonce)
    keys = derive_stream_keys(content_key, direction=Direction.REQUEST, manifest_digest=digest, nonce=nonce)
    check_commitment(keys, bytes.fromhex(head.commitment))
    cipher = ChunkCipher(keys, transfer_id=bytes.fromhex(head.manifest.transfer_id), direction=Direction.REQUEST)
    reader = ChunkReader(
        source,
        cipher,
        direction=Direction.REQUEST,
        chunk_bytes=head.manifest.chunk_bytes,
        manifest_digest=digest,
    )
    return OpenedRequest(head, digest, content_key, sender, reader)


def require_chunk_bytes(chunk_bytes: int) -> None:
    """Refuse a chunk size outside the closed table (check 1)."""
    if chunk_bytes not in CHUNK_BYTES:
        raise LimitExceededError(f"the chunk size must be one of {', '.join(map(str, CHUNK_BYTES))}")


def _check_expiry(expires_at: int, now: int) -> None:
    if not now < expires_at <= now + MAX_EXPIRY_SECONDS:
        raise ManifestError(
            f"the request has expired or expires in more than {MAX_EXPIRY_SECONDS} s; check both clocks"
        )


def finish_verified(
    reader: ChunkReader,
    sink: Sink[T],
    sizes: Iterator[int],
    *,
    data_bytes: int,
    sender: bytes,
    tail_bytes: int = 0,
    check_tail: Callable[[bytes], None] | None = None,
) -> VerifiedTransfer[T]:
    """Receive in one go (see `Receiving`); where it raises TransportError, the caller wipes the sink."""
    return Receiving(
        reader,
        sink,
        sizes,
        data_bytes=data_bytes,
        sender=sender,
        tail_bytes=tail_bytes,
        check_tail=check_tail,
    ).run()
