"""Chunks to plaintext in order: opens each chunk under its index and places it, in place where it can; both sides."""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer.errors import LayoutMismatchError, LimitExceededError, ManifestError, TruncatedError
from splitinfer.handoff import Sink, Source
from splitinfer.receive.reading import MAX_MANIFEST_BYTES, read_exact, require_end
from splitinfer.sealing.keys import Direction
from splitinfer.sealing.manifest import MANIFEST_REGION_BYTES
from splitinfer.sealing.signing import verify
from splitinfer.sealing.stream import (
    TAG_BYTES,
    TRAILER_BYTES,
    TRAILER_PURPOSE,
    ChunkCipher,
    ChunkRoot,
    chunk_count,
    trailer_payload,
)

__all__ = ["ChunkReader"]


class ChunkReader:
    """Reads one stream: `manifest()`, `expect()`, then `fill` and `read`, then `finish` with the sender's key.

    The number of chunks is unknown until the manifest said what follows (`expect`); until then no chunk is final.
    `is_followed` says that records follow the stream, so that its final chunk is not the source's end.
    Where the source raises TransportError the position is kept: after `attach`, the call that was interrupted is made
    again and goes on with the first chunk that was not verified. Nothing of a chunk that broke off is kept.
    """

    def __init__(
        self, source: Source, cipher: ChunkCipher, *, direction: Direction, chunk_bytes: int, manifest_digest: bytes
    ) -> None:
        self._source, self._cipher, self._direction = source, cipher, direction
        self._chunk_bytes, self._manifest_digest = chunk_bytes, manifest_digest
        self._chunk = memoryview(bytearray(chunk_bytes + TAG_BYTES))
        self._plain = memoryview(bytearray(chunk_bytes))
        self._rest = self._plain[:0]
        self._pending = memoryview(b"")
        self._held: bytearray | None = None
        self._index = 0
        self._count: int | None = None
        self._root = ChunkRoot()
        self._earlier_root = self._root.root()
        self._region_bytes = 0
        self.is_followed = False

    @property
    def count(self) -> int:
        """Return the number of chunks read so far."""
        return self._index

    @property
    def chunk_bytes(self) -> int:
        """Return the plaintext bytes of one chunk."""
        return self._chunk_bytes

    @property
    def is_whole(self) -> bool:
        """Tell whether all chunks were read."""
        return self._count is not None and self._index == self._count

    @property
    def chunks(self) -> ChunkRoot:
        """Return the tree of the chunks read so far, to which a session adds its records."""
        return self._root

    def root(self) -> bytes:
        """Return the ciphertext root of the chunks read so far."""
        return self._root.root()

    def attach(self, source: Source) -> None:
        """Go on with another source, which starts with chunk `count`."""
        self._source = source

    def manifest(self) -> bytes:
        """Open the manifest region and return the manifest's JSON bytes (checks 1, 11)."""
        try:
            return self._manifest(max(MANIFEST_REGION_BYTES, self._chunk_bytes))
        finally:
            # The region fills whole chunks, so nothing that is still to be read is in the buffer.
            self._plain[:] = bytes(len(self._plain))

    def _manifest(self, unit: int) -> bytes:
        if self._held is None:
            self._begin(unit)
        self._fill_pending()
        region = self._held or bytearray()
        size = 4 + int.from_bytes(region[:4], "big")
        if size > MAX_MANIFEST_BYTES:
            raise LimitExceededError(f"the sealed manifest declares {size} bytes, the limit is {MAX_MANIFEST_BYTES}")
        total = -(-size // unit) * unit
        if len(region) < total:
            region = self._held = region + bytes(total - unit)
            self._fill(memoryview(region)[unit:])
        if any(region[size:]):
            raise ManifestError("the sealed manifest is not padded with zeros")
        self._region_bytes, self._held = total, None
        return bytes(region[4:size])

    def expect(self, following_bytes: int) -> None:
        """Fix the number of chunks from the bytes that follow the manifest region (check 12)."""
        self._count = chunk_count(self._region_bytes + following_bytes, self._chunk_bytes)
        if self._index > self._count - 1:
            raise TruncatedError("the stream has fewer chunks than its manifest implies")

    def fill(self, sink: Sink[object], sizes: Iterator[int]) -> None:
        """Decrypt the slabs of these sizes into the sink, straight into its memory where a chunk fits.

        To go on after a lost source, give the same iterator again.
        """
        self._fill_pending()
        for size in sizes:
            target = sink.slab()
            if len(target) != size:
                raise LayoutMismatchError("the sink expects a slab of another size")
            self._fill(target)

    def read(self, size_bytes: int) -> bytes:
        """Decrypt the next `size_bytes`."""
        if self._held is None:
            self._begin(size_bytes)
        self._fill_pending()
        data, self._held = bytes(self._held or b""), None
        return data

    def finish(self, sender_public_key: bytes) -> None:
        """Open what is left, check zeros, count, trailer signature and the end of the source (checks 12, 13)."""
        if self._count is None:
            raise TruncatedError("the stream was not read to its end")
        tail = self._rest
        while self._index < self._count:
            if any(tail):
                raise ManifestError("the stream is not padded with zeros")
            self._next_chunk(self._plain)
            tail = self._rest = self._plain
        padding, trailer = tail[:-TRAILER_BYTES], tail[-TRAILER_BYTES:]
        if any(padding):
            raise ManifestError("the stream is not padded with zeros")
        if int.from_bytes(trailer[:4], "big") != self._count:
            raise TruncatedError("the trailer states another number of chunks")
        payload = trailer_payload(self._manifest_digest, self._count, self._earlier_root)
        verify(sender_public_key, TRAILER_PURPOSE[self._direction], payload, bytes(trailer[4:]))
        if not self.is_followed:
            require_end(self._source)

    def wipe(self) -> None:
        """Overwrite the plaintext that is held."""
        self._plain[:] = bytes(len(self._plain))
        if self._held is not None:
            memoryview(self._held)[:] = bytes(len(self._held))
        self._pending, self._held = memoryview(b""), None

    def _begin(self, size_bytes: int) -> None:
        self._held = bytearray(size_bytes)
        self._pending = memoryview(self._held)

    def _fill(self, target: memoryview) -> None:
        self._pending = target
        self._fill_pending()

    def _fill_pending(self) -> None:
        size = self._chunk_bytes
        while len(self._pending):
            target = self._pending
            if len(self._rest):
                taken = min(len(self._rest), len(target))
                target[:taken] = self._rest[:taken]
                self._rest, self._pending = self._rest[taken:], target[taken:]
            elif len(target) >= size and not self._is_final:
                self._next_chunk(target[:size])
                self._pending = target[size:]
            else:
                self._next_chunk(self._plain)
                self._rest = self._plain
        self._pending = memoryview(b"")

    @property
    def _is_final(self) -> bool:
        return self._count is not None and self._index == self._count - 1

    def _next_chunk(self, target: memoryview) -> None:
        if self._count is not None and self._index >= self._count:
            raise TruncatedError("the stream has fewer chunks than its manifest implies")
        read_exact(self._source, self._chunk)
        self._cipher.open_into(self._index, self._chunk, target, final=self._is_final)
        if self._is_final:
            self._earlier_root = self._root.root()
        self._root.add(self._chunk)
        self._index += 1
