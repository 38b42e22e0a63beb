"""One run on the device, top to bottom: segments in, text pieces out, an `Answer` at the end.

    segments -> labels by policy -> tokens -> plan
    local            prefill here, decode here
    public-prefix    permit -> public tokens up, their cache down -> prefill the rest here -> decode here
                     (or, without a permit, the cache that the store kept of the same tokens)
    sealed-prefill   permit -> prompt up, its cache down -> decode here
    sealed-decode    prefill here -> permit -> cache up, tokens down
    noised-decode    charge -> noise -> prefill here on noised rows -> permit -> cache up, tokens down

Nothing reaches the cloud but through `egress.gate`, and nothing from it is used before `receive` has checked it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from splitinfer import codec, schedule
from splitinfer.answer import Answer, EgressSummary
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.device import Device
from splitinfer.egress.gate import Intent, Outcome, Status
from splitinfer.errors import (
    EgressDeniedError,
    PolicyError,
    RemoteRefusedError,
    SplitInferError,
    TransportError,
    UsageError,
)
from splitinfer.exchange import Ask, Common, Exchange, decode_ask, prefill_ask
from splitinfer.handoff import Label, PackedCache, PromptTokens, SamplingParams, Segment
from splitinfer.noise.certificate import Certificate
from splitinfer.noised import release, with_public_end
from splitinfer.placement import Plan, Step, place
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.replies import OpenedReply
from splitinfer.reuse import Shelf, shelf_for
from splitinfer.row_check import RowCheck
from splitinfer.sealing.frames import FrameKind
from splitinfer.sealing.manifest import ModelWire, NumericsWire
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

__all__ = ["Flow"]

CLEAR_FIELDS = ("version", "suite", "transfer_id", "keyset_digest", "sender_id", "chunk_bytes", "expires_at")


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
    notes: list[str] = field(default_factory=list)
    egress: EgressSummary = field(default_factory=EgressSummary)
    exchange: Exchange | None = None
    generation: int = 0
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
            return with_public_end(self._engine, prompt, policy.noise)
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
        remote = self._sealed_decode if self._plan.decode_on == "cloud" else self._cloud_prefill
        if MODES[self._plan.mode].is_noised:
            remote = self._noised_decode
        try:
            yield from remote()
        except TransportError:
            if not self._may_fall_back():
                raise
            self._progress.mode, self._progress.is_fallback = TrustMode.LOCAL, True
            self._progress.is_exact = True
            if self._progress.certificate:
                self._progress.certificate = replace(self._progress.certificate, answer_is_seen=False)
            yield from self._local()

    def _may_fall_back(self) -> bool:
        """Only where the policy says so, before the first token, and never after the cloud's authentic refusal."""
        exchange = self._progress.exchange
        wants = self._device.policy.fallback.on_remote_failure == "local"
        return wants and not self._progress.token_ids and not (exchange is not None and exchange.was_refused)

    def _local(self) -> Iterator[str]:
        """Everything on the device; logged, so that absence from the log says something."""
        bucket = schedule.pad_tokens(len(self._prompt.token_ids))
        policy = self._device.policy
        self._device.gate.local(mode=TrustMode.LOCAL.value, policy_sha256=policy.digest, tokens_bucket=bucket)
        snapshot = self._prefill(self._plan.steps)
        yield from self._decode_here(snapshot)

    def _cloud_prefill(self) -> Iterator[str]:
        """`public-prefix` and `sealed-prefill`: tokens up, cache down, the rest here."""
        plan = self._plan
        rows = RowCheck(self._device, self._prompt.token_ids)
        rows.require_possible(plan.prefix_tokens)
        shelf = shelf_for(self._device, self._prompt, plan, notes=self._progress.notes)
        stored = shelf.find(rows) if shelf else None
        if stored is None:
            snapshot = self._prefilled_by_cloud(rows, shelf)
        else:
            snapshot = stored.cache
            self._progress.is_exact, self._progress.is_reused = stored.facts.is_exact, True
        if plan.device_steps:
            snapshot = self._prefill(plan.device_steps, onto=snapshot)
        yield from self._decode_here(snapshot)

    def _prefilled_by_cloud(self, rows: RowCheck, shelf: Shelf | None) -> CacheSnapshot:
        """Ask the cloud; what was received and verified is stored, where there is a shelf for it."""
        plan = self._plan
        ask = prefill_ask(self._common(), self._prompt.token_ids[: plan.prefix_tokens], plan.cloud_steps)
        with self._permitted(ask) as exchange:
            reply = self._send(exchange, ask)
            snapshot = self._receive(exchange, reply, ask)
            rows.check(snapshot)
        if shelf:
            shelf.keep(
                snapshot,
                reply,
                generation=self._progress.generation,
                verified_rows=rows.wanted(snapshot),
                is_exact=self._progress.is_exact,
            )
        return snapshot

    def _sealed_decode(self) -> Iterator[str]:
        """Prefill here, cache up, tokens down; only verified frames are shown."""
        ids, plan = self._prompt.token_ids, self._plan
        snapshot = self._prefill(plan.device_steps)
        padded = schedule.pad_tokens(snapshot.true_tokens)
        self._engine.burn(padded - snapshot.true_tokens)
        try:
            packed = codec.pack(snapshot, codec=self._device.policy.transfer.codec, padded_tokens=padded)
        except SplitInferError:
            wipe(snapshot)
            raise
        stream = self._engine.text_stream(self._params.stop)
        try:
            ask = decode_ask(self._common(), packed, steps=plan.steps, last_token=ids[-1], params=self._params)
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
        yield stream.finish()

    def _noised_decode(self) -> Iterator[str]:
        """Pay, noise, prefill here on what is left, cache up, tokens down; the first token fed is a public one."""
        ids, plan, policy = self._prompt.token_ids, self._plan, self._device.policy
        noised = release(self._device, self._prompt)
        self._progress.certificate = noised.certificate
        progress = self._device.prefill_progress(len(ids) - 1)
        snapshot = self._engine.prefill(ids, steps=plan.device_steps, progress=progress, rows=noised.rows)
        padded = schedule.pad_tokens(snapshot.true_tokens)
        self._engine.burn(padded - snapshot.true_tokens)
        stream = self._engine.text_stream(self._params.stop)
        packed = _packed(snapshot, codec_name=policy.transfer.codec, padded_tokens=padded)
        try:
            ask = decode_ask(self._common(), packed, steps=plan.steps, last_token=ids[-1], params=self._params)
            with self._permitted(ask) as exchange:
                reply = self._send(exchange, ask)
                # Noise makes other tokens than mode `local` does, whatever else is equal.
                self._progress.is_exact = False
                for frame in exchange.receive_frames(reply):
                    for token_id in frame.token_ids:
                        self._progress.saw_token(token_id)
                        yield stream.push(token_id)
                    if frame.kind is FrameKind.END:
                        self._progress.finish_reason = frame.finish_reason
        finally:
            packed.wipe()
        yield stream.finish()

    def _prefill(self, steps: tuple[Step, ...], *, onto: CacheSnapshot | None = None) -> CacheSnapshot:
        progress = self._device.prefill_progress(len(self._prompt.token_ids) - 1)
        return self._engine.prefill(self._prompt.token_ids, steps=steps, onto=onto, progress=progress)

    def _decode_here(self, snapshot: CacheSnapshot) -> Iterator[str]:
        ids = self._prompt.token_ids
        decoding = self._engine.decode(snapshot, last_token=ids[-1], params=self._params)
        try:
            for token_id, piece in decoding:
                self._progress.saw_token(token_id)
                yield piece
        finally:
            decoding.close()
            wipe(snapshot)
        self._progress.finish_reason = decoding.finish_reason or ""
        yield decoding.tail

    @contextmanager
    def _permitted(self, ask: Ask) -> Iterator[Exchange]:
        """Open a permit, lend an exchange, and close the permit with what really moved, whatever happens."""
        device, transport = self._device, self._device.transport
        if transport is None:
            raise UsageError("this session has no transport; open it with a policy that has [remote]")
        permit = device.gate.open(self._intent(ask))
        exchange = self._progress.exchange = Exchange(
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
            status, code = _status(error, exchange), error.code
            raise
        except Exception:
            status, code = "failed", "internal"
            raise
        finally:
            exchange.close()
            receipt = exchange.receipt.to_bytes() if exchange.receipt else b""
            permit.close(Outcome(status, code=code, receipt=receipt))
            self._progress.egress = EgressSummary.of(permit)

    def _send(self, exchange: Exchange, ask: Ask) -> OpenedReply:
        recipient = exchange.appraise(pinned_sha256=self._device.pinned_sha256, seen=self._device.seen)
        self._progress.generation = recipient.generation
        reply = exchange.send(ask, recipient)
        theirs = reply.manifest.numerics
        same = theirs is not None and theirs.numerics() == self._engine.numerics
        self._progress.is_exact = same and codec.CODECS[self._device.policy.transfer.codec].is_exact
        return reply

    def _receive(self, exchange: Exchange, reply: OpenedReply, ask: Ask) -> CacheSnapshot:
        tokens = ask.manifest.tokens
        sink = codec.sink(
            self._engine.layout,
            codec=reply.manifest.codec,
            true_tokens=tokens.true,
            padded_tokens=tokens.padded,
            coded_bytes=reply.manifest.coded_bytes,
        )
        return exchange.receive_cache(reply, sink)

    def _intent(self, ask: Ask) -> Intent:
        policy = self._device.policy
        return Intent(
            mode=policy.mode.value,
            policy_sha256=policy.digest,
            recipient_identity_sha256=self._device.pinned_sha256,
            protection=MODES[policy.mode].protection,
            codec=policy.transfer.codec,
            tokens_bucket=ask.manifest.tokens.padded,
            bytes_up_bound=ask.bytes_up_bound,
            fields_in_clear=CLEAR_FIELDS,
        )

    def _common(self) -> Common:
        policy = self._device.policy
        return Common(
            policy_sha256=policy.digest,
            codec=policy.transfer.codec,
            pad=policy.transfer.pad,
            session_id=self._device.session_id,
            model=ModelWire.of(self._engine.identity),
            numerics=NumericsWire.of(self._engine.numerics),
        )

    def _expectations(self) -> Expectations:
        engine = self._engine
        return Expectations(engine.identity, engine.layout, engine.max_positions, engine.vocabulary)

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
            prefilled_by_cloud_tokens=0 if progress.is_fallback else plan.prefix_tokens,
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
            certificate=progress.certificate,
            note="; ".join([*([plan.note] if plan.note else []), *progress.notes]) or None,
        )


def _packed(snapshot: CacheSnapshot, *, codec_name: str, padded_tokens: int) -> PackedCache:
    try:
        return codec.pack(snapshot, codec=codec_name, padded_tokens=padded_tokens)
    except SplitInferError:
        wipe(snapshot)
        raise


def _labelled(policy: Policy, segment: Segment) -> Segment:
    asked = segment.label.value if segment.label else None
    label = Label(policy.label_of(segment.source, asked))
    # However the caller spelt the path: a rule for private that finds the file's absolute path demotes it.
    if segment.location and policy.label_of(segment.location, Label.PUBLIC.value) == Label.PRIVATE.value:
        label = Label.PRIVATE
    return replace(segment, label=label)


def _status(error: SplitInferError, exchange: Exchange) -> Status:
    if isinstance(error, RemoteRefusedError):
        return "refused"
    if exchange.was_refused:
        return "refused"
    return "unreceipted" if exchange.has_sent and exchange.receipt is None else "failed"
