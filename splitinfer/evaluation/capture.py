"""What each seat really sees of a run: policy and prompt -> the answer and one `Exposure` a seat.

Evaluation. The product's own session runs the prompt against its own cloud, in one process and in scratch folders; the
adversaries are those of `seats`. A policy's remote is replaced by that cloud; all else of the policy is in force.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from splitinfer.answer import Answer
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.evaluation.attacks.likelihood import CacheNoise, PerSlab
from splitinfer.evaluation.attacks.observed import CapturedCache, Part
from splitinfer.evaluation.attacks.traffic import Transcript
from splitinfer.evaluation.metrics import Cost
from splitinfer.evaluation.prompts import EvaluationPrompt
from splitinfer.evaluation.scratch import Scratch
from splitinfer.evaluation.seats import CuriousCloud, Handed, WatchedCloud
from splitinfer.handoff import Cloud, PromptTokens, SamplingParams
from splitinfer.home import Home
from splitinfer.joint.offline import prepare_pool
from splitinfer.model.engine import Engine
from splitinfer.noise.certificate import Certificate
from splitinfer.noised import with_public_end
from splitinfer.session import Session, load_artefact
from splitinfer.transport.memory import MemoryTransport
from trust_models.codecs import AUTO
from trust_models.modes import MODES, TrustMode
from trust_models.noise import Noise
from trust_models.policy import Policy
from trust_models.policy import Remote as RemoteSection

__all__ = ["Captured", "Exposure", "Seat", "Stage", "private_positions", "travelled_in"]

_ANY_EPSILON = 1e18


class Seat(StrEnum):
    """Where an adversary sits."""

    NETWORK = "network"
    RECIPIENT = "recipient"


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one seat saw of one run: ids in clear by position, a cache, traffic. Nothing else may reach an attack.

    `tokens` is None where not even the prompt's length was seen. `public` is granted to every seat: public text and the
    template by position, which anybody may have. `answered` are the ids of an answer that the seat itself decoded.
    `embeddings` are noised inputs [tokens, hidden] where those were seen; `noise_sigma` is the standard deviation that
    the policy publishes, None without noise, and `noise_post` what was done to the noised rows;
    `cache_noise` is what it publishes where the finished cache was noised instead.
    `codec` is the one that a cache travelled in, or would have.
    `counted_bytes` counts, by kind, what was seen and is no private text, or is kept from the seat by design.
    """

    seat: Seat
    in_clear: dict[int, int] = field(repr=False)
    public: dict[int, int] = field(default_factory=dict, repr=False)
    answered: tuple[int, ...] = field(default=(), repr=False)
    cache: CapturedCache | None = None
    snapshot: CacheSnapshot | None = field(default=None, repr=False)
    transcript: Transcript | None = None
    tokens: int | None = None
    embeddings: torch.Tensor | None = field(default=None, repr=False)
    noise_sigma: float | None = None
    noise_post: str = "none"
    cache_noise: CacheNoise | None = None
    counted_bytes: Mapping[str, int] = field(default_factory=dict)
    codec: str = "raw"

    @property
    def is_noised(self) -> bool:
        """Tell whether private text is seen through noise, on embeddings or on the finished cache."""
        return self.noise_sigma is not None or self.cache_noise is not None

    @property
    def first_private(self) -> int:
        """Return the first position that is not public: rows before it are never noised."""
        return next(place for place in range(len(self.public) + 1) if place not in self.public)

    @property
    def likely_sigma(self) -> float | None:
        """Return the deviation at which a row of the table explains what was seen; None without noise.

        Where the nearest row was released in a noised one's place, row j comes from row i with the chance that noise
        carries i past the middle, about exp(-|i - j|^2 / 8 sigma^2): a density of twice the deviation.
        """
        doubled = 2.0 if self.noise_post == "nearest" else 1.0
        return None if self.noise_sigma is None else doubled * self.noise_sigma

    @property
    def known(self) -> dict[int, int]:
        """Return what needs no attack: the public text, and what stands in clear."""
        return {**self.public, **self.in_clear}

    def sentence(self) -> str:
        """Say what was seen, in counts."""
        parts = []
        if self.transcript is not None:
            up, down = (self.transcript.bytes(way) for way in ("up", "down"))
            parts.append(f"sizes and times of {up:,} bytes up and {down:,} down" if up else "no traffic")
        if self.in_clear:
            parts.append(f"{len(self.in_clear)} token ids in clear")
        if self.cache is not None:
            noise = "" if self.noise_sigma is None else f" through noise of sigma {self.noise_sigma:.3g}"
            noise = noise if self.cache_noise is None else " through noise on its rows"
            parts.append(f"a cache of {self.cache.tokens} tokens{noise}")
        if self.embeddings is not None:
            noise = "" if self.noise_sigma is None else f" through noise of sigma {self.noise_sigma:.3g}"
            parts.append(f"{len(self.embeddings)} embeddings{noise}")
        if self.answered:
            parts.append(f"{len(self.answered)} tokens of the answer")
        parts += [f"{size:,} bytes of {kind}" for kind, size in self.counted_bytes.items()]
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True, slots=True)
class Captured:
    """One run: the prompt, its true ids, the answer, the cost, and what was exposed to whom.

    `appended` are the public ids that a mode puts behind every prompt.
    """

    prompt: EvaluationPrompt
    tokens: PromptTokens
    answer: Answer
    cost: Cost
    exposures: dict[Seat, Exposure] = field(repr=False)
    appended: tuple[int, ...] = ()


