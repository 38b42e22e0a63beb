"""The flow on the recipient, the twin of `session`: sealed request in, sealed reply out; knows no HTTP.

    keyset   -> signed keyset and a one-time nonce
    prefill  -> request head, sealed manifest, token ids -> prefill -> cache, receipt
    decode   -> request head, sealed manifest, cache -> decode -> token frames, receipt

What is wrong before the content key is known is raised, and the door answers with a code; what is wrong after it is
answered by a sealed refusal. Nothing private is kept: the cache is wiped before the receipt says `erased`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from splitinfer import codec, schedule
from splitinfer.attestation.keyset import Replica, ReplicaKeys
from splitinfer.attestation.sender import sender_id
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.errors import LayoutMismatchError, ManifestError, SplitInferError, StaleKeysetError, UsageError
from splitinfer.handoff import CloudReply, PackedCache, Route, Source
from splitinfer.model.engine import Decoding, Engine
from splitinfer.receive.expectations import Expectations, check_request
from splitinfer.receive.intake import OpenedRequest, open_request
from splitinfer.receive.recipient import NonceTable, TransferTable
from splitinfer.receive.tokens import TOKEN_BYTES, TokenSink
from splitinfer.sealing.frames import end_frame, frame_count, pad_frame, refusal_frame, token_frame
from splitinfer.sealing.heads import PublicManifest
from splitinfer.sealing.manifest import (
    CacheWire,
    ModelWire,
    NumericsWire,
    RefusalWire,
    RequestManifest,
    ResponseManifest,
)
from splitinfer.sealing.receipt import RECEIPT_BYTES, Event, ReceiptBody, receipt_region, sign_receipt
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES
from splitinfer.sealing.transfer import SealedBody, TransferKeys, seal_reply
from splitinfer.sealing.wire import VERSION

__all__ = ["CloudService"]

Pieces = Iterator[memoryview | bytes]


class CloudService:
    """One replica with one model. Safe for several threads: the model is used under a lock, one step at a time."""

    def __init__(
        self,
        engine: Engine,
        replica: Replica,
        *,
        allowed: Callable[[], Sequence[bytes]],
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
    ) -> None:
        self._engine = engine
        self._recipient = _Recipient(replica, allowed, clock, randomness)
        self._expected = Expectations(engine.identity, engine.layout, engine.max_positions, engine.vocabulary)
        self._model_lock = threading.Lock()
        self._randomness = randomness

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Answer one call (see `handoff.Cloud`)."""
        if route is Route.KEYSET:
            data = self._recipient.keyset_reply()
            return CloudReply(len(data), iter([data]))
        if route not in _KINDS:
            raise UsageError("there is no such call")
        return self._transfer(open_request(body, self._recipient), kind=_KINDS[route])

    def drop_expired(self) -> None:
        """Forget keys that have expired; the process calls it now and then, so that an idle replica does too."""
        self._recipient.drop_expired()

    def _transfer(self, opened: OpenedRequest, *, kind: str) -> CloudReply:
        answer = _Answer(opened, self._recipient, self._randomness)
        try:
            manifest = answer.manifest = opened.manifest()
            check_request(manifest, self._expected)
            if manifest.kind != kind:
                raise ManifestError("the sealed manifest asks for another route than it came by")
            run = self._prefill if kind == "prefill" else self._decode
            return run(opened, manifest, answer)
        except SplitInferError as error:
            return answer.refusal(error)

    def _prefill(self, opened: OpenedRequest, manifest: RequestManifest, answer: _Answer) -> CloudReply:
        """Prompt in, cache out. The cache is computed before the first byte of the reply, padding time included."""
        true, padded = manifest.tokens.true, manifest.tokens.padded
        sink = TokenSink(true_tokens=true, padded_tokens=padded, vocabulary=self._expected.vocabulary)
        size = padded * TOKEN_BYTES
        verified = opened.receive(sink, iter([size]), data_bytes=size)
        answer.log("received", verified.chunk_count)
        token_ids = verified.payload
        answer.log("opened", 1)
        snapshot = self._prefilled(token_ids, manifest.steps)
        with self._model_lock:
            self._engine.burn(padded - true)
        answer.log("prefilled", true)
        packed = _packed(snapshot, manifest)
        total = packed.size_bytes
        coded_bytes = total if packed.is_variable else None
        response = self._response(answer, kind="cache", manifest=manifest, coded_bytes=coded_bytes)
        return answer.reply(
            response,
            answer.cache_pieces(packed),
            data_bytes=total,
            chunk_bytes=schedule.cache_chunk_bytes(total),
            wipe=packed.wipe,
        )

    def _prefilled(self, token_ids: tuple[int, ...], steps: Sequence[tuple[int, int]]) -> CacheSnapshot:
        """Prefill with the lock held a step at a time, so that a long prompt does not keep others waiting."""
        snapshot: CacheSnapshot | None = None
        for step in steps:
            with self._model_lock:
                snapshot = self._engine.prefill(token_ids, steps=[step], onto=snapshot)
        if snapshot is None:
            raise LayoutMismatchError("a prefill request names no steps")
        return snapshot

    def _decode(self, opened: OpenedRequest, manifest: RequestManifest, answer: _Answer) -> CloudReply:
        """Cache in, tokens out; each token's frame is sealed as soon as the token exists."""
        if manifest.sampling is None or manifest.last_token is None:
            raise LayoutMismatchError("a decode request names sampling and a last token")
        params = manifest.sampling.params()
        sink = codec.sink(
            self._expected.layout,
            codec=manifest.codec,
            true_tokens=manifest.tokens.true,
            padded_tokens=manifest.tokens.padded,
            coded_bytes=manifest.coded_bytes,
        )
        verified = opened.receive(sink, sink.sizes(), data_bytes=sink.size_bytes)
        answer.log("received", verified.chunk_count)
        snapshot = verified.payload
        answer.log("opened", 1)
        try:
            with self._model_lock:
                decoding = self._engine.decode(snapshot, last_token=manifest.last_token, params=params)
        except BaseException:
            wipe(snapshot)
            raise

        def forget() -> None:
            decoding.close()
            wipe(snapshot)

        frames = frame_count(params.max_new_tokens)
        response = self._response(answer, kind="tokens", manifest=manifest, frames=frames)
        return answer.reply(
            response,
            answer.token_pieces(self._frames(decoding, forget, answer, frames)),
            data_bytes=frames * FRAME_CHUNK_BYTES,
            chunk_bytes=FRAME_CHUNK_BYTES,
            wipe=forget,
        )

    def _frames(self, decoding: Decoding, forget: Callable[[], None], answer: _Answer, frames: int) -> Pieces:
        sent = 0
        try:
            while True:
                with self._model_lock:
                    step = next(decoding, None)
                if step is None:
                    break
                sent += 1
                yield token_frame(step[0])
            yield end_frame(decoding.finish_reason or "length")
        except SplitInferError as error:
            answer.log("refused", 1)
            yield refusal_frame(error.code)
        finally:
            forget()
        answer.log("decoded", sent)
        for _ in range(frames - sent - 1):
            yield pad_frame()

    def _response(
        self,
        answer: _Answer,
        *,
        kind: str,
        manifest: RequestManifest,
        frames: int = 0,
        coded_bytes: int | None = None,
    ) -> ResponseManifest:
        is_cache = kind == "cache"
        return ResponseManifest(
            version=VERSION,
            kind="cache" if is_cache else "tokens",
            request_manifest_sha256=answer.request_sha256,
            codec=manifest.codec,
            model=ModelWire.of(self._engine.identity),
            numerics=NumericsWire.of(self._engine.numerics),
            tokens=manifest.tokens if is_cache else None,
            cache=CacheWire.of(self._expected.layout) if is_cache else None,
            coded_bytes=coded_bytes,
            frames=frames,
            refusal=None,
        )


