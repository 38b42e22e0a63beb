"""The chunk stream: plaintext pieces in, ciphertext chunks of one size out, then a signed trailer; both sides.

A stream's plaintext is: manifest region, slabs, zeros, trailer. It is cut into equal chunks regardless of slabs. The
trailer fills the last 68 bytes of the final chunk: 4-byte chunk count, Ed25519 signature over (manifest digest,
count, root of all earlier chunks). Layer and range are bound by position under the authenticated manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from splitinfer import merkle
from splitinfer.errors import AuthenticationError, CodecError, LayoutMismatchError, LimitExceededError, UsageError
from splitinfer.sealing.keys import Direction, StreamKeys
from splitinfer.sealing.signing import Purpose, Signer

__all__ = [
    "CHUNK_BYTES",
    "FRAME_CHUNK_BYTES",
    "MAX_CHUNKS",
    "PROMPT_CHUNK_BYTES",
    "TAG_BYTES",
    "TRAILER_BYTES",
    "TRAILER_PURPOSE",
    "ChunkCipher",
    "ChunkRoot",
    "SealedStream",
    "chunk_count",
    "trailer_payload",
]

TAG_BYTES = 16
TRAILER_BYTES = 4 + 64
MAX_CHUNKS = 2**20
FRAME_CHUNK_BYTES = 512
PROMPT_CHUNK_BYTES = 4096
CHUNK_BYTES = (FRAME_CHUNK_BYTES, PROMPT_CHUNK_BYTES, 64 * 1024, 256 * 1024, 1024 * 1024)
TRAILER_PURPOSE = {Direction.REQUEST: Purpose.REQUEST_TRAILER, Direction.REPLY: Purpose.REPLY_TRAILER}


def chunk_count(data_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks carry `data_bytes` and the trailer; raises LimitExceededError above 2^20."""
    count = -(-(data_bytes + TRAILER_BYTES) // chunk_bytes)
    if count > MAX_CHUNKS:
        raise LimitExceededError(f"{count} chunks are more than {MAX_CHUNKS} under one key")
    return count


def trailer_payload(manifest_digest: bytes, count: int, root: bytes) -> bytes:
    """Return what a trailer signs."""
    return manifest_digest + count.to_bytes(4, "big") + root


class ChunkRoot:
    """The ciphertext root as it grows: RFC 6962 tree (SHA-256 nodes) over the BLAKE3 digests of the chunks."""

    def __init__(self) -> None:
        self._frontier = merkle.Frontier()

    def add(self, chunk: memoryview) -> bytes:
        """Append one ciphertext chunk; return its BLAKE3 digest."""
        digest = blake3(chunk).digest()
        self._frontier.append(merkle.leaf_hash(digest))
        return digest

    @property
    def count(self) -> int:
        """Return how many chunks there are."""
        return self._frontier.size

    def root(self) -> bytes:
        """Return the root of the chunks so far; SHA-256 of nothing when there are none."""
        return self._frontier.root()


class ChunkCipher:
    """AES-256-GCM over numbered chunks: nonce = base XOR index, AAD = transfer id, direction, index, final flag."""

    def __init__(self, keys: StreamKeys, *, transfer_id: bytes, direction: Direction) -> None:
        self._aead = AESGCM(keys.aead_key)
        self._base = int.from_bytes(keys.base_nonce, "big")
        self._aad = transfer_id + bytes([direction])

    def seal_into(self, index: int, plain: memoryview, out: memoryview, *, final: bool) -> None:
        """Encrypt one chunk into `out` (16 bytes longer)."""
        self._aead.encrypt_into(self._nonce(index), plain, self._associated(index, final), out)

    def open_into(self, index: int, chunk: memoryview, out: memoryview, *, final: bool) -> None:
        """Decrypt one chunk into `out` (16 bytes shorter); raises AuthenticationError."""
        try:
            self._aead.decrypt_into(self._nonce(index), chunk, self._associated(index, final), out)
        except InvalidTag as error:
            raise AuthenticationError from error

    def _nonce(self, index: int) -> bytes:
        return (self._base ^ index).to_bytes(12, "big")

    def _associated(self, index: int, final: bool) -> bytes:
        return self._aad + index.to_bytes(4, "big") + bytes([final])


@dataclass(slots=True)
class SealedStream:
    """A stream to be pulled once, chunk by chunk; `root()` is the ciphertext root of what was pulled.

    `pieces` must yield exactly `data_bytes`, and the same bytes whenever they are iterated again; a yielded chunk is
    valid until the next one is pulled.
    """

    cipher: ChunkCipher
    direction: Direction
    chunk_bytes: int
    data_bytes: int
    manifest_digest: bytes
    pieces: Iterable[memoryview | bytes] = field(repr=False)
    signer: Signer
    chunks: ChunkRoot
    _is_pulled: bool = field(default=False, init=False)
    _digests: list[bytes] = field(default_factory=list, init=False, repr=False)
    _signed_trailer: bytes = field(default=b"", init=False, repr=False)

    @property
    def count(self) -> int:
        """Return the total number of chunks, final one included."""
        return chunk_count(self.data_bytes, self.chunk_bytes)

    @property
    def pulled(self) -> int:
        """Return how many chunks were pulled so far, however often."""
        return len(self._digests)

    @property
    def body_bytes(self) -> int:
        """Return the ciphertext bytes of all chunks."""
        return self.bytes_from(0)

    def bytes_from(self, start: int) -> int:
        """Return the ciphertext bytes of the chunks from `start` on."""
        return (self.count - start) * (self.chunk_bytes + TAG_BYTES)

    def root(self) -> bytes:
        """Return the ciphertext root of the chunks pulled so far."""
        return self.chunks.root()

    def __iter__(self) -> Iterator[memoryview]:
        """Seal lazily, once: another plaintext under the same keys would give away the authentication key of GCM."""
        if self._is_pulled:
            raise UsageError("a stream is sealed once; seal again under a new content key")
        self._is_pulled = True
        return self._sealed_chunks(0)

    def resumed(self, start: int) -> Iterator[memoryview]:
        """Yield the chunks from `start` on: those pulled before again, byte for byte, then new ones.

        A chunk that was pulled before is built again from the pieces and compared with its digest before it is
        yielded. Raises UsageError for a start beyond what was pulled, CodecError where the pieces have changed.
        """
        if not 0 <= start <= self.pulled:
            raise UsageError(f"chunk {start} cannot be sent next: {self.pulled} were sent before")
        self._is_pulled = True
        return self._sealed_chunks(start)

    def _sealed_chunks(self, start: int) -> Iterator[memoryview]:
        out = memoryview(bytearray(self.chunk_bytes + TAG_BYTES))
        last = self.count - 1
        rest = memoryview(b"")
        cut_bytes = 0
        for index, plain in enumerate(_cut(self.pieces, self.chunk_bytes)):
            if index == last or len(plain) < self.chunk_bytes:
                rest = plain
                break
            cut_bytes += len(plain)
            if index >= start:
                yield self._sealed(index, plain, out, final=False)
        if cut_bytes + len(rest) != self.data_bytes:
            raise LayoutMismatchError(f"{self.data_bytes} bytes were announced for a stream of another length")
        final = bytearray(self.chunk_bytes)
        if len(rest) <= self.chunk_bytes - TRAILER_BYTES:
            final[: len(rest)] = rest
        elif last - 1 >= start:
            yield self._sealed(last - 1, memoryview(bytes(rest).ljust(self.chunk_bytes, b"\x00")), out, final=False)
        if last >= start:
            final[-TRAILER_BYTES:] = self._trailer()
            yield self._sealed(last, memoryview(final), out, final=True)

    def _trailer(self) -> bytes:
        # Made once: afterwards the root is that of the final chunk as well.
        if not self._signed_trailer:
            payload = trailer_payload(self.manifest_digest, self.count, self.chunks.root())
            self._signed_trailer = self.count.to_bytes(4, "big") + self.signer(TRAILER_PURPOSE[self.direction], payload)
        return self._signed_trailer

    def _sealed(self, index: int, plain: memoryview, out: memoryview, *, final: bool) -> memoryview:
        self.cipher.seal_into(index, plain, out, final=final)
        if index == self.pulled:
            self._digests.append(self.chunks.add(out))
        elif blake3(out).digest() != self._digests[index]:
            raise CodecError("what is to be sent again has changed; nothing of it was sent, send it as a new transfer")
        return out


def _cut(pieces: Iterable[memoryview | bytes], size: int) -> Iterator[memoryview]:
    """Cut pieces into chunks of `size`, in place where a chunk lies within one piece; the last may be shorter."""
    scratch = memoryview(bytearray(size))
    filled = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        if filled:
            taken = min(size - filled, len(view))
            scratch[filled : filled + taken] = view[:taken]
            filled, view = filled + taken, view[taken:]
            if filled < size:
                continue
            yield scratch
            filled = 0
        whole = len(view) // size * size
        for start in range(0, whole, size):
            yield view[start : start + size]
        filled = len(view) - whole
        scratch[:filled] = view[whole:]
    if filled:
        yield scratch[:filled]
