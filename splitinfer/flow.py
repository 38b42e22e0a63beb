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

Each of these is a way in `ways/`, found by the mode in one closed table.

A later turn of a session goes on from what the device, and under the policy the cloud, hold of the conversation.
Nothing reaches the cloud but through `egress.gate`, and nothing from it is used before `receive` has checked it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from splitinfer import schedule
from splitinfer.answer import Answer
from splitinfer.asks import close_ask
from splitinfer.device import Device
from splitinfer.errors import EgressDeniedError, PolicyError, TransportError
from splitinfer.handoff import Label, PromptTokens, SamplingParams, Segment
from splitinfer.noised import require_private, with_public_end
from splitinfer.placement import Plan, place
from splitinfer.recall import Recall
from splitinfer.selector import Choice
from splitinfer.ways.calls import Calls
from splitinfer.ways.progress import Progress
from splitinfer.ways.run import Run
from splitinfer.ways.table import WAYS
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

__all__ = ["Flow"]


class Flow:
    """One run; `run()` is read once, then `answer` is there."""

    def __init__(self, device: Device, segments: Sequence[Segment], params: SamplingParams) -> None:
        self._device, self._segments, self._params = device, segments, params
        self._engine = device.engine
        self._progress = Progress(device.policy.mode, time.perf_counter())
        self._calls = Calls(device, self._progress)
        self.answer: Answer | None = None

    @property
    def has_begun(self) -> bool:
        """Tell whether any text was given out."""
        return any(self._progress.text)

    def run(self) -> Generator[str, None, None]:
        """Label, tokenise, plan, go the mode's way; yields text pieces."""
        self._progress.started = time.perf_counter()
        run = self._planned()
        for piece in self._pieces(run):
            if piece:
                self._progress.text.append(piece)
                yield piece
        self.answer = self._finished(run)

    def end_session(self) -> None:
        """Let the cloud erase what it holds of the session; logged, as every call is."""
        ask = close_ask(self._calls.common())
        with self._calls.permitted(ask) as exchange:
            exchange.receive_closed(self._calls.send(exchange, ask))

    def _planned(self) -> Run:
        prompt = self._tokenized()
        plan = self._placed(prompt)
        recall = Recall(self._device, prompt, plan)
        return Run(self._device, prompt, plan, self._params, self._progress, self._calls, recall)

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

    def _placed(self, prompt: PromptTokens) -> Plan:
        policy, limit = self._device.policy, self._engine.max_positions
        try:
            return place(policy, prompt, max_positions=limit, max_new_tokens=self._params.max_new_tokens)
        except EgressDeniedError as error:
            self._device.gate.deny(error, mode=policy.mode.value, policy_sha256=policy.digest)
            raise

    def _pieces(self, run: Run) -> Iterator[str]:
        progress = self._progress
        choice = progress.choice = self._chosen(run)
        if choice is not None and choice.is_local:
            progress.mode = TrustMode.LOCAL
        try:
            yield from WAYS[progress.mode](run)
        except TransportError:
            if not run.may_fall_back():
                raise
            self._fall_back(run)
            yield from WAYS[progress.mode](run)

    def _fall_back(self, run: Run) -> None:
        """Let the device do all of it; what a broken transfer brought is used where it is more than is held."""
        progress = self._progress
        progress.mode, progress.is_fallback = TrustMode.LOCAL, True
        progress.is_exact = progress.part is None or progress.is_exact
        progress.prefilled_by_cloud_tokens, progress.origin = 0, None
        # The device may hold the prompt's cache by now.
        run.recall = Recall(self._device, run.prompt, run.plan)
        if progress.certificate:
            progress.certificate = replace(progress.certificate, answer_is_seen=False)

    def _chosen(self, run: Run) -> Choice | None:
        """Choose the codec where the policy leaves it open, or that the device computes what the cloud would."""
        chooser, plan = self._device.chooser, run.plan
        if chooser is None or MODES[plan.mode].protection != "sealed":
            return None
        is_decode = plan.decode_on == "cloud"
        place = run.recall.decode_place() if is_decode else run.recall.prefill_place()
        tokens = len(run.prompt.token_ids) - 1 if is_decode else plan.prefix_tokens
        if tokens <= place.base_tokens:
            return None
        padded = schedule.pad_new_tokens(tokens, place.base_tokens)
        return chooser.choose(
            padded_tokens=padded,
            base_tokens=place.base_tokens,
            local_tokens=None if is_decode else padded - place.base_tokens,
        )

    def _finished(self, run: Run) -> Answer:
        progress, prompt, plan = self._progress, run.prompt, run.plan
        count = len(progress.token_ids)
        gaps = progress.last_token_at - progress.first_token_at
        first = progress.first_token_at or time.perf_counter()
        carrier = progress.carrier if not progress.is_fallback else None
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
            receipt=carrier.receipt if carrier else None,
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
