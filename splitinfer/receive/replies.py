"""A reply's intake on the device: clear head, sealed response manifest, then a cache, token frames or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from splitinfer.errors import (
    CodecError,
    ManifestError,
    ModelError,
    PromptError,
    RemoteRefusedError,
    ReplayError,
    SplitInferError,
    TruncatedError,
    UsageError,
    VerificationError,
    error_for_code,
)
from splitinfer.handoff import Sink, Source, VerifiedTransfer
from splitinfer.receive.chunks import ChunkReader
from splitinfer.receive.expectations import Expectations, check_response
from splitinfer.receive.intake import finish_verified, require_chunk_bytes
from splitinfer.receive.reading import read_head
from splitinfer.sealing.frames import Frame, FrameKind, parse_frame
from splitinfer.sealing.heads import ReplyHead
from splitinfer.sealing.keys import Direction, check_commitment, derive_stream_keys
from splitinfer.sealing.manifest import RefusalWire, ResponseManifest
from splitinfer.sealing.receipt import RECEIPT_BYTES, Receipt, read_receipt_region
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES, ChunkCipher
from splitinfer.sealing.transfer import TransferKeys
from splitinfer.sealing.wire import parse_wire

__all__ = ["OpenedReply", "SentRequest", "open_reply"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SentRequest:
    """What the device keeps of a request in order to open its reply."""

    keys: TransferKeys
    sealed_manifest_sha256: str
    receipt_public_key: bytes
    tokens: int
    base_tokens: int = 0


def open_reply(source: Source, sent: SentRequest, expected: Expectations) -> OpenedReply:
    """Read the head and the response manifest; checks 1, 2, 9 to 11, 14, 15, 17."""
    head = parse_wire(ReplyHead, read_head(source), what="reply head")
    require_chunk_bytes(head.chunk_bytes)
    if head.transfer_id != sent.keys.transfer_id.hex():
        raise ReplayError("the reply answers another transfer")
    keys = derive_stream_keys(
        sent.keys.content_key,
        direction=Direction.REPLY,
        manifest_digest=sent.keys.manifest_digest,
        nonce=bytes.fromhex(head.stream_nonce),
    )
    check_commitment(keys, bytes.fromhex(head.commitment))
    reader = ChunkReader(
        source,
        ChunkCipher(keys, transfer_id=sent.keys.transfer_id, direction=Direction.REPLY),
        direction=Direction.REPLY,
        chunk_bytes=head.chunk_bytes,
        manifest_digest=sent.keys.manifest_digest,
    )
    manifest = parse_wire(ResponseManifest, reader.manifest(), what="response manifest")
    check_response(
        manifest,
        expected,
        tokens=sent.tokens,
        base_tokens=sent.base_tokens,
        request_sha256=sent.sealed_manifest_sha256,
    )
    return OpenedReply(manifest, reader, sent, nonce=bytes.fromhex(head.stream_nonce))


@dataclass(slots=True)
class OpenedReply:
    """A reply whose manifest is authentic; what follows is verified as it is read."""

    manifest: ResponseManifest
    reader: ChunkReader
    sent: SentRequest
    receipt: Receipt | None = None
    was_refused: bool = False
    nonce: bytes = b""

    def __post_init__(self) -> None:
        self.was_refused = self.manifest.kind == "refusal"

    def receive_cache(
        self, sink: Sink[T], sizes: Iterator[int], *, data_bytes: int, check_receipt: Callable[[Receipt], None]
    ) -> VerifiedTransfer[T]:
        """Receive a cache and the receipt behind it; on any failure, the receipt's included, the sink is wiped."""

        def check_tail(tail: bytes) -> None:
            self.receipt = read_receipt_region(tail)
            check_receipt(self.receipt)

        return finish_verified(
            self.reader,
            sink,
            sizes,
            data_bytes=data_bytes + RECEIPT_BYTES,
            sender=self.sent.receipt_public_key,
            tail_bytes=RECEIPT_BYTES,
            check_tail=check_tail,
        )

    def frames(self) -> Iterator[Frame]:
        """Yield verified frames in order up to the end, then read padding, receipt and trailer.

        Raises VerificationError kinds at the first fault; what was yielded before stays valid, and is incomplete.
        """
        try:
            yield from self._frames(self.manifest.frames)
        finally:
            self.reader.wipe()

    def _frames(self, count: int) -> Iterator[Frame]:
        self.reader.expect(count * FRAME_CHUNK_BYTES + RECEIPT_BYTES)
        ended = False
        for _ in range(count):
            frame = parse_frame(self.reader.read(FRAME_CHUNK_BYTES))
            if ended and frame.kind is not FrameKind.PAD:
                raise ManifestError("frames follow the end of the answer")
            if frame.kind is FrameKind.PAD and not ended:
                raise TruncatedError("the answer has no end frame before its padding")
            if frame.kind is FrameKind.REFUSAL:
                self.was_refused = True
                raise refusal_error(frame.code)
            ended = ended or frame.kind is FrameKind.END
            if frame.kind is not FrameKind.PAD:
                yield frame
        self._finish()
        if not ended:
            raise TruncatedError("the answer has no end frame")

    def receive_closed(self) -> None:
        """Verify the answer to a session's end, or to its beginning, which is its receipt alone."""
        self.reader.expect(RECEIPT_BYTES)
        self._finish()

    def refuse(self) -> SplitInferError:
        """Verify a sealed refusal to its end and return the error that it names."""
        self.reader.expect(RECEIPT_BYTES)
        self._finish()
        refusal = self.manifest.refusal
        return refusal_error(refusal.code, refusal) if refusal else ManifestError("the refusal names no code")

    def _finish(self) -> None:
        self.receipt = read_receipt_region(self.reader.read(RECEIPT_BYTES))
        self.reader.finish(self.sent.receipt_public_key)
        self.reader.wipe()


# What the cloud may say of a request; it cannot speak for the device's own policy, log or state.
_NAMEABLE = (VerificationError, ModelError, CodecError, PromptError, UsageError)


def refusal_error(code: str, refusal: RefusalWire | None = None) -> SplitInferError:
    """Return the typed error for a sealed refusal; any other code becomes RemoteRefusedError."""
    fields = ", ".join(f"{name} {value}" for name, value in sorted(refusal.fields.items())) if refusal else ""
    message = f"the cloud refused the transfer: {code}{f' ({fields})' if fields else ''}"
    kind = error_for_code(code)
    if kind is None or not issubclass(kind, _NAMEABLE):
        return RemoteRefusedError(message, remote_code=code)
    return kind(message, fields=refusal.fields if refusal else None)
