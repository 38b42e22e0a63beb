"""Noised policies from the recipient's seat: what is attacked is what the product released, through its noise."""

from __future__ import annotations

import pytest
import torch

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.likelihood import clipped as clipped_rows
from splitinfer.evaluation.attacks.observed import CapturedCache
from splitinfer.evaluation.capture import Captured, Seat, Stage
from splitinfer.evaluation.evaluate import evaluate
from splitinfer.evaluation.playbook import ATTACKS, Attacker
from splitinfer.evaluation.prompts import EvaluationPrompt
from splitinfer.evaluation.rendering import text_lines
from splitinfer.evaluation.settings import Settings
from splitinfer.evaluation.variants import Strengths, with_codecs, with_noise
from splitinfer.handoff import Label, Role, SamplingParams, Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from tests.support import tiny_models
from tests.support.memory_clouds import NOISE, policy_of
from trust_models.policy import Policy

FAINT, LOUD = 1e-4, 50.0


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(tiny_models.build(tmp_path_factory.mktemp("noised") / "llama")))


# Short, because every private position of a cache is inverted by itself.
PROMPT = EvaluationPrompt(
    (
        Segment(Role.DOCUMENT, "Price list", Label.PUBLIC),
        Segment(Role.NOTE, "Phone: 415-203-7786", Label.PRIVATE),
        Segment(Role.QUESTION, "Phone?", Label.PRIVATE),
    ),
    secret="415-203-7786",
    topic="support",
)


def noised(sigma: float, *, mode: str = "noised-decode", post: str = "none") -> Policy:
    noise = {**NOISE, "sigma": sigma, "post": post}
    if mode == "noised-decode":
        noise["first_token_text"] = "x"
    return policy_of(mode, noise=noise, sampling={"max_new_tokens": 2})


def run(loaded: LoadedModel, policy: Policy) -> Captured:
    with Stage.open(policy, Engine(loaded)) as stage:
        return stage.run(PROMPT, params=SamplingParams(max_new_tokens=2))


def recovered(loaded: LoadedModel, captured: Captured, attack: str) -> float:
    true = captured.tokens.token_ids
    found = ATTACKS[attack].run(Attacker(loaded), captured.exposures[Seat.RECIPIENT], len(true))
    assert found is not None
    # Where the device decodes, the last token stays there.
    places = [place for place in captured.tokens.private_positions if place < len(true) - 1]
    return sum(found.token_ids[place] == true[place] for place in places) / len(places)


@pytest.mark.parametrize("post", ["none", "nearest"])
def test_faint_noise_hides_nothing(loaded: LoadedModel, post: str) -> None:
    captured = run(loaded, noised(FAINT, post=post))
    exposure = captured.exposures[Seat.RECIPIENT]
    assert exposure.noise_sigma == FAINT
    assert exposure.answered == captured.answer.token_ids
    assert not set(exposure.public) & set(captured.tokens.private_positions)
    assert recovered(loaded, captured, "denoise") > 0.95


def test_noised_embeddings_are_attacked_as_they_travel(loaded: LoadedModel) -> None:
    captured = run(loaded, noised(FAINT, mode="noised-prefill"))
    exposure = captured.exposures[Seat.RECIPIENT]
    assert exposure.cache is None
    assert exposure.answered == ()
    assert exposure.embeddings is not None
    assert exposure.tokens == len(exposure.embeddings) + 1 == len(captured.tokens.token_ids)
    assert f"{len(exposure.embeddings)} embeddings through noise" in exposure.sentence()
    assert recovered(loaded, captured, "denoise") > 0.95


def test_loud_noise_leaves_no_more_than_the_prior(loaded: LoadedModel) -> None:
    captured = run(loaded, noised(LOUD))
    prior = recovered(loaded, captured, "prior")
    assert recovered(loaded, captured, "denoise") <= prior + 0.15
    assert recovered(loaded, captured, "nearest") < 0.15


def test_a_noised_policy_is_reported_with_its_promise_and_an_audit_of_it(loaded: LoadedModel) -> None:
    settings = Settings(
        attacks=("nearest",), seats=(Seat.RECIPIENT,), prompts=1, max_new_tokens=2, lookalikes=3, audit_releases=200
    )
    policies = with_noise([("noisy", noised(1.0, mode="noised-prefill"))], Strengths([FAINT], [8.0], [0.1]))
    report = evaluate(policies, loaded, settings)
    (figures,) = report.policies
    assert figures.name == "noisy, sigma 0.0001"
    assert figures.noise is not None
    assert figures.noise.certificate["sigma"] == FAINT
    assert not figures.noise.audited.is_refuted
    assert figures.confirmation["recipient"].share == 1.0
    assert figures.worst("noise_audit") == 0.0
    assert 0 <= figures.utility.kl_nats < 1e-4
    assert "formally meaningless" in "\n".join(text_lines(report))


def test_what_noise_costs_is_measured_on_what_the_recipient_decoded_from(loaded: LoadedModel) -> None:
    settings = Settings(attacks=(), seats=(Seat.NETWORK,), prompts=1, max_new_tokens=2, audit_releases=100)
    policies = [(mode, noised(LOUD, mode=mode)) for mode in ("noised-decode", "noised-prefill")]
    for figures in evaluate(policies, loaded, settings).policies:
        # The distributions of a random model are nearly flat, with and without noise.
        assert figures.utility.kl_nats > 1e-5


