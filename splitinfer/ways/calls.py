"""The calls of a run to the cloud: Ask -> permit, carrier, OpenedReply, outcome in the log; on the device.

A permit is opened and closed here alone, with what really moved, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from splitinfer import codec
from splitinfer.answer import EgressSummary
from splitinfer.asks import Ask, Common
from splitinfer.carrier import Carrier
from splitinfer.device import Device
from splitinfer.egress.gate import Intent, Outcome, Status
from splitinfer.errors import RemoteRefusedError, SplitInferError, UsageError
from splitinfer.exchange import Exchange
from splitinfer.handoff import Route
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.replies import OpenedReply
from splitinfer.resume import bound_with_resumes
from splitinfer.sealing.manifest import ModelWire, NumericsWire
from splitinfer.ways.progress import Progress
from trust_models.codecs import AUTO, CALIBRATED
from trust_models.modes import MODES

__all__ = ["Calls"]

CLEAR_FIELDS = ("version", "suite", "transfer_id", "keyset_digest", "sender_id", "chunk_bytes", "expires_at")
RECORD_CLEAR_FIELDS = ("counter", "step", "layer", "operation", "part", "final", "length")
RESUME_CLEAR_FIELDS = ("manifest_sha256", "request_from", "reply_from", "state", "request_chunks")

AnyCarrier = TypeVar("AnyCarrier", bound=Carrier)


@dataclass(frozen=True, slots=True)
class Calls:
    """Makes the calls of one run, and notes in its progress what moved."""

    device: Device
    progress: Progress

    @property
    def codec(self) -> str:
        """Return the codec of the run's transfer; "auto" before it is chosen, and where nothing is transferred."""
        choice = self.progress.choice
        if choice is not None and not choice.is_local:
            return choice.codec
        return self.device.policy.transfer.codec

    def common(self) -> Common:
        """Return the manifest fields that every request of the run shares."""
        policy, artefact = self.device.policy, self.device.artefact
        return Common(
            policy_sha256=policy.digest,
            codec=self._wire_codec,
            artefact_sha256=artefact.digest if artefact and self._wire_codec in CALIBRATED else None,
            pad=policy.transfer.pad,
            session_id=self.device.conversation.session_id,
            model=ModelWire.of(self.device.engine.identity),
            numerics=NumericsWire.of(self.device.engine.numerics),
        )

    @contextmanager
    def permitted(self, ask: Ask) -> Iterator[Exchange]:
        """Lend an exchange under a permit (see `carried`)."""
        with self.carried(ask, partial(Exchange, resume_attempts=self._resume_attempts(ask))) as exchange:
            yield exchange

    @contextmanager
    def carried(self, ask: Ask, make: Callable[..., AnyCarrier]) -> Iterator[AnyCarrier]:
        """Open a permit, lend what carries the ask, and close the permit with what really moved, whatever happens."""
        device, transport = self.device, self.device.transport
        if transport is None:
            raise UsageError("this session has no transport; open it with a policy that has [remote]")
        permit = device.gate.open(self._intent(ask))
        carrier = self.progress.carrier = make(
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
            yield carrier
            status, code = "completed", ""
        except SplitInferError as error:
            status, code = self._status(error, carrier), error.code
            raise
        except Exception:
            status, code = "failed", "internal"
            raise
        finally:
            carrier.close()
            receipt = carrier.receipt.to_bytes() if carrier.receipt else b""
            permit.close(Outcome(status, code=code, receipt=receipt))
            self.progress.egress = self.progress.egress.plus(EgressSummary.of(permit))

    def send(self, exchange: Exchange, ask: Ask) -> OpenedReply:
        """Appraise the recipient and send; raises as `Exchange.send`. Notes whether what comes can be exact."""
        recipient = exchange.appraise(pinned_sha256=self.device.pinned_sha256, seen=self.device.seen)
        self.progress.generation = recipient.generation
        reply = exchange.send(ask, recipient)
        theirs = reply.manifest.numerics
        same = theirs is not None and theirs.numerics() == self.device.engine.numerics
        is_exact = same and codec.CODECS[reply.manifest.codec].is_exact
        # Noise makes other tokens than mode `local` does, whatever else is equal.
        self.progress.is_exact = is_exact and not MODES[self.device.policy.mode].is_noised
        return reply

    def _intent(self, ask: Ask) -> Intent:
        policy, attempts = self.device.policy, self._resume_attempts(ask)
        more = RECORD_CLEAR_FIELDS if ask.route is Route.SESSION else RESUME_CLEAR_FIELDS if attempts else ()
        return Intent(
            mode=policy.mode.value,
            policy_sha256=policy.digest,
            recipient_identity_sha256=self.device.pinned_sha256,
            protection=MODES[policy.mode].protection,
            codec=ask.packing or self._wire_codec,
            tokens_bucket=ask.tokens_bucket,
            bytes_up_bound=bound_with_resumes(ask.bytes_up_bound, attempts),
            fields_in_clear=CLEAR_FIELDS + more,
        )

    @property
    def _wire_codec(self) -> str:
        """Return the codec for a manifest: a request that carries no cache and asks for none says "raw"."""
        return "raw" if self.codec == AUTO else self.codec

    def _resume_attempts(self, ask: Ask) -> int:
        return 0 if ask.route is Route.SESSION else self.device.policy.transfer.resume_attempts

    def _status(self, error: SplitInferError, carrier: Carrier) -> Status:
        growing = self.progress.growing
        if isinstance(error, RemoteRefusedError) or carrier.was_refused:
            return "refused"
        if growing is not None and growing.has_failed:
            return "failed"
        return "unreceipted" if carrier.has_sent and carrier.receipt is None else "failed"

    def _expectations(self) -> Expectations:
        engine = self.device.engine
        artefact = self.device.artefact
        return Expectations(
            engine.identity,
            engine.layout,
            engine.max_positions,
            engine.vocabulary,
            artefact.digest if artefact else None,
        )
