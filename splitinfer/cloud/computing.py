"""What the model does for one opened request: prompt, rows or cache in -> cache or token frames; cloud side.

`service` has opened the request and given it its turn; here the model is used, under a lock, one step at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Literal

from splitinfer import codec, schedule
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud.answer import Answer, Pieces
from splitinfer.cloud.prefixes import Prefixes
from splitinfer.cloud.remains import Remains
from splitinfer.cloud.sessions import Turn
from splitinfer.codec.transform import Artefact
from splitinfer.errors import LayoutMismatchError, SplitInferError
from splitinfer.handoff import CloudReply, PackedCache
from splitinfer.model.embeddings import Rows
from splitinfer.model.engine import Decoding, Engine
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.intake import OpenedRequest
from splitinfer.receive.tokens import TOKEN_BYTES, RowSink, TokenSink, slab_tokens
from splitinfer.sealing.frames import end_frame, frame_count, pad_frame, refusal_frame, token_frame
from splitinfer.sealing.manifest import CacheWire, ModelWire, NumericsWire, RequestManifest, ResponseManifest
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES
from splitinfer.sealing.wire import VERSION

__all__ = ["Computing"]


class Computing:
    """Prefills and decodes with one model, whose `lock` it holds a step at a time; `prefixes` keep public caches."""

    def __init__(
        self, engine: Engine, *, expected: Expectations, prefixes: Prefixes, artefact: Artefact | None
    ) -> None:
        self._engine, self._expected, self.prefixes, self._artefact = engine, expected, prefixes, artefact
        self.lock = threading.Lock()

    def prefill(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer, turn: Turn) -> CloudReply:
        """Prompt in, cache out, each slab as soon as it may leave; the last ones after the padding time.

        The lock is held a step at a time, so that a long prompt does not keep others waiting.
        """
        token_ids, root = self._token_ids(opened, manifest, answer)
        held, keep = turn.base, partial(turn.keep, root=root)
        if manifest.public:
            held = held or self.prefixes.find(opened.sender, token_ids, manifest.steps)
            keep = partial(self.prefixes.put, opened.sender, token_ids, manifest.steps)
        reused = held.true_tokens if held else 0
        if reused:
            answer.log("reused", reused)
        cache = self._grown(token_ids, manifest, held)
        remains = Remains(cache, keep, base=None if cache is held else held)
        return self._sent(cache, remains, manifest, answer, prefilled=manifest.tokens.true - reused)

    def prefill_rows(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer, turn: Turn) -> CloudReply:
        """Embedding rows in, cache out, as `prefill` does; nothing is kept of it, and nothing is gone on from."""
        with self.lock:
            self._engine.require_only_embeddings()
        tokens, width = manifest.tokens, self._engine.row_bytes
        sink = RowSink(true_tokens=tokens.true, padded_tokens=tokens.padded, row_bytes=width)
        size = tokens.padded * width
        verified = opened.receive(sink, iter([size]), data_bytes=size)
        answer.log("received", verified.chunk_count)
        answer.log("opened", 1)
        rows = self._engine.rows_from(verified.payload)
        cache = self._grown((0,) * tokens.true, manifest, None, rows=rows)
        remains = Remains(cache, partial(turn.keep, root=verified.ciphertext_root.hex()))
        return self._sent(cache, remains, manifest, answer, prefilled=tokens.true)

    def _sent(
        self,
        cache: CacheSnapshot | GrowingCache,
        remains: Remains,
        manifest: RequestManifest,
        answer: Answer,
        *,
        prefilled: int,
    ) -> CloudReply:
        packed = _packed(cache, manifest, remains, self._artefact)
        total = packed.size_bytes
        coded_bytes = total if packed.is_variable else None
        response = self.response(answer, kind="cache", manifest=manifest, coded_bytes=coded_bytes)

        def forget() -> None:
            packed.wipe()
            remains.wipe()

        return answer.reply(
            response,
            answer.cache_pieces(packed, remains, prefilled=prefilled),
            data_bytes=total,
            chunk_bytes=schedule.cache_chunk_bytes(total, is_small=manifest.artefact_sha256 is not None),
            wipe=forget,
        )

    def _token_ids(
        self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer
    ) -> tuple[tuple[int, ...], str]:
        """Receive the token ids; zeros stand for those of the base. Return them and the request's root."""
        base = 0 if manifest.public else manifest.session.base_tokens
        padded = slab_tokens(manifest)
        sink = TokenSink(
            true_tokens=manifest.tokens.true - base, padded_tokens=padded, vocabulary=self._expected.vocabulary
        )
        size = padded * TOKEN_BYTES
        verified = opened.receive(sink, iter([size]), data_bytes=size)
        answer.log("received", verified.chunk_count)
        answer.log("opened", 1)
        return (0,) * base + verified.payload, verified.ciphertext_root.hex()

    def _grown(
        self,
        token_ids: tuple[int, ...],
        manifest: RequestManifest,
        held: CacheSnapshot | None,
        *,
        rows: Rows | None = None,
    ) -> CacheSnapshot | GrowingCache:
        """Prefill onto what is held, in a thread; where all is held, only the padding time is spent."""
        steps = [step for step in manifest.steps if held is None or step[0] >= held.true_tokens]
        padded = manifest.tokens.padded
        if steps or held is None:
            return self._engine.start_prefill(
                token_ids,
                steps=steps,
                onto=held,
                padded_tokens=padded,
                base_tokens=manifest.session.base_tokens,
                guard=self.lock,
                rows=rows,
            )
        with self.lock:
            self._engine.burn(padded - held.true_tokens)
        return held

    def decode(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer, turn: Turn) -> CloudReply:
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
            base=turn.base,
            artefact=self._artefact,
        )
        verified = opened.receive(sink, sink.sizes(), data_bytes=sink.size_bytes)
        answer.log("received", verified.chunk_count)
        snapshot = verified.payload
        answer.log("opened", 1)
        if turn.base is not None:
            answer.log("reused", turn.base.true_tokens)
            turn.drop_base()
        remains = Remains(snapshot, partial(turn.keep, root=verified.ciphertext_root.hex()))
        try:
            with self.lock:
                decoding = self._engine.decode(snapshot, last_token=manifest.last_token, params=params)
        except BaseException:
            remains.wipe()
            raise

        def forget() -> None:
            decoding.close()
            remains.wipe()

        frames = frame_count(params.max_new_tokens)
        response = self.response(answer, kind="tokens", manifest=manifest, frames=frames)
        return answer.reply(
            response,
            answer.token_pieces(self._frames(decoding, forget, answer, frames), remains),
            data_bytes=frames * FRAME_CHUNK_BYTES,
            chunk_bytes=FRAME_CHUNK_BYTES,
            wipe=forget,
        )

    def _frames(self, decoding: Decoding, forget: Callable[[], None], answer: Answer, frames: int) -> Pieces:
        sent = 0
        try:
            while True:
                with self.lock:
                    step = next(decoding, None)
                if step is None:
                    break
                sent += 1
                yield token_frame(step[0])
            decoding.close()
            yield end_frame(decoding.finish_reason or "length")
        except SplitInferError as error:
            forget()
            answer.log("refused", 1)
            yield refusal_frame(error.code)
        except BaseException:
            forget()
            raise
        answer.log("decoded", sent)
        for _ in range(frames - sent - 1):
            yield pad_frame()

    def response(
        self,
        answer: Answer,
        *,
        kind: Literal["cache", "tokens", "closed", "rounds"],
        manifest: RequestManifest,
        frames: int = 0,
        coded_bytes: int | None = None,
    ) -> ResponseManifest:
        """Return the sealed manifest of a reply of this kind to that request."""
        is_cache = kind == "cache"
        return ResponseManifest(
            version=VERSION,
            kind=kind,
            request_manifest_sha256=answer.request_sha256,
            codec=manifest.codec,
            artefact_sha256=manifest.artefact_sha256,
            model=ModelWire.of(self._engine.identity),
            numerics=NumericsWire.of(self._engine.numerics),
            tokens=manifest.tokens if is_cache else None,
            cache=CacheWire.of(self._expected.layout) if is_cache else None,
            coded_bytes=coded_bytes,
            frames=frames,
            refusal=None,
        )


def _packed(
    cache: CacheSnapshot | GrowingCache, manifest: RequestManifest, remains: Remains, artefact: Artefact | None
) -> PackedCache:
    try:
        return codec.pack(
            cache,
            codec=manifest.codec,
            padded_tokens=manifest.tokens.padded,
            base_tokens=manifest.session.base_tokens,
            is_shared=True,
            artefact=artefact,
        )
    except BaseException:
        remains.wipe()
        raise