def _packed(snapshot: CacheSnapshot, manifest: RequestManifest) -> PackedCache:
    try:
        return codec.pack(snapshot, codec=manifest.codec, padded_tokens=manifest.tokens.padded)
    except BaseException:
        wipe(snapshot)
        raise


_KINDS = {Route.PREFILL: "prefill", Route.DECODE: "decode"}


class _Recipient:
    """What intake asks of this replica: its clock, keysets, senders, nonces and transfers."""

    def __init__(
        self,
        replica: Replica,
        allowed: Callable[[], Sequence[bytes]],
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
    ) -> None:
        self._replica, self._allowed, self._clock = replica, allowed, clock
        self._nonces = NonceTable(clock=clock, randomness=randomness)
        self._transfers = TransferTable(clock=clock)
        self._lock = threading.Lock()

    def now(self) -> int:
        return int(self._clock())

    def keyset(self, digest_hex: str) -> ReplicaKeys | None:
        with self._lock:
            return self._replica.find(digest_hex)

    def drop_expired(self) -> None:
        with self._lock:
            self._replica.drop_expired()

    def sender(self, found: str, keyset_digest: bytes) -> bytes | None:
        return next((key for key in self._allowed() if sender_id(keyset_digest, key) == found), None)

    def use_nonce(self, nonce: str) -> None:
        self._nonces.use(nonce)

    def begin(self, sender: bytes, manifest: PublicManifest) -> None:
        self._transfers.begin(sender, manifest.transfer_id, expires_at=manifest.expires_at)

    def keyset_reply(self) -> bytes:
        with self._lock:
            return self._replica.reply(self._nonces.issue())


class _Answer:
    """One reply in the making: the events of its receipt, and the stream that carries it."""

    def __init__(self, opened: OpenedRequest, recipient: _Recipient, randomness: Callable[[int], bytes]) -> None:
        self._opened, self._recipient, self._randomness = opened, recipient, randomness
        held = recipient.keyset(opened.head.manifest.keyset_digest)
        if held is None:
            raise StaleKeysetError("the keyset expired while the request was read; fetch the keyset again")
        self._held = held
        self._events: list[Event] = []
        self.manifest: RequestManifest | None = None

    @property
    def request_sha256(self) -> str:
        return self._opened.sealed_manifest_sha256

    def log(self, event: str, count: int) -> None:
        self._events.append(Event.model_validate({"event": event, "count": count}))

    def cache_pieces(self, packed: PackedCache) -> Pieces:
        try:
            yield from packed.slabs()
        finally:
            packed.wipe()
        self.log("erased", 1)
        yield self._receipt()

    def token_pieces(self, frames: Pieces) -> Pieces:
        yield from frames
        self.log("erased", 1)
        yield self._receipt()

    def refusal(self, error: SplitInferError) -> CloudReply:
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
            model=None,
            numerics=None,
            tokens=None,
            cache=None,
            coded_bytes=None,
            frames=0,
            refusal=refusal,
        )
        receipt = iter([self._receipt()])
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
        head = self._opened.head.manifest
        keys = TransferKeys(bytes.fromhex(head.transfer_id), self._opened.content_key, self._opened.manifest_digest)
        try:
            body = seal_reply(
                pieces,
                response_manifest=response.to_bytes(),
                following_bytes=data_bytes + RECEIPT_BYTES,
                chunk_bytes=chunk_bytes,
                keys=keys,
                signer=self._held.signer,
                randomness=self._randomness,
            )
        except BaseException:
            wipe()
            raise
        return CloudReply(body.body_bytes, _Body(body, wipe))

    def _receipt(self) -> bytes:
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
