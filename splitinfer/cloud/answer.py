"""One reply in the making: response manifest, pieces and receipt, sealed under the request's content key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from splitinfer.cloud.recipient import Recipient
from splitinfer.cloud.remains import Remains
from splitinfer.cloud.sessions import Turn
from splitinfer.errors import SplitInferError, StaleKeysetError
from splitinfer.handoff import CloudReply, PackedCache
from splitinfer.receive.intake import OpenedRequest
from splitinfer.sealing.manifest import RefusalWire, RequestManifest, ResponseManifest
from splitinfer.sealing.receipt import RECEIPT_BYTES, Event, ReceiptBody, receipt_region, sign_receipt
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES
from splitinfer.sealing.transfer import SealedBody, TransferKeys, seal_reply
from splitinfer.sealing.wire import VERSION

__all__ = ["Answer", "Pieces"]

Pieces = Iterator[memoryview | bytes]


class Answer:
    """One reply in the making: the events of its receipt, and the stream that carries it."""

    def __init__(self, opened: OpenedRequest, recipient: Recipient, randomness: Callable[[int], bytes]) -> None:
        self._opened, self._recipient, self._randomness = opened, recipient, randomness
        held = recipient.keyset(opened.head.manifest.keyset_digest)
        if held is None:
            raise StaleKeysetError("the keyset expired while the request was read; fetch the keyset again")
        self._held = held
        self._events: list[Event] = []
        self.manifest: RequestManifest | None = None
        self.turn: Turn | None = None
        self.was_refused = False

    def wipe(self) -> None:
        """Give up a request that is not answered yet: the cache that its turn goes on from is wiped; idempotent."""
        if self.turn is not None:
            self.turn.drop_base()

    @property
    def request_sha256(self) -> str:
        """Return the digest of the request's sealed manifest; empty before that was opened."""
        return self._opened.sealed_manifest_sha256

    def log(self, event: str, count: int) -> None:
        """Note an event for the receipt."""
        self._events.append(Event.model_validate({"event": event, "count": count}))

    def cache_pieces(self, packed: PackedCache, remains: Remains, *, prefilled: int) -> Pieces:
        """Yield the slabs as they come, keep or wipe the cache, yield the receipt that says which."""
        try:
            yield from packed.slabs()
            self.log("prefilled", prefilled)
            receipt = self._settled(remains)
        finally:
            packed.wipe()
            remains.wipe()
        yield receipt

    def token_pieces(self, frames: Pieces, remains: Remains) -> Pieces:
        """Yield the frames, keep or wipe their cache, yield the receipt that says which."""
        try:
            yield from frames
            receipt = self._settled(remains)
        finally:
            remains.wipe()
        yield receipt

    def closed_pieces(self) -> Pieces:
        """Yield the receipt of a session's end; what was held of it is wiped by then."""
        self.log("erased", 1)
        yield self.receipt()

    def _settled(self, remains: Remains) -> bytes:
        kept = remains.settle()
        self.log("kept" if kept else "erased", kept or 1)
        return self.receipt()

    def refusal(self, error: SplitInferError) -> CloudReply:
        """Return a sealed refusal with a receipt."""
        self.was_refused = True
        if not self._events:
            self.log("received", self._opened.reader.count)
        self.log("refused", 1)
        self.log("erased", 1)
        refusal = RefusalWire(code=error.code, fields=dict(error.fields))
        response = ResponseManifest(
            version=VERSION,
            kind="refusal",
            request_manifest_sha256=self.request_sha256 or "0" * 64,
            codec="raw",
            artefact_sha256=None,
            model=None,
            numerics=None,
            tokens=None,
            cache=None,
            coded_bytes=None,
            frames=0,
            refusal=refusal,
        )
        receipt = iter([self.receipt()])
        return self.reply(response, receipt, data_bytes=0, chunk_bytes=FRAME_CHUNK_BYTES, wipe=lambda: None)

    def reply(
        self,
        response: ResponseManifest,
        pieces: Pieces,
        *,
        data_bytes: int,
        chunk_bytes: int,
        wipe: Callable[[], None],
    ) -> CloudReply:
        """Seal a reply: manifest, `data_bytes` of pieces, receipt; `wipe` is called when its body is closed."""
        try:
            body = self._sealed(response, pieces, following_bytes=data_bytes + RECEIPT_BYTES, chunk_bytes=chunk_bytes)
        except BaseException:
            wipe()
            raise
        return CloudReply(body.body_bytes, _Body(body, wipe))

    def beginning(self, response: ResponseManifest) -> SealedBody:
        """Seal the answer to a session's beginning: a manifest and the receipt of what was received so far."""
        pieces = iter([self.receipt()])
        return self._sealed(response, pieces, following_bytes=RECEIPT_BYTES, chunk_bytes=FRAME_CHUNK_BYTES)

    def _sealed(
        self, response: ResponseManifest, pieces: Pieces, *, following_bytes: int, chunk_bytes: int
    ) -> SealedBody:
        return seal_reply(
            pieces,
            response_manifest=response.to_bytes(),
            following_bytes=following_bytes,
            chunk_bytes=chunk_bytes,
            keys=self.keys,
            signer=self._held.signer,
            randomness=self._randomness,
        )

    @property
    def keys(self) -> TransferKeys:
        """Return what ties the reply to its request."""
        head = self._opened.head.manifest
        return TransferKeys(bytes.fromhex(head.transfer_id), self._opened.content_key, self._opened.manifest_digest)

    def recount(self, event: str, count: int) -> None:
        """Note an event of which there is one with a smaller count already."""
        self._events = [held for held in self._events if held.event != event]
        self.log(event, count)

    def receipt(self) -> bytes:
        """Return a receipt block of what happened so far."""
        head = self._opened.head.manifest
        body = ReceiptBody(
            version=VERSION,
            transfer_id=head.transfer_id,
            manifest_sha256=self._opened.manifest_digest.hex(),
            ciphertext_root=self._opened.reader.root().hex(),
            replica_id=self._held.keyset.certificate.body.replica_id,
            keyset_digest=head.keyset_digest,
            protection=self.manifest.protection if self.manifest else "sealed",
            log_checkpoint=self.manifest.log_checkpoint if self.manifest else "0" * 64,
            served_at=self._recipient.now(),
            events=self._events,
        )
        return receipt_region(sign_receipt(body, signer=self._held.signer))


class _Body(Iterator[memoryview | bytes]):
    """A reply's bytes; closing them, even before the first was read, wipes what they are made from."""

    def __init__(self, body: SealedBody, wipe: Callable[[], None]) -> None:
        self._bytes, self._wipe = iter(body), wipe

    def __next__(self) -> memoryview | bytes:
        return next(self._bytes)

    def close(self) -> None:
        self._wipe()
