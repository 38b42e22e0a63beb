"""The flow on the recipient, the twin of `flow`: sealed request in, sealed reply out; knows no HTTP.

    keyset   -> signed keyset and a one-time nonce
    prefill  -> request head, sealed manifest, token ids -> prefill -> cache while it grows, receipt
    decode   -> request head, sealed manifest, cache -> decode -> token frames, receipt
    close    -> request head, sealed manifest -> receipt
    session  -> request head, sealed manifest -> receipt, then a record down for each record up (`rounds`)
    state    -> how far a transfer is whose connection was lost
    resume   -> the rest of its request, the rest of its reply

What is wrong before the content key is known is raised, and the door answers with a code; what is wrong after it is
answered by a sealed refusal; a model that fails once the reply has begun breaks it off. Nothing private is kept unless
the device lets: then `sessions` has the cache until the next turn and the receipt says `kept`; else it is wiped before
the receipt says `erased`. Caches of public text stay in `prefixes`, for the device that sent it. A transfer whose
connection was lost is parked as it is (`parked`), until it goes on or its time is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from splitinfer import codec, schedule
from splitinfer.attestation.keyset import Replica
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud.answer import Answer, Pieces
from splitinfer.cloud.parked import Parking
from splitinfer.cloud.prefixes import Prefixes, PrefixLimits
from splitinfer.cloud.recipient import Recipient
from splitinfer.cloud.remains import Remains
from splitinfer.cloud.resuming import Resuming
from splitinfer.cloud.rounds import MakeHalf, Rounds
from splitinfer.cloud.sessions import SessionLimits, Sessions, Turn
from splitinfer.codec.transform import Artefact
from splitinfer.errors import LayoutMismatchError, ManifestError, SplitInferError, TransportError, UsageError
from splitinfer.handoff import CloudReply, PackedCache, Route, Source
from splitinfer.model.embeddings import Rows
from splitinfer.model.engine import Decoding, Engine
from splitinfer.receive.expectations import Expectations, check_request
from splitinfer.receive.intake import OpenedRequest, open_request
from splitinfer.receive.tokens import TOKEN_BYTES, RowSink, TokenSink, slab_tokens
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
        sessions: SessionLimits | None = None,
        prefixes: PrefixLimits | None = None,
        halves: Mapping[str, MakeHalf] | None = None,
        artefact: Artefact | None = None,
    ) -> None:
        self._engine, self._halves, self._artefact = engine, halves or {}, artefact
        self._sessions = Sessions(sessions or SessionLimits(), model=ModelWire.of(engine.identity), clock=clock)
        self._prefixes = Prefixes(
            prefixes or PrefixLimits(), model=engine.identity, numerics=engine.numerics, randomness=randomness
        )
        self._recipient = Recipient(replica, allowed, clock, randomness)
        self._expected = Expectations(
            engine.identity,
            engine.layout,
            engine.max_positions,
            engine.vocabulary,
            artefact.digest if artefact else None,
        )
        self._model_lock = threading.Lock()
        self._randomness = randomness
        self._parking = Parking(clock=clock)
        self._resuming = Resuming(self._parking, self._recipient)

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Answer one call (see `handoff.Cloud`)."""
        if route is Route.KEYSET:
            data = self._recipient.keyset_reply()
            return CloudReply(len(data), iter([data]))
        if route is Route.STATE:
            return self._resuming.state(body)
        if route is Route.RESUME:
            return self._resuming.resume(body)
        if route is Route.SESSION:
            return self._session(body)
        if route not in (Route.PREFILL, Route.DECODE):
            raise UsageError("there is no such call")
        opened = open_request(body, self._recipient)
        answer = Answer(opened, self._recipient, self._randomness)
        return self._parking.begin(opened, answer, lambda: self._transfer(opened, answer, route))

    def drop_expired(self) -> None:
        """Forget keys, sessions and parked transfers that have expired; call it now and then, as nobody else may."""
        self._recipient.drop_expired()
        self._parking.drop_expired()
        self._sessions.drop_expired()

    @property
    def held_sessions(self) -> int:
        """Return of how many sessions a cache is kept for a next turn."""
        return len(self._sessions)

    def close(self) -> None:
        """Wipe all that is parked or kept between requests; nothing is kept from now on. Idempotent."""
        self._parking.close()
        self._sessions.close()
        self._prefixes.close()

    def _session(self, body: Source) -> CloudReply:
        """Read the opening of a session and begin its rounds; a lost connection is its end."""
        opened = open_request(body, self._recipient)
        opened.reader.is_followed = True
        answer = Answer(opened, self._recipient, self._randomness)
        try:
            manifest = answer.manifest = opened.manifest()
            check_request(manifest, self._expected)
            if manifest.kind != "rounds":
                raise ManifestError("the sealed manifest asks for another route than it came by")
            verified = opened.receive(_Nothing(), iter(()), data_bytes=0)
            make = self._halves.get(manifest.protection)
            if make is None:
                raise UsageError(f"this cloud does not offer {manifest.protection}")
            half = make(opened.sender)
        except TransportError:
            raise
        except SplitInferError as error:
            return answer.refusal(error)
        answer.log("received", verified.chunk_count)
        answer.log("opened", 1)
        response = self._response(answer, kind="rounds", manifest=manifest)
        return CloudReply(None, Rounds(body, opened, answer, half, response=response))

    def _transfer(self, opened: OpenedRequest, answer: Answer, route: Route) -> CloudReply:
        """Read the request and begin its reply; called again, from here, when it goes on after a lost source."""
        try:
            manifest = answer.manifest = opened.manifest()
            check_request(manifest, self._expected)
            if route is not _ROUTES[manifest.kind]:
                raise ManifestError("the sealed manifest asks for another route than it came by")
            if manifest.kind == "close":
                return self._close(opened, manifest, answer)
            return self._in_turn(opened, manifest, answer)
        except TransportError:
            raise
        except SplitInferError as error:
            return answer.refusal(error)

    def _in_turn(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer) -> CloudReply:
        """Prefill or decode with the session to itself; the cache that it went on from is not there afterwards."""
        turn = answer.turn = answer.turn or self._sessions.begin(opened.sender, manifest)
        run = {"prefill": self._prefill, "rows": self._prefill_rows}.get(manifest.kind, self._decode)
        try:
            return run(opened, manifest, answer, turn)
        except TransportError:
            # The transfer may go on, and then needs its base.
            raise
        except BaseException:
            turn.drop_base()
            raise

    def _close(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer) -> CloudReply:
        """Wipe what is held of the session, then answer with the receipt alone."""
        verified = opened.receive(_Nothing(), iter(()), data_bytes=0)
        answer.log("received", verified.chunk_count)
        answer.log("opened", 1)
        self._sessions.forget(opened.sender, manifest.session.session_id)
        response = self._response(answer, kind="closed", manifest=manifest)
        pieces = answer.closed_pieces()
        return answer.reply(response, pieces, data_bytes=0, chunk_bytes=FRAME_CHUNK_BYTES, wipe=lambda: None)

    def _prefill(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer, turn: Turn) -> CloudReply:
        """Prompt in, cache out, each slab as soon as it may leave; the last ones after the padding time.

        The lock is held a step at a time, so that a long prompt does not keep others waiting.
        """
        token_ids, root = self._token_ids(opened, manifest, answer)
        held, keep = turn.base, partial(turn.keep, root=root)
        if manifest.public:
            held = held or self._prefixes.find(opened.sender, token_ids, manifest.steps)
            keep = partial(self._prefixes.put, opened.sender, token_ids, manifest.steps)
        reused = held.true_tokens if held else 0
        if reused:
            answer.log("reused", reused)
        cache = self._grown(token_ids, manifest, held)
        remains = Remains(cache, keep, base=None if cache is held else held)
        return self._sent(cache, remains, manifest, answer, prefilled=manifest.tokens.true - reused)

    def _prefill_rows(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer, turn: Turn) -> CloudReply:
        """Embedding rows in, cache out, as `_prefill` does; nothing is kept of it, and nothing is gone on from."""
        with self._model_lock:
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
        response = self._response(answer, kind="cache", manifest=manifest, coded_bytes=coded_bytes)

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
                guard=self._model_lock,
                rows=rows,
            )
        with self._model_lock:
            self._engine.burn(padded - held.true_tokens)
        return held

    def _decode(self, opened: OpenedRequest, manifest: RequestManifest, answer: Answer, turn: Turn) -> CloudReply:
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
            with self._model_lock:
                decoding = self._engine.decode(snapshot, last_token=manifest.last_token, params=params)
        except BaseException:
            remains.wipe()
            raise

        def forget() -> None:
            decoding.close()
            remains.wipe()

        frames = frame_count(params.max_new_tokens)
        response = self._response(answer, kind="tokens", manifest=manifest, frames=frames)
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
                with self._model_lock:
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

    def _response(
        self,
        answer: Answer,
        *,
        kind: Literal["cache", "tokens", "closed", "rounds"],
        manifest: RequestManifest,
        frames: int = 0,
        coded_bytes: int | None = None,
    ) -> ResponseManifest:
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


class _Nothing:
    """The sink of a request without contents."""

    def slab(self) -> memoryview:
        """Refuse: there is no slab."""
        raise LayoutMismatchError("a request that closes a session has no contents")

    def finish(self) -> None:
        """Return nothing."""

    def wipe(self) -> None:
        """Do nothing."""


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


_ROUTES = {
    "prefill": Route.PREFILL,
    "rows": Route.PREFILL,
    "close": Route.PREFILL,
    "decode": Route.DECODE,
    "rounds": Route.SESSION,
}
