"""Evaluates policies: policies and a model -> leakage a seat and attack, utility and cost, as a `Report`.

Evaluation. Every prompt is run under every policy through the product, the attacks of `playbook` are played on what
each seat saw, and closed-set confirmation asks for the personal value among 100 look-alikes. Rates carry 95 %
intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinfer import codec as codecs
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.confirmation import cache_score, confirm
from splitinfer.evaluation.attacks.posterior import Beam, Recovered
from splitinfer.evaluation.capture import Captured, Exposure, Seat, Stage, private_positions
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.metrics import recovery
from splitinfer.evaluation.playbook import ATTACKS, Attacker
from splitinfer.evaluation.prompts import lookalikes, make_prompts
from splitinfer.evaluation.report import AttackFigures, CostFigures, PolicyFigures, Report, UtilityFigures
from splitinfer.handoff import SamplingParams
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel
from splitinfer.model.measure import measure, windows
from trust_models.codecs import LOSSY
from trust_models.policy import Policy

__all__ = ["Settings", "evaluate"]

LOOKALIKES = 100
_SCORED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What to play: attacks and seats by name, how many prompts, how long the answers, and the seed of it all."""

    attacks: tuple[str, ...] = tuple(ATTACKS)
    seats: tuple[Seat, ...] = tuple(Seat)
    prompts: int = 8
    seed: int = 0
    max_new_tokens: int = 24
    lookalikes: int = LOOKALIKES
    beam: Beam = field(default_factory=Beam)


Progress = Callable[[int, int], None]


def evaluate(
    policies: Sequence[tuple[str, Policy]],
    loaded: LoadedModel,
    settings: Settings,
    *,
    progress: Progress | None = None,
) -> Report:
    """Play the settings on every policy; `progress(done, total)` is called after every prompt.

    Raises UsageError without a policy or prompt, and what a session raises.
    """
    if not policies or settings.prompts < 1:
        raise UsageError("an evaluation needs at least one policy and one prompt")
    engine = Engine(loaded)
    total = len(policies) * settings.prompts
    figures = []
    for place, named in enumerate(policies):
        done = place * settings.prompts
        step = None if progress is None else lambda count, done=done: progress(done + count, total)
        figures.append(_policy(named, engine, loaded, settings, step))
    return Report(
        weights_sha256=loaded.identity.weights_sha256,
        parameters=engine.parameters,
        prompts=settings.prompts,
        seed=settings.seed,
        policies=tuple(figures),
    )


def _policy(
    named: tuple[str, Policy],
    engine: Engine,
    loaded: LoadedModel,
    settings: Settings,
    progress: Callable[[int], None] | None,
) -> PolicyFigures:
    name, policy = named
    attacker = Attacker(loaded, codec=policy.transfer.codec, beam=settings.beam)
    tally = _Tally(attacker, settings)
    params = SamplingParams(max_new_tokens=settings.max_new_tokens)
    prompts = make_prompts(settings.prompts, seed=settings.seed)
    with Stage.open(policy, engine) as stage:
        for count, prompt in enumerate(prompts, start=1):
            tally.add(stage.run(prompt, params=params))
            if progress is not None:
                progress(count)
    kl, agreement = _divergence(loaded, policy.transfer.codec, tally.runs)
    return PolicyFigures(
        name=name,
        mode=policy.mode.value,
        codec=policy.transfer.codec,
        policy_sha256=policy.digest,
        attacks=tally.figures(),
        confirmation={seat.value: rate for seat, rate in tally.confirmed.items()},
        utility=UtilityFigures(tally.right, kl, agreement),
        cost=_mean_cost(tally.runs),
    )


