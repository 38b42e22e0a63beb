"""Evaluates policies: policies and a model -> leakage a seat and attack, utility and cost, as a `Report`.

Evaluation. Every prompt is run under every policy through the product, the attacks of `playbook` are played on what
each seat saw, and closed-set confirmation asks for the personal value among 100 look-alikes. Rates carry 95 %
intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from splitinfer import codec as codecs
from splitinfer import schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import UsageError
from splitinfer.evaluation.active import attack_actively
from splitinfer.evaluation.audit.mechanisms import clipped_cache, embedding_noise
from splitinfer.evaluation.capture import Captured, Seat, Stage
from splitinfer.evaluation.playbook import Attacker
from splitinfer.evaluation.prompts import make_prompts
from splitinfer.evaluation.report import (
    CostFigures,
    NoiseFigures,
    PolicyFigures,
    Report,
    TenantFigures,
    UtilityFigures,
)
from splitinfer.evaluation.settings import Settings
from splitinfer.evaluation.store_reader import read_disk
from splitinfer.evaluation.tally import Tally
from splitinfer.evaluation.tenants import time_prefixes
from splitinfer.handoff import SamplingParams
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel
from splitinfer.model.measure import Window, measure
from trust_models.codecs import AUTO
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

__all__ = ["Settings", "evaluate"]

_SCORED_TOKENS = 8


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
    if not policies:
        raise UsageError("an evaluation needs at least one policy")
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
    params = SamplingParams(max_new_tokens=settings.max_new_tokens)
    prompts = make_prompts(settings.prompts, seed=settings.seed)
    with Stage.open(policy, engine) as stage:
        attacker = Attacker(loaded, artefact=stage.artefact, beam=settings.beam)
        tally = Tally(attacker, settings)
        for count, prompt in enumerate(prompts, start=1):
            tally.add(stage.run(prompt, params=params))
            if progress is not None:
                progress(count)
        through = partial(codecs.move, artefact=stage.artefact)
    kl, agreement = _divergence(loaded, through, tally.runs)
    seen, first = replace(params, max_new_tokens=min(2, params.max_new_tokens)), prompts[0]
    # A session of rounds takes long, and its manipulations are refused one like the other.
    is_in_rounds = MODES[policy.mode].protection != "sealed"
    attempts = min(1, settings.active_attempts) if is_in_rounds else settings.active_attempts
    return PolicyFigures(
        name=name,
        mode=policy.mode.value,
        codec=policy.transfer.codec,
        policy_sha256=policy.digest,
        attacks=tally.figures(),
        confirmation={seat.value: rate for seat, rate in tally.confirmed.items()},
        utility=UtilityFigures(tally.right, kl, agreement),
        cost=_mean_cost(tally.runs),
        seen={seat.value: tally.runs[0].exposures[seat].sentence() for seat in settings.seats},
        layers=tally.layers,
        tenants=_tenants(policy, engine, settings),
        noise=_noise(tally, engine, settings, attacker.residuals),
        lookalikes=settings.lookalikes,
        chosen=_chosen(policy, tally.runs),
        active=attack_actively(policy, engine, first, attempts=attempts, params=seen, seed=settings.seed),
        store=read_disk(policy, engine, first, params=seen) if settings.active_attempts else None,
    )


def _chosen(policy: Policy, runs: Sequence[Captured]) -> dict[str, int]:
    """Return how often codec "auto" chose what; empty for a policy that names a codec."""
    if policy.transfer.codec != AUTO:
        return {}
    return dict(Counter(run.answer.choice.codec if run.answer.choice else "raw" for run in runs))


def _noise(tally: Tally, engine: Engine, settings: Settings, residuals: Sequence[float]) -> NoiseFigures | None:
    """Audit the promise of the first release, on a pair that is as far apart as its neighbours can be, or closer."""
    certificate = tally.runs[0].answer.certificate
    if certificate is None:
        return None
    if certificate.mu is None:
        return NoiseFigures(certificate.to_json(), None)
    if certificate.mechanism != "embedding":
        audited = clipped_cache(mu=certificate.mu).audit(releases=settings.audit_releases)
        return NoiseFigures(certificate.to_json(), audited)
    # A promise for whole prompts is made for the size class of their private tokens.
    private = schedule.pad_tokens(len(tally.runs[0].tokens.private_positions))
    adjacency = min(certificate.adjacency.tokens or private, private)
    mechanism = embedding_noise(engine, mu=certificate.mu, adjacency=adjacency)
    audited = mechanism.closer().audit(releases=settings.audit_releases)
    return NoiseFigures(certificate.to_json(), audited, max(residuals, default=None))


def _tenants(policy: Policy, engine: Engine, settings: Settings) -> TenantFigures | None:
    """Time two tenants where the cloud keeps caches of what all may know; None for the other modes."""
    if policy.mode is not TrustMode.PUBLIC_PREFIX or not settings.tenant_texts:
        return None
    timed = [
        time_prefixes(
            engine,
            texts=settings.tenant_texts,
            tokens=min(settings.tenant_tokens, engine.max_positions // 2),
            seed=settings.seed,
            is_isolating=is_isolating,
        )
        for is_isolating in (True, False)
    ]
    return TenantFigures(*timed)


def _divergence(
    loaded: LoadedModel, through: Callable[..., CacheSnapshot], runs: Sequence[Captured]
) -> tuple[float, float]:
    """Return KL(exact || what was decoded from) in nats a token, and top-1 agreement, where the right answer is fed.

    What was decoded from is what the recipient held; where the device decoded, the cache of what the recipient
    prefilled, through the codec.
    """
    if all(run.answer.exact for run in runs):
        return 0.0, 1.0
    found = []
    for run in runs:
        right = loaded.tokenizer(run.prompt.secret, add_special_tokens=False).input_ids[:_SCORED_TOKENS]
        found.append(Window((*run.tokens.token_ids, *right), len(run.tokens.token_ids) - 1))
    seen = iter([run.exposures[Seat.RECIPIENT] for run in runs] * 2)

    def moved(snapshot: CacheSnapshot) -> CacheSnapshot:
        exposure = next(seen)
        if exposure.snapshot is not None:
            return exposure.snapshot
        if exposure.embeddings is not None:
            snapshot = _prefilled(loaded, exposure.embeddings)
        return through(snapshot, codec=exposure.codec)

    # One prompt is measured twice, because a loss has an error.
    loss = measure(loaded, found if len(found) > 1 else found * 2, through=moved)
    return loss.kl_nats, loss.top1_agreement


def _prefilled(loaded: LoadedModel, embeddings: torch.Tensor) -> CacheSnapshot:
    count = len(embeddings)
    return Engine(loaded).prefill((0,) * count, steps=[(0, count)], rows=embeddings.numpy())


def _mean_cost(runs: Sequence[Captured]) -> CostFigures:
    costs, count = [run.cost for run in runs], len(runs)
    return CostFigures(
        bytes_up=sum(cost.bytes_up for cost in costs) // count,
        bytes_down=sum(cost.bytes_down for cost in costs) // count,
        ttft_seconds=sum(cost.ttft_seconds for cost in costs) / count,
        seconds_per_token=sum(cost.tpot_seconds for cost in costs) / count,
        device_cpu_seconds=sum(cost.device_cpu_seconds for cost in costs) / count,
    )
