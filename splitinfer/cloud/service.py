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

from collections.abc import Callable, Mapping, Sequence

from splitinfer.attestation.keyset import Replica
from splitinfer.cloud.answer import Answer
from splitinfer.cloud.computing import Computing
from splitinfer.cloud.parked import Parking
from splitinfer.cloud.prefixes import Prefixes, PrefixLimits
from splitinfer.cloud.recipient import Recipient
from splitinfer.cloud.resuming import Resuming
from splitinfer.cloud.rounds import MakeHalf, Rounds
from splitinfer.cloud.sessions import SessionLimits, Sessions
from splitinfer.codec.transform import Artefact
from splitinfer.errors import LayoutMismatchError, ManifestError, SplitInferError, TransportError, UsageError
from splitinfer.handoff import CloudReply, Route, Source
from splitinfer.model.engine import Engine
from splitinfer.receive.expectations import Expectations, check_request
from splitinfer.receive.intake import OpenedRequest, open_request
from splitinfer.sealing.manifest import (
    ModelWire,
    RequestManifest,
)
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES

__all__ = ["CloudService"]


class CloudService:
    """One replica with one model. Safe for several threads: the model is used under a lock, a step at a time."""

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
        self._halves = halves or {}
        self._sessions = Sessions(sessions or SessionLimits(), model=ModelWire.of(engine.identity), clock=clock)
        self._recipient = Recipient(replica, allowed, clock, randomness)
        self._expected = Expectations(
            engine.identity,
            engine.layout,
            engine.max_positions,
            engine.vocabulary,
            artefact.digest if artefact else None,
        )
        held = Prefixes(
            prefixes or PrefixLimits(), model=engine.identity, numerics=engine.numerics, randomness=randomness
        )
        self._computing = Computing(engine, expected=self._expected, prefixes=held, artefact=artefact)
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
        self._computing.prefixes.close()

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
        response = self._computing.response(answer, kind="rounds", manifest=manifest)
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
        computing = self._computing
        run = {"prefill": computing.prefill, "rows": computing.prefill_rows}.get(manifest.kind, computing.decode)
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
        response = self._computing.response(answer, kind="closed", manifest=manifest)
        pieces = answer.closed_pieces()
        return answer.reply(response, pieces, data_bytes=0, chunk_bytes=FRAME_CHUNK_BYTES, wipe=lambda: None)


class _Nothing:
    """The sink of a request without contents."""

    def slab(self) -> memoryview:
        """Refuse: there is no slab."""
        raise LayoutMismatchError("a request that closes a session has no contents")

    def finish(self) -> None:
        """Return nothing."""

    def wipe(self) -> None:
        """Do nothing."""


_ROUTES = {
    "prefill": Route.PREFILL,
    "rows": Route.PREFILL,
    "close": Route.PREFILL,
    "decode": Route.DECODE,
    "rounds": Route.SESSION,
}