class _Tally:
    """Sums over prompts, by seat and attack."""

    def __init__(self, attacker: Attacker, settings: Settings) -> None:
        self._attacker, self._settings = attacker, settings
        self._rows: dict[tuple[Seat, str], list[AttackFigures]] = {}
        self.confirmed: dict[Seat, Rate] = {}
        self.right = Rate(0, 0)
        self.runs: list[Captured] = []

    def add(self, captured: Captured) -> None:
        """Play every attack of every seat on one run."""
        self.runs.append(captured)
        self.right += Rate(captured.prompt.secret in captured.answer.text, 1)
        for seat in self._settings.seats:
            exposure = captured.exposures[seat]
            for name in self._settings.attacks:
                self._play(seat, name, exposure, captured)
            self._confirm(seat, exposure, captured)

    def figures(self) -> tuple[AttackFigures, ...]:
        """Return the sums, one a seat and attack."""
        return tuple(AttackFigures.sum(rows) for rows in self._rows.values())

    def _play(self, seat: Seat, name: str, exposure: Exposure, captured: Captured) -> None:
        began = time.perf_counter()
        # The length is granted: what it takes to guess it is the business of traffic analysis.
        found = ATTACKS[name].run(self._attacker, exposure, len(captured.tokens.token_ids))
        if found is not None:
            row = self._figures(seat, name, found, captured, time.perf_counter() - began)
            self._rows.setdefault((seat, name), []).append(row)

    def _figures(self, seat: Seat, name: str, found: Recovered, captured: Captured, seconds: float) -> AttackFigures:
        tokenizer = self._attacker.loaded.tokenizer
        private = private_positions(captured.tokens, control_ids=frozenset(tokenizer.all_special_ids))
        places = sorted(private)
        true = captured.tokens.token_ids
        # Injection gives text without positions; the others are read where private text stands.
        shown = [found.token_ids[place] for place in places if place < len(found.token_ids)]
        shown = [token for token in (found.token_ids if name == "injection" else shown) if token >= 0]
        result = recovery(
            found.token_ids,
            true,
            private=private,
            found_text=tokenizer.decode(shown),
            true_text=tokenizer.decode([true[place] for place in places]),
            secret=captured.prompt.secret,
        )
        return AttackFigures(
            seat.value, name, result.tokens, result.exact, result.personal_data, result.rouge_l, seconds, 1
        )

    def _confirm(self, seat: Seat, exposure: Exposure, captured: Captured) -> None:
        values = lookalikes(captured.prompt, self._settings.lookalikes, seed=self._settings.seed)
        scores = (
            [self._score(exposure, captured, value) for value in values] if _sees(exposure) else [0.0] * len(values)
        )
        ranked = confirm(scores, true_index=values.index(captured.prompt.secret))
        self.confirmed[seat] = self.confirmed.get(seat, Rate(0, 0)) + Rate(ranked.chance_in_first(1), 1)

    def _score(self, exposure: Exposure, captured: Captured, value: str) -> float:
        ids = self._attacker_ids(captured, value)
        if exposure.cache is not None:
            seen = exposure.cache.only(layers=[min(exposure.cache.layers)])
            score = cache_score(self._attacker.loaded.model, seen, self._attacker.variances(seen))
            return score(ids[: exposure.cache.tokens]) if len(ids) == exposure.tokens else float("-inf")
        # In clear: a candidate is possible if it agrees wherever a token was seen.
        agrees = all(place < len(ids) and ids[place] == token for place, token in exposure.in_clear.items())
        return 0.0 if agrees else float("-inf")

    def _attacker_ids(self, captured: Captured, value: str) -> tuple[int, ...]:
        from splitinfer.model.prompt import tokenize

        return tokenize(self._attacker.loaded.tokenizer, captured.prompt.with_secret(value).segments).token_ids


def _sees(exposure: Exposure) -> bool:
    return exposure.cache is not None or bool(exposure.in_clear)


def _divergence(loaded: LoadedModel, codec: str, runs: Sequence[Captured]) -> tuple[float, float]:
    """Return KL(exact || what the decode side had) in nats a token, and top-1 agreement."""
    if codec not in LOSSY or len(runs) < 2:
        return 0.0, 1.0
    texts = [loaded.tokenizer.decode(list(run.tokens.token_ids)) for run in runs]
    shortest = min(len(run.tokens.token_ids) for run in runs)
    context = max(1, shortest - 2 * _SCORED_TOKENS - 1)
    found = windows(loaded, texts, context_tokens=context, scored_tokens=_SCORED_TOKENS, limit=len(texts))

    def moved(snapshot: CacheSnapshot) -> CacheSnapshot:
        return codecs.move(snapshot, codec=codec)

    loss = measure(loaded, found, through=moved)
    return loss.kl_nats, loss.top1_agreement


def _mean_cost(runs: Sequence[Captured]) -> CostFigures:
    costs, count = [run.cost for run in runs], len(runs)
    return CostFigures(
        bytes_up=sum(cost.bytes_up for cost in costs) // count,
        bytes_down=sum(cost.bytes_down for cost in costs) // count,
        ttft_seconds=sum(cost.ttft_seconds for cost in costs) / count,
        seconds_per_token=sum(cost.tpot_seconds for cost in costs) / count,
        device_cpu_seconds=sum(cost.device_cpu_seconds for cost in costs) / count,
    )
