"""The flow on the recipient, the twin of `flow`: sealed request in, sealed reply out; knows no HTTP.

    keyset   -> signed keyset and a one-time nonce
    prefill  -> request head, sealed manifest, token ids -> prefill -> cache while it grows, receipt
    decode   -> request head, sealed manifest, cache -> decode -> token frames, receipt

What is wrong before the content key is known is raised, and the door answers with a code; what is wrong after it is
answered by a sealed refusal; a model that fails once the reply has begun breaks it off. Nothing private is kept: the
cache is wiped before the receipt says `erased`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from splitinfer import codec, schedule
from splitinfer.attestation.keyset import Replica
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import wipe
from splitinfer.cloud.answer import Answer, Pieces
from splitinfer.cloud.recipient import Recipient
from splitinfer.errors import LayoutMismatchError, ManifestError, SplitInferError, UsageError
from splitinfer.handoff import CloudReply, PackedCache, Route, Source
from splitinfer.model.engine import Decoding, Engine
from splitinfer.receive.expectations import Expectations, check_request
from splitinfer.receive.intake import OpenedRequest, open_request
from splitinfer.receive.tokens import TOKEN_BYTES, TokenSink
from splitinfer.sealing.frames import end_frame, frame_count, pad_frame, refusal_frame, token_frame
from splitinfer.sealing.manifest import (
    CacheWire,
    ModelWire,
    NumericsWire,
    RequestManifest,
    ResponseManifest,
)
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES
from splitinfer.sealing.wire import VERSION

__all__ = ["CloudService"]


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
        self._recipient = Recipient(replica, allowed, clock, randomness)
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
        answer = Answer(opened, self._recipient, self._randomness)
        try:
            manifest = answer.manifest = opened.manifest()
            check_request(manifest, self._expected)
            if manifest.kind != kind:
                raise ManifestError("the sealed manifest asks for another route than it came by")
            run = self._prefill if kind == "prefill" else self._decode
            return run(opened, manifest, answer)
        except SplitInferError as error:
            return answer.refusal(error)

    def _prefill(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer) -> CloudReply:
        """Prompt in, cache out, each slab as soon as it may leave; the last ones after the padding time.

        The lock is held a step at a time, so that a long prompt does not keep others waiting.
        """
        true, padded = manifest.tokens.true, manifest.tokens.padded
        sink = TokenSink(true_tokens=true, padded_tokens=padded, vocabulary=self._expected.vocabulary)
        size = padded * TOKEN_BYTES
        verified = opened.receive(sink, iter([size]), data_bytes=size)
        answer.log("received", verified.chunk_count)
        answer.log("opened", 1)
        growing = self._engine.start_prefill(
            verified.payload, steps=manifest.steps, padded_tokens=padded, guard=self._model_lock
        )
        packed = _packed(growing, manifest)
        total = packed.size_bytes
        coded_bytes = total if packed.is_variable else None
        response = self._response(answer, kind="cache", manifest=manifest, coded_bytes=coded_bytes)
        return answer.reply(
            response,
            answer.cache_pieces(packed),
            data_bytes=total,
            chunk_bytes=schedule.cache_chunk_bytes(total),
            wipe=packed.wipe,
            stop=growing.stop,
        )

    def _decode(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer) -> CloudReply:
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

    def _frames(self, decoding: Decoding, forget: Callable[[], None], answer: Answer, frames: int) -> Pieces:
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
        answer: Answer,
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


def _packed(growing: GrowingCache, manifest: RequestManifest) -> PackedCache:
    try:
        return codec.pack(growing, codec=manifest.codec, padded_tokens=manifest.tokens.padded)
    except BaseException:
        growing.wipe()
        raise


_KINDS = {Route.PREFILL: "prefill", Route.DECODE: "decode"}