def relative(noise: float) -> Policy:
    words = {"mechanism": "relative", "relative_noise": noise, "subject": "test", "budget_epsilon": "unlimited"}
    return policy_of("noised-decode", noise={**words, "first_token_text": "x"}, sampling={"max_new_tokens": 2})


def clipped(epsilon: float) -> Policy:
    words = {"mechanism": "clipped", "adjacency": "prompt", "epsilon": epsilon, "delta": 1e-5, "subject": "test"}
    noise = {**words, "budget_epsilon": 1e15, "first_token_text": "x"}
    return policy_of("noised-decode", noise=noise, sampling={"max_new_tokens": 2})


@pytest.mark.parametrize(
    ("policy", "is_read"),
    [(relative(0.01), True), (relative(100.0), False), (clipped(1e11), True), (clipped(8.0), False)],
    ids=["faint relative", "loud relative", "faint clipped", "loud clipped"],
)
def test_a_noised_cache_is_read_by_who_knows_what_the_policy_publishes(
    loaded: LoadedModel, policy: Policy, is_read: bool
) -> None:
    with Stage.open(policy, Engine(loaded)) as stage:
        captured = stage.run(PROMPT)
    exposure, true = captured.exposures[Seat.RECIPIENT], captured.tokens.token_ids
    assert (exposure.is_noised, exposure.noise_sigma) == (True, None)
    assert exposure.first_private == min(captured.tokens.private_positions)
    assert ATTACKS["posterior"].run(Attacker(loaded), exposure, len(true)) is None
    for attack in ("denoise", "nearest"):
        share = recovered(loaded, captured, attack)
        assert share > 0.9 if is_read else share < 0.5


def test_the_variances_of_a_noised_cache_are_those_of_its_noise(loaded: LoadedModel) -> None:
    """The clipped ones are stated, the relative ones follow from the size of the noised rows."""
    engine = Engine(loaded)
    for policy in (relative(2.0), clipped(1e4)):
        with Stage.open(policy, engine) as stage:
            run = stage.run(PROMPT)
        exposure, ids = run.exposures[Seat.RECIPIENT], run.tokens.token_ids
        exact = CapturedCache.of(engine.prefill(ids, steps=[(0, len(ids) - 1)]))
        assert exposure.cache is not None
        assert exposure.cache_noise is not None
        first, norms = exposure.first_private, exposure.cache_noise.clip_norms
        found = exposure.cache_noise.variances(exposure.cache, first=first)
        for seen, true in zip(exposure.cache.slabs, exact.slabs, strict=True):
            key = seen.layer, seen.part
            cut = clipped_rows(true.rows, norms[key]) if norms else true.rows
            noise = (seen.rows - cut)[:, first:].double().square().mean((1, 2))
            torch.testing.assert_close(found[key].double(), noise, rtol=0.4, atol=0)
            torch.testing.assert_close(seen.rows[:, :first], true.rows[:, :first])


def test_noise_that_promises_nothing_is_reported_as_that(loaded: LoadedModel) -> None:
    settings = Settings(attacks=("answer",), seats=(Seat.NETWORK,), prompts=1, lookalikes=2)
    report = evaluate([("relative", relative(0.1))], loaded, settings)
    assert "promised: nothing; this noise is empirical only" in "\n".join(text_lines(report))
    assert report.policies[0].worst("noise_audit") == 0.0


def test_variants_name_what_they_change_and_refuse_what_means_nothing() -> None:
    codecs = with_codecs([("p", policy_of("sealed-decode"))], ["raw", "q4"])
    assert [(name, policy.transfer.codec) for name, policy in codecs] == [("p, raw", "raw"), ("p, q4", "q4")]
    assert with_noise(codecs, Strengths([0.1])) == codecs
    with pytest.raises(UsageError, match="zip"):
        with_codecs(codecs, ["zip"])
    with pytest.raises(UsageError, match="--sigma"):
        Strengths([-1.0])


def test_each_mechanism_is_set_beside_the_others() -> None:
    made = dict(with_noise([("p", noised(1.0))], Strengths([0.1], [8.0], [0.3])))
    assert list(made) == ["p, sigma 0.1", "p, clipped to epsilon 8", "p, relative noise 0.3"]
    noises = [policy.noise for policy in made.values()]
    assert [noise and noise.mechanism for noise in noises] == ["embedding", "clipped", "relative"]
    assert all(noise and noise.first_token_text == "x" for noise in noises)


def test_what_noise_on_a_cache_costs_is_measured_too(loaded: LoadedModel) -> None:
    settings = Settings(attacks=(), seats=(Seat.NETWORK,), prompts=1, max_new_tokens=2, audit_releases=100)
    policies = with_noise([("p", noised(1.0))], Strengths([], [8.0], [100.0]))
    for figures in evaluate(policies, loaded, settings).policies:
        assert figures.utility.kl_nats > 1e-5
        assert figures.noise is not None