class Stage:
    """A device and a curious cloud in one process, under one policy; made by `open`, in `folder`.

    `artefact` is the model's, of calibrated codecs: public, as the model is.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        session: Session,
        cloud: WatchedCloud,
        inner: CuriousCloud,
        *,
        device: Home,
        folder: Path,
    ) -> None:
        self.policy, self.engine, self.device, self.folder = policy, engine, device, folder
        self._session, self._watched, self._inner = session, cloud, inner
        self.artefact = load_artefact(engine, home=device)

    @classmethod
    @contextmanager
    def open(
        cls,
        policy: Policy,
        engine: Engine,
        *,
        between: Callable[[Cloud], Cloud] | None = None,
        use_store: bool = False,
    ) -> Iterator[Stage]:
        """Set both sides up in scratch folders, which are removed at the end.

        `between` puts somebody in front of the cloud. The store of public caches is used only where that is asked for.
        """
        with Scratch.open() as scratch:
            inner = scratch.service(CuriousCloud, engine)
            watched, device = WatchedCloud(inner), scratch.device("device")
            here = _here(policy)
            door = watched if between is None else between(watched)
            transport = None if here.mode is TrustMode.LOCAL else MemoryTransport(door)
            # Each prompt is a conversation of its own, so that all of it crosses, whatever an earlier one left behind.
            with Session.open(
                here,
                home=device,
                engine=engine,
                transport=transport,
                use_store=use_store,
                remember=False,
            ) as session:
                yield cls(here, engine, session, watched, inner, device=device, folder=scratch.folder)

    def run(self, prompt: EvaluationPrompt, *, params: SamplingParams | None = None) -> Captured:
        """Run one prompt and return what every seat saw of it.

        Raises what a session raises, and UsageError where the recipient was handed what its seat cannot read.
        """
        params = params or SamplingParams(max_new_tokens=24)
        self._prepare(params)
        self._watched.forget()
        self._inner.forget()
        plain = self.engine.tokenize(prompt.segments)
        is_fed_by_cloud = self.policy.noise is not None and MODES[self.policy.mode].decode == "cloud"
        noise = self.policy.noise if is_fed_by_cloud else None
        tokens = with_public_end(self.engine, plain, noise) if noise else plain
        began = time.process_time()
        answer = self._session.run(prompt.segments, **self._sampling(params))
        device_cpu = time.process_time() - began - self._watched.cpu_seconds
        self._inner.handed.require_complete()
        cost = Cost(
            answer.egress.bytes_sent,
            answer.egress.bytes_received,
            answer.ttft_seconds,
            answer.tpot_seconds,
            max(0.0, device_cpu),
        )
        appended = tokens.token_ids[len(plain.token_ids) :]
        return Captured(prompt, tokens, answer, cost, self._exposures(tokens, answer), appended)

    def _with_end(self, tokens: PromptTokens) -> PromptTokens:
        """Return the tokens with what the mode puts behind them: where the cloud decodes, its first token is public."""
        noise, is_fed_by_cloud = self.policy.noise, MODES[self.policy.mode].decode == "cloud"
        return with_public_end(self.engine, tokens, noise) if noise and is_fed_by_cloud else tokens

    def _prepare(self, params: SamplingParams) -> None:
        """Make the masks that a run will use up, where it uses any: they are made beforehand, not in its time."""
        rules = self.policy.masked
        if self.policy.mode is TrustMode.MASKED:
            wanted = params.max_new_tokens + 2 * rules.reserve
            prepare_pool(self.device, self.engine, tokens=wanted, max_bytes=rules.max_bytes)

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        """Return what the caller says of sampling; nothing where the policy says it."""
        row = MODES[self.policy.mode]
        if row.is_noised and row.decode == "cloud":
            return {}
        return {"max_new_tokens": params.max_new_tokens, "temperature": params.temperature, "seed": params.seed}

    def _exposures(self, tokens: PromptTokens, answer: Answer) -> dict[Seat, Exposure]:
        certificate = answer.certificate
        network = Exposure(Seat.NETWORK, {}, transcript=self._watched.transcript)
        handed = self._inner.handed
        recipient = replace(_recipient(handed, self._watched.transcript), counted_bytes=handed.counted_bytes)
        if certificate is not None:
            recipient = replace(
                recipient,
                noise_sigma=certificate.sigma,
                noise_post=certificate.post,
                cache_noise=_cache_noise(certificate, self.policy.noise),
            )
        private = set(tokens.private_positions)
        public = {place: token for place, token in enumerate(tokens.token_ids) if place not in private}
        codec = travelled_in(self.policy, answer)
        return {seen.seat: replace(seen, public=public, codec=codec) for seen in (network, recipient)}


def travelled_in(policy: Policy, answer: Answer) -> str:
    """Return the codec of a run's cache: the policy's, or what "auto" chose; "raw" where nothing travelled for that."""
    if policy.transfer.codec != AUTO:
        return policy.transfer.codec
    return "raw" if answer.choice is None or answer.choice.is_local else answer.choice.codec


def private_positions(tokens: PromptTokens, *, control_ids: frozenset[int]) -> frozenset[int]:
    """Return the positions of private text, without control tokens."""
    return frozenset(place for place in tokens.private_positions if tokens.token_ids[place] not in control_ids)


def _recipient(handed: Handed, transcript: Transcript) -> Exposure:
    in_clear, snapshot = dict(enumerate(handed.token_ids)), handed.snapshot
    if handed.rows is not None:
        rows = torch.from_numpy(handed.rows).float()
        # The last token stays on the device.
        return Exposure(Seat.RECIPIENT, in_clear, embeddings=rows, transcript=transcript, tokens=len(rows) + 1)
    if snapshot is None:
        tokens = len(handed.token_ids) or None
        return Exposure(Seat.RECIPIENT, in_clear, transcript=transcript, tokens=tokens)
    if handed.last_token is not None:
        in_clear[snapshot.true_tokens] = handed.last_token
    cache = CapturedCache.of(snapshot)
    return Exposure(
        Seat.RECIPIENT,
        in_clear,
        answered=handed.answered,
        cache=cache,
        snapshot=snapshot,
        transcript=transcript,
        tokens=snapshot.true_tokens + 1,
    )


def _cache_noise(certificate: Certificate, noise: Noise | None) -> CacheNoise | None:
    """Return what certificate and policy say of noise on rows; the attacker has both, and they are no secret."""
    if certificate.mechanism == "embedding" or noise is None:
        return None
    if not certificate.slabs:
        return CacheNoise(relative=noise.relative_noise)
    sigmas: dict[tuple[int, Part], list[float]] = {}
    norms: dict[tuple[int, Part], list[float]] = {}
    for slab in certificate.slabs:
        layer, part, _head = slab.slab.split(".")
        key: tuple[int, Part] = (int(layer), "keys" if part == "keys" else "values")
        sigmas.setdefault(key, []).append(slab.sigma)
        norms.setdefault(key, []).append(slab.clip_norm)
    return CacheNoise(_per_slab(sigmas), _per_slab(norms))


def _per_slab(heads: Mapping[tuple[int, Part], list[float]]) -> PerSlab:
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in heads.items()}


def _here(policy: Policy) -> Policy:
    """Return the policy with this process's cloud and log.

    What a codec costs is measured here, not looked up, but for "auto", which chooses by it. The log is new and
    forgotten at the end, so that no budget of a subject is spent; each release keeps its own price.
    """
    changes: dict[str, Any] = {"audit": type(policy.audit)()}
    if policy.transfer.codec != AUTO:
        changes["transfer"] = policy.transfer.model_copy(update={"max_kl": None})
    if policy.noise is not None and policy.noise.mechanism != "relative":
        changes["noise"] = policy.noise.model_copy(update={"budget_epsilon": _ANY_EPSILON})
    if policy.remote is not None:
        changes["remote"] = RemoteSection(name="default")
    return policy.model_copy(update=changes)
