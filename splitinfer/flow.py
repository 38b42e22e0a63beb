"""One run on the device, top to bottom: segments in, text pieces out, an `Answer` at the end.

    segments -> labels by policy -> tokens -> plan
    local            prefill here, decode here
    public-prefix    permit -> public tokens up, their cache down -> prefill the rest here -> decode here
                     (or, without a permit, the cache that the store kept of the same tokens)
    sealed-prefill   permit -> prompt up, its cache down -> decode here
    sealed-decode    prefill here -> permit -> cache up while it grows, tokens down
    noised-prefill   charge -> noise -> permit -> noised rows up, their cache down -> decode here
    noised-decode    charge -> noise -> as sealed-decode, of noised rows alone; nothing is remembered
                     (or, by mechanism: charge -> prefill here -> noise on the whole cache -> cache up, tokens down)
    homomorphic      prefill here -> permit -> cache up as ciphertexts -> decode here, in rounds with the cloud
    masked           prefill here -> permit -> decode here, in rounds with the cloud

A later turn of a session goes on from what the device, and under the policy the cloud, hold of the conversation.
Nothing reaches the cloud but through `egress.gate`, and nothing from it is used before `receive` has checked it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from splitinfer import codec, schedule
from splitinfer.answer import Answer, EgressSummary
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.codec.sinks import CacheSink
from splitinfer.conversation import Origin
from splitinfer.device import Device
from splitinfer.egress.gate import Intent, Outcome, Status
from splitinfer.errors import (
    EgressDeniedError,
    PolicyError,
    RemoteRefusedError,
    SessionLostError,
    SplitInferError,
    TransportError,
    UsageError,
    VerificationError,
)
from splitinfer.exchange import (
    Ask,
    Common,
    Exchange,
    Place,
    close_ask,
    decode_ask,
    prefill_ask,
    rounds_ask,
    rows_ask,
)
from splitinfer.handoff import Label, PromptTokens, Route, SamplingParams, Segment
from splitinfer.joint.link import RoundsLink
from splitinfer.joint.work import Work, work_for
from splitinfer.model.embeddings import Rows
from splitinfer.model.stepwise import Step as RoundStep
from splitinfer.noise.certificate import Certificate
from splitinfer.noised import release, require_private, with_public_end
from splitinfer.noised_cache import charge_cache, noises_cache
from splitinfer.partial import Part, salvage
from splitinfer.placement import Plan, Step, place
from splitinfer.recall import LOST_NOTE, Recall
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.replies import OpenedReply
from splitinfer.resume import bound_with_resumes
from splitinfer.reuse import Shelf, shelf_for
from splitinfer.row_check import RowCheck
from splitinfer.sealing.frames import FrameKind
from splitinfer.sealing.manifest import ModelWire, NumericsWire
from splitinfer.selector import Choice, opening_seconds
from trust_models.codecs import AUTO, CALIBRATED
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

__all__ = ["Flow"]

Carrier = TypeVar("Carrier", Exchange, RoundsLink)

# Well within the silence of 30 s that a cloud bears by default.
PAUSE_SECONDS = 20.0
# Fewer tokens say little of a device's speed.
LEAST_TIMED_TOKENS = 64
CLEAR_FIELDS = ("version", "suite", "transfer_id", "keyset_digest", "sender_id", "chunk_bytes", "expires_at")
RECORD_CLEAR_FIELDS = ("counter", "step", "layer", "operation", "part", "final", "length")
_ROUNDS = (TrustMode.HOMOMORPHIC, TrustMode.MASKED)
RESUME_CLEAR_FIELDS = ("manifest_sha256", "request_from", "reply_from", "state", "request_chunks")


@dataclass(slots=True)
class _Progress:
    """What became known during a run, for its answer."""

    mode: TrustMode
    started: float
    token_ids: list[int] = field(default_factory=list, repr=False)
    text: list[str] = field(default_factory=list, repr=False)
    finish_reason: str = ""
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    is_exact: bool = True
    is_fallback: bool = False
    is_reused: bool = False
    base_tokens: int = 0
    prefilled_by_cloud_tokens: int = 0
    origin: Origin | None = None
    notes: list[str] = field(default_factory=list)
    egress: EgressSummary = field(default_factory=EgressSummary)
    exchange: Exchange | RoundsLink | None = None
    growing: GrowingCache | None = field(default=None, repr=False)
    generation: int = 0
    part: Part | None = None
    choice: Choice | None = None
    certificate: Certificate | None = None

    def saw_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.last_token_at = time.perf_counter()
        self.first_token_at = self.first_token_at or self.last_token_at


class Flow:
    """One run; `run()` is read once, then `answer` is there."""

    def __init__(self, device: Device, segments: Sequence[Segment], params: SamplingParams) -> None:
        self._device, self._segments, self._params = device, segments, params
        self._engine = device.engine
        self._progress = _Progress(device.policy.mode, time.perf_counter())
        self.answer: Answer | None = None

    @property
    def has_begun(self) -> bool:
        """Tell whether any text was given out."""
        return any(self._progress.text)

    def run(self) -> Generator[str, None, None]:
        """Label, tokenise, plan, run the mode; yields text pieces."""
        self._progress.started = time.perf_counter()
        self._prompt = self._tokenized()
        self._plan = self._placed()
        self._recall = Recall(self._device, self._prompt, self._plan)
        for piece in self._mode_pieces():
            if piece:
                self._progress.text.append(piece)
                yield piece
        self.answer = self._finished()

    def _tokenized(self) -> PromptTokens:
        policy = self._device.policy
        prompt = self._engine.tokenize([_labelled(policy, segment) for segment in self._segments])
        if policy.noise is None:
            return prompt
        try:
            require_private(prompt)
            is_fed_by_cloud = MODES[policy.mode].decode == "cloud"
            return with_public_end(self._engine, prompt, policy.noise) if is_fed_by_cloud else prompt
        except (EgressDeniedError, PolicyError) as error:
            self._device.gate.deny(error, mode=policy.mode.value, policy_sha256=policy.digest)
            raise

    def _placed(self) -> Plan:
        policy, limit = self._device.policy, self._engine.max_positions
        try:
            return place(policy, self._prompt, max_positions=limit, max_new_tokens=self._params.max_new_tokens)
        except EgressDeniedError as error:
            self._device.gate.deny(error, mode=policy.mode.value, policy_sha256=policy.digest)
            raise

    def _mode_pieces(self) -> Iterator[str]:
        if self._plan.mode is TrustMode.LOCAL:
            yield from self._local()
            return
        choice = self._progress.choice = self._chosen()
        if choice is not None and choice.is_local:
            self._progress.mode = TrustMode.LOCAL
            yield from self._local()
            return
        remote = self._sealed_decode if self._plan.decode_on == "cloud" else self._cloud_prefill
        if MODES[self._plan.mode].is_noised:
            remote = self._noised_decode if self._plan.decode_on == "cloud" else self._noised_prefill
        if self._plan.mode in _ROUNDS:
            remote = self._in_rounds
        try:
            yield from remote()
        except TransportError:
            if not self._may_fall_back():
                raise
            self._progress.mode, self._progress.is_fallback = TrustMode.LOCAL, True
            self._progress.is_exact = self._progress.part is None or self._progress.is_exact
            self._progress.prefilled_by_cloud_tokens, self._progress.origin = 0, None
            # The device may hold the prompt's cache by now.
            self._recall = Recall(self._device, self._prompt, self._plan)
            if self._progress.certificate:
                self._progress.certificate = replace(self._progress.certificate, answer_is_seen=False)
            yield from self._local()

    def _chosen(self) -> Choice | None:
        """Choose the codec where the policy leaves it open, or that the device computes what the cloud would."""
        chooser, plan = self._device.chooser, self._plan
        if chooser is None or plan.mode in _ROUNDS:
            return None
        is_decode = plan.decode_on == "cloud"
        place = self._recall.decode_place() if is_decode else self._recall.prefill_place()
        tokens = len(self._prompt.token_ids) - 1 if is_decode else plan.prefix_tokens
        if tokens <= place.base_tokens:
            return None
        padded = schedule.pad_new_tokens(tokens, place.base_tokens)
        return chooser.choose(
            padded_tokens=padded,
            base_tokens=place.base_tokens,
            local_tokens=None if is_decode else padded - place.base_tokens,
        )

    @property
    def _codec(self) -> str:
        """Return the codec of this run's transfer; "auto" before it is chosen, and where nothing is transferred."""
        choice = self._progress.choice
        if choice is not None and not choice.is_local:
            return choice.codec
        return self._device.policy.transfer.codec

    def _may_fall_back(self) -> bool:
        """Only where the policy says so, before the first token, and never after the cloud's authentic refusal."""
        exchange = self._progress.exchange
        wants = self._device.policy.fallback.on_remote_failure == "local"
        return wants and not self._progress.token_ids and not (exchange is not None and exchange.was_refused)

    def _local(self) -> Iterator[str]:
        """Everything on the device; logged, so that absence from the log says something."""
        bucket = schedule.pad_tokens(len(self._prompt.token_ids))
        policy, part = self._device.policy, self._part()
        self._device.gate.local(
            mode=TrustMode.LOCAL.value,
            policy_sha256=policy.digest,
            tokens_bucket=bucket,
            **(part.log_fields() if part else {}),
        )
        if part is not None:
            yield from self._decode_here(self._rest_of(part))
            return
        self._progress.base_tokens = self._recall.held_tokens
        yield from self._decode_here(self._prefill_on_held())

    def _part(self) -> Part | None:
        """Return what a broken transfer brought, where that is more than the device holds anyway."""
        part = self._progress.part
        if part is not None and part.tokens <= self._recall.held_tokens:
            wipe(part.cache)
            return None
        return part

    def _rest_of(self, part: Part) -> CacheSnapshot:
        """Prefill here what a broken transfer did not bring."""
        self._progress.notes.append(part.note)
        self._progress.prefilled_by_cloud_tokens = part.new_tokens
        self._progress.base_tokens = part.base_tokens
        self._progress.origin = Origin(self._device.pinned_sha256, part.transfer_id, part.received_root)
        steps = part.left(self._plan.steps)
        return self._prefill(steps, onto=part.cache) if steps else part.cache

    def _cloud_prefill(self) -> Iterator[str]:
        """`public-prefix` and `sealed-prefill`: tokens up, cache down, the rest here."""
        if self._recall.held_tokens >= self._plan.prefix_tokens:
            self._recall.log()
            self._progress.base_tokens = self._recall.held_tokens
            yield from self._decode_here(self._prefill_on_held())
            return
        snapshot = self._cloud_prefix()
        steps = tuple(step for step in self._plan.device_steps if step[0] >= snapshot.true_tokens)
        if steps:
            snapshot = self._prefill(steps, onto=snapshot)
        yield from self._decode_here(snapshot)

    def _cloud_prefix(self) -> CacheSnapshot:
        """Return the cache of what the cloud prefills: from the store, or from the cloud."""
        plan = self._plan
        rows = RowCheck(self._device, self._prompt.token_ids)
        rows.require_possible(plan.prefix_tokens)
        shelf = shelf_for(self._device, self._prompt, plan, notes=self._progress.notes)
        stored = shelf.find(rows) if shelf else None
        if stored is None:
            place = self._recall.prefill_place()
            try:
                return self._prefilled_by_cloud(place, rows, shelf)
            except SessionLostError:
                return self._prefilled_by_cloud(self._anew(place), rows, shelf)
        facts = stored.facts
        self._progress.is_exact, self._progress.is_reused = facts.is_exact, True
        self._progress.prefilled_by_cloud_tokens = plan.prefix_tokens
        self._progress.origin = Origin(facts.recipient, facts.transfer_id, facts.received_root)
        return stored.cache

    def _prefilled_by_cloud(self, place: Place, rows: RowCheck, shelf: Shelf | None) -> CacheSnapshot:
        """Ask the cloud; what was received and verified is stored, where there is a shelf for it."""
        plan, base = self._plan, self._device.conversation.cache(place.base_tokens)
        ask = prefill_ask(
            self._common(),
            self._prompt.token_ids[: plan.prefix_tokens],
            plan.cloud_steps,
            place=place,
            is_public=plan.mode is TrustMode.PUBLIC_PREFIX,
        )
        held_exact = self._recall.held.is_exact if self._recall.held and base else True
        self._recall.sends(place)
        with self._permitted(ask) as exchange:
            reply = self._send(exchange, ask)
            self._progress.is_exact &= held_exact
            snapshot = self._receive(exchange, reply, ask, rows, base)
            rows.check(snapshot)
        self._recall.received(place, exchange.receipt)
        self._progress.base_tokens = place.base_tokens
        self._progress.prefilled_by_cloud_tokens = plan.prefix_tokens - place.base_tokens
        root, transfer_id = reply.reader.root().hex(), reply.sent.keys.transfer_id.hex()
        self._progress.origin = Origin(self._device.pinned_sha256, transfer_id, root)
        if shelf and not place.base_tokens:
            shelf.keep(
                snapshot,
                reply,
                generation=self._progress.generation,
                verified_rows=rows.wanted(snapshot),
                is_exact=self._progress.is_exact,
            )
        return snapshot

    def _noised_decode(self) -> Iterator[str]:
        """Pay and draw once, then as `sealed-decode` on the rows that came of it; nothing of it is remembered."""
        if noises_cache(self._device.policy):
            yield from self._noised_cache_decode()
            return
        noised = release(self._device, self._prompt)
        self._progress.certificate = noised.certificate
        yield from self._sealed_decode(noised.rows)

    def _noised_cache_decode(self) -> Iterator[str]:
        """Pay once, prefill as `local` does, noise the finished cache; nothing leaves while it grows."""
        charged = charge_cache(self._device, self._prompt)
        self._progress.certificate = charged.certificate
        exact = self._prefill(self._plan.steps)
        try:
            noised = charged.noised(exact)
        finally:
            wipe(exact)
        try:
            self._engine.burn(schedule.pad_tokens(noised.true_tokens) - noised.true_tokens)
            yield from self._decoded_by_cloud(noised, self._recall.decode_place())
        finally:
            wipe(noised)

    def _noised_prefill(self) -> Iterator[str]:
        """Pay and draw once, noised rows up, their cache down, decode here; the last token, as it is, stays here."""
        noised, plan = release(self._device, self._prompt), self._plan
        self._progress.certificate = noised.certificate
        rows = self._engine.rows_to(noised.rows[: plan.prefix_tokens])
        ask = rows_ask(self._common(), rows, plan.cloud_steps, tokens=plan.prefix_tokens)
        with self._permitted(ask) as exchange:
            reply = self._send(exchange, ask)
            snapshot = self._receive(exchange, reply, ask, RowCheck(self._device, self._prompt.token_ids), None)
        self._progress.prefilled_by_cloud_tokens = plan.prefix_tokens
        yield from self._decode_here(snapshot)

    def _sealed_decode(self, rows: Rows | None = None) -> Iterator[str]:
        """Prefill here, cache up while it grows, tokens down; only verified frames are shown."""
        place, steps = self._recall.decode_place(), self._steps_on_held()
        onto, is_exact = self._recall.cache, self._progress.is_exact
        if not steps and onto is not None:
            self._engine.burn(schedule.pad_new_tokens(onto.true_tokens, place.base_tokens) - onto.true_tokens)
            yield from self._decoded_by_cloud(onto, place)
            return
        progress = self._device.prefill_progress(len(self._prompt.token_ids) - 1)
        with self._engine.start_prefill(
            self._prompt.token_ids, steps=steps, onto=onto, base_tokens=place.base_tokens, progress=progress, rows=rows
        ) as growing:
            self._progress.growing = growing
            try:
                growing.settle(pause_seconds=PAUSE_SECONDS)
                yield from self._decoded_by_cloud(growing, place)
            except TransportError:
                if rows is None and self._may_fall_back():
                    growing.snapshot()
                raise
            finally:
                if growing.is_over:
                    snapshot = growing.hand_over()
                    if rows is not None or not self._remember(snapshot, is_exact=is_exact):
                        wipe(snapshot)

    def _decoded_by_cloud(self, cache: CacheSnapshot | GrowingCache, place: Place) -> Iterator[str]:
        """Cache up, from the place's base on, tokens down; all of it again where the cloud lost the session."""
        try:
            yield from self._sent_to_decode(cache, place)
        except SessionLostError:
            place = self._anew(place)
            whole = cache.snapshot() if isinstance(cache, GrowingCache) else cache
            self._engine.burn(schedule.pad_tokens(whole.true_tokens) - whole.true_tokens)
            yield from self._sent_to_decode(whole, place)

    def _sent_to_decode(self, cache: CacheSnapshot | GrowingCache, place: Place) -> Iterator[str]:
        ids, plan = self._prompt.token_ids, self._plan
        packed = codec.pack(
            cache,
            codec=self._codec,
            padded_tokens=schedule.pad_new_tokens(cache.true_tokens, place.base_tokens),
            base_tokens=place.base_tokens,
            is_shared=True,
            artefact=self._device.artefact,
        )
        stream = self._engine.text_stream(self._params.stop)
        self._recall.sends(place)
        try:
            ask = decode_ask(
                self._common(), packed, steps=plan.steps, last_token=ids[-1], params=self._params, place=place
            )
            with self._permitted(ask) as exchange:
                reply = self._send(exchange, ask)
                for frame in exchange.receive_frames(reply):
                    for token_id in frame.token_ids:
                        self._progress.saw_token(token_id)
                        yield stream.push(token_id)
                    if frame.kind is FrameKind.END:
                        self._progress.finish_reason = frame.finish_reason
        finally:
            packed.wipe()
        self._recall.received(place, exchange.receipt)
        self._progress.base_tokens = place.base_tokens
        yield stream.finish()

    def _in_rounds(self) -> Iterator[str]:
        """`homomorphic` and `masked`: prefill here, then every step together with the cloud."""
        progress = self._device.prefill_progress(len(self._prompt.token_ids) - 1)
        work = work_for(self._device, self._prompt, self._params, progress=progress)
        snapshot = None if work.prefills else self._prefill_on_held()
        self._progress.is_exact, self._progress.base_tokens = False, self._recall.held_tokens if snapshot else 0
        is_remembered = snapshot is not None and self._remember(snapshot, is_exact=True)
        try:
            with self._carried(self._rounds_ask(work), RoundsLink) as link:
                self._begin_rounds(link, work)
                with work.begin(link.exchange, snapshot) as step:
                    if snapshot is not None and not is_remembered:
                        wipe(snapshot)
                    yield from self._decode_by(step)
                link.finish()
        finally:
            if snapshot is not None and not is_remembered:
                wipe(snapshot)

    def _rounds_ask(self, work: Work) -> Ask:
        ask = rounds_ask(self._common(), protection=MODES[self._plan.mode].protection, rounds_bytes=work.rounds_bytes)
        return replace(ask, packing=work.packing, bucket=work.tokens_bucket)

    def _begin_rounds(self, link: RoundsLink, work: Work) -> None:
        recipient = link.appraise(pinned_sha256=self._device.pinned_sha256, seen=self._device.seen)
        self._progress.generation = recipient.generation
        link.open(self._rounds_ask(work), recipient)

    def _decode_by(self, step: RoundStep) -> Iterator[str]:
        ids = self._prompt.token_ids
        decoding = self._engine.decode_by(step, last_token=ids[-1], position=len(ids) - 1, params=self._params)
        for token_id, piece in decoding:
            self._progress.saw_token(token_id)
            yield piece
        self._progress.finish_reason = decoding.finish_reason or ""
        yield decoding.tail

    def end_session(self) -> None:
        """Let the cloud erase what it holds of the session; logged, as every call is."""
        ask = close_ask(self._common())
        with self._permitted(ask) as exchange:
            exchange.receive_closed(self._send(exchange, ask))

    def _anew(self, place: Place) -> Place:
        """Place the transfer after one that the cloud refused because its session is lost; visible in the answer."""
        if not place.turn:
            raise VerificationError("the cloud says that it lost a session that was not continued")
        self._progress.notes.append(LOST_NOTE)
        return self._recall.anew()

    def _prefill_on_held(self) -> CacheSnapshot:
        """Compute on the device what it does not hold of the conversation."""
        return self._prefill(self._steps_on_held(), onto=self._recall.cache)

    def _steps_on_held(self) -> tuple[Step, ...]:
        """Return the steps that the device has not computed; what it holds is as exact as when it was made."""
        recall, progress = self._recall, self._progress
        if recall.held is not None:
            progress.is_exact &= recall.held.is_exact
            progress.origin = recall.held.origin
        return tuple(step for step in self._plan.steps if step[0] >= recall.held_tokens)

    def _remember(self, snapshot: CacheSnapshot, *, is_exact: bool) -> bool:
        """Hand the prompt's cache to the conversation; False where it stays the caller's to wipe."""
        return self._recall.remember(snapshot, is_exact=is_exact, origin=self._progress.origin)

    def _prefill(self, steps: tuple[Step, ...], *, onto: CacheSnapshot | None = None) -> CacheSnapshot:
        progress = self._device.prefill_progress(len(self._prompt.token_ids) - 1)
        began = time.perf_counter()
        snapshot = self._engine.prefill(self._prompt.token_ids, steps=steps, onto=onto, progress=progress)
        tokens = sum(stop - start for start, stop in steps)
        if self._device.chooser is not None and tokens >= LEAST_TIMED_TOKENS:
            seconds = max(time.perf_counter() - began, 1e-6)
            self._device.chooser.learn({"device_tokens_per_second": tokens / seconds})
        return snapshot

    def _decode_here(self, snapshot: CacheSnapshot) -> Iterator[str]:
        ids = self._prompt.token_ids
        is_remembered = self._remember(snapshot, is_exact=self._progress.is_exact)
        decoding = self._engine.decode(snapshot, last_token=ids[-1], params=self._params)
        try:
            for token_id, piece in decoding:
                self._progress.saw_token(token_id)
                yield piece
        finally:
            decoding.close()
            if not is_remembered:
                wipe(snapshot)
        self._progress.finish_reason = decoding.finish_reason or ""
        yield decoding.tail

    @contextmanager
    def _permitted(self, ask: Ask) -> Iterator[Exchange]:
        """Lend an exchange under a permit (see `_carried`)."""
        with self._carried(ask, partial(Exchange, resume_attempts=self._resume_attempts(ask))) as exchange:
            yield exchange

    @contextmanager
    def _carried(self, ask: Ask, make: Callable[..., Carrier]) -> Iterator[Carrier]:
        """Open a permit, lend what carries the ask, and close the permit with what really moved, whatever happens."""
        device, transport = self._device, self._device.transport
        if transport is None:
            raise UsageError("this session has no transport; open it with a policy that has [remote]")
        permit = device.gate.open(self._intent(ask))
        exchange = self._progress.exchange = make(
            permit,
            transport,
            device_key=device.key,
            expected=self._expectations(),
            clock=device.clock,
            randomness=device.randomness,
        )
        status: Status = "aborted"
        code = "interrupted"
        try:
            yield exchange
            status, code = "completed", ""
        except SplitInferError as error:
            status, code = self._status(error, exchange), error.code
            raise
        except Exception:
            status, code = "failed", "internal"
            raise
        finally:
            exchange.close()
            receipt = exchange.receipt.to_bytes() if exchange.receipt else b""
            permit.close(Outcome(status, code=code, receipt=receipt))
            self._progress.egress = self._progress.egress.plus(EgressSummary.of(permit))

    def _resume_attempts(self, ask: Ask) -> int:
        return 0 if ask.route is Route.SESSION else self._device.policy.transfer.resume_attempts

    def _status(self, error: SplitInferError, exchange: Exchange | RoundsLink) -> Status:
        growing = self._progress.growing
        if isinstance(error, RemoteRefusedError) or exchange.was_refused:
            return "refused"
        if growing is not None and growing.has_failed:
            return "failed"
        return "unreceipted" if exchange.has_sent and exchange.receipt is None else "failed"

    def _send(self, exchange: Exchange, ask: Ask) -> OpenedReply:
        recipient = exchange.appraise(pinned_sha256=self._device.pinned_sha256, seen=self._device.seen)
        self._progress.generation = recipient.generation
        reply = exchange.send(ask, recipient)
        theirs = reply.manifest.numerics
        same = theirs is not None and theirs.numerics() == self._engine.numerics
        is_exact = same and codec.CODECS[reply.manifest.codec].is_exact
        # Noise makes other tokens than mode `local` does, whatever else is equal.
        self._progress.is_exact = is_exact and not MODES[self._device.policy.mode].is_noised
        return reply

    def _receive(
        self, exchange: Exchange, reply: OpenedReply, ask: Ask, rows: RowCheck, base: CacheSnapshot | None
    ) -> CacheSnapshot:
        tokens = ask.manifest.tokens
        sink = codec.sink(
            self._engine.layout,
            codec=reply.manifest.codec,
            true_tokens=tokens.true,
            padded_tokens=tokens.padded,
            coded_bytes=reply.manifest.coded_bytes,
            base=base,
            artefact=self._device.artefact,
        )
        try:
            began = time.perf_counter()
            received = exchange.receive_cache(reply, sink)
            self._learn(sink.size_bytes, tokens.padded - ask.manifest.session.base_tokens, began, reply.manifest.codec)
            return received
        except TransportError:
            self._salvage(exchange, sink, rows, base_tokens=base.true_tokens if base else 0)
            raise

    def _learn(self, size_bytes: int, tokens: int, began: float, codec_name: str) -> None:
        """Tell the chooser how fast that was: the cloud's prefill and the link, which cannot be told apart exactly."""
        if self._device.chooser is None:
            return
        seconds = max(time.perf_counter() - began, 1e-6)
        cloud = max(self._device.chooser.speeds().cloud_tokens_per_second, tokens / seconds)
        known = self._device.chooser.speeds()
        other = tokens / cloud + opening_seconds(size_bytes, known)
        other += tokens * known.codec_seconds_per_token if codec_name in CALIBRATED else 0.0
        moving = max(seconds - other, seconds / 10)
        self._device.chooser.learn(
            {"cloud_tokens_per_second": tokens / seconds, "link_bytes_per_second": size_bytes / moving}
        )

    def _salvage(self, exchange: Exchange, sink: CacheSink, rows: RowCheck, *, base_tokens: int) -> None:
        """Keep the verified steps of a cache whose connection was lost, where the device is about to take over."""
        if not self._may_fall_back() or MODES[self._plan.mode].is_noised:
            sink.wipe()
            return
        self._progress.part = salvage(
            sink,
            rows,
            steps=self._plan.cloud_steps,
            base_tokens=base_tokens,
            transfer_id=exchange.transfer_id,
            received_root=exchange.received_root,
        )

    def _intent(self, ask: Ask) -> Intent:
        policy, attempts = self._device.policy, self._resume_attempts(ask)
        more = RECORD_CLEAR_FIELDS if ask.route is Route.SESSION else RESUME_CLEAR_FIELDS if attempts else ()
        return Intent(
            mode=policy.mode.value,
            policy_sha256=policy.digest,
            recipient_identity_sha256=self._device.pinned_sha256,
            protection=MODES[policy.mode].protection,
            codec=ask.packing or self._wire_codec,
            tokens_bucket=ask.tokens_bucket,
            bytes_up_bound=bound_with_resumes(ask.bytes_up_bound, attempts),
            fields_in_clear=CLEAR_FIELDS + more,
        )

    @property
    def _wire_codec(self) -> str:
        """Return the codec for a manifest: a request that carries no cache and asks for none says "raw"."""
        return "raw" if self._codec == AUTO else self._codec

    def _common(self) -> Common:
        policy, artefact = self._device.policy, self._device.artefact
        return Common(
            policy_sha256=policy.digest,
            codec=self._wire_codec,
            artefact_sha256=artefact.digest if artefact and self._wire_codec in CALIBRATED else None,
            pad=policy.transfer.pad,
            session_id=self._device.conversation.session_id,
            model=ModelWire.of(self._engine.identity),
            numerics=NumericsWire.of(self._engine.numerics),
        )

    def _expectations(self) -> Expectations:
        engine = self._engine
        artefact = self._device.artefact
        return Expectations(
            engine.identity,
            engine.layout,
            engine.max_positions,
            engine.vocabulary,
            artefact.digest if artefact else None,
        )

    def _finished(self) -> Answer:
        progress, prompt, plan = self._progress, self._prompt, self._plan
        count = len(progress.token_ids)
        gaps = progress.last_token_at - progress.first_token_at
        first = progress.first_token_at or time.perf_counter()
        exchange = progress.exchange if not progress.is_fallback else None
        return Answer(
            mode=progress.mode.value,
            text="".join(progress.text),
            token_ids=tuple(progress.token_ids),
            finish_reason=progress.finish_reason,
            prompt_tokens=len(prompt.token_ids),
            public_tokens=prompt.public_tokens,
            prefilled_by_cloud_tokens=progress.prefilled_by_cloud_tokens,
            decoded_on="device" if progress.is_fallback else plan.decode_on,
            egress=progress.egress,
            receipt=exchange.receipt if exchange else None,
            exact=progress.is_exact,
            is_fallback=progress.is_fallback,
            ttft_seconds=first - progress.started,
            tpot_seconds=gaps / (count - 1) if count > 1 else 0.0,
            policy_digest=self._device.policy.digest,
            audit_size=self._device.gate.size,
            audit_root=self._device.gate.root.hex(),
            is_reused=progress.is_reused,
            base_tokens=progress.base_tokens,
            certificate=progress.certificate,
            choice=progress.choice,
            note="; ".join([*([plan.note] if plan.note else []), *progress.notes]) or None,
        )


def _labelled(policy: Policy, segment: Segment) -> Segment:
    asked = segment.label.value if segment.label else None
    label = Label(policy.label_of(segment.source, asked))
    # However the caller spelt the path: a rule for private that finds the file's absolute path demotes it.
    if segment.location and policy.label_of(segment.location, Label.PUBLIC.value) == Label.PRIVATE.value:
        label = Label.PRIVATE
    return replace(segment, label=label)
