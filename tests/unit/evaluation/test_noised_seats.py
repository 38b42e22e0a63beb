"""Noised policies from the recipient's seat: what is attacked is what the product released, through its noise."""

from __future__ import annotations

import pytest

from splitinfer.errors import UsageError
from splitinfer.evaluation.capture import Captured, Seat, Stage
from splitinfer.evaluation.evaluate import evaluate
from splitinfer.evaluation.playbook import ATTACKS, Attacker
from splitinfer.evaluation.prompts import make_prompts
from splitinfer.evaluation.rendering import text_lines
from splitinfer.evaluation.settings import Settings
from splitinfer.evaluation.variants import with_codecs, with_noise
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from tests.support import tiny_models
from tests.support.memory_clouds import NOISE, policy_of
from trust_models.policy import Policy

FAINT, LOUD = 1e-4, 50.0


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(tiny_models.build(tmp_path_factory.mktemp("noised") / "llama")))


def noised(sigma: float, *, post: str = "none") -> Policy:
    noise = {**NOISE, "sigma": sigma, "post": post, "first_token_text": "x"}
    return policy_of("noised-decode", noise=noise, sampling={"max_new_tokens": 2})


def run(loaded: LoadedModel, policy: Policy) -> Captured:
    with Stage.open(policy, Engine(loaded)) as stage:
        return stage.run(make_prompts(1, seed=0, document_rows=1)[0])


def recovered(loaded: LoadedModel, captured: Captured, attack: str) -> float:
    true = captured.tokens.token_ids
    found = ATTACKS[attack].run(Attacker(loaded), captured.exposures[Seat.RECIPIENT], len(true))
    assert found is not None
    places = captured.tokens.private_positions
    return sum(found.token_ids[place] == true[place] for place in places) / len(places)


@pytest.mark.parametrize("post", ["none", "nearest"])
def test_faint_noise_hides_nothing(loaded: LoadedModel, post: str) -> None:
    captured = run(loaded, noised(FAINT, post=post))
    exposure = captured.exposures[Seat.RECIPIENT]
    assert exposure.noise_sigma == FAINT
    assert exposure.answered == captured.answer.token_ids
    assert not set(exposure.public) & set(captured.tokens.private_positions)
    assert recovered(loaded, captured, "denoise") > 0.95


def test_loud_noise_leaves_no_more_than_the_prior(loaded: LoadedModel) -> None:
    captured = run(loaded, noised(LOUD))
    prior = recovered(loaded, captured, "prior")
    assert recovered(loaded, captured, "denoise") <= prior + 0.15
    assert recovered(loaded, captured, "nearest") < 0.15


def test_a_noised_policy_is_reported_with_its_promise_and_an_audit_of_it(loaded: LoadedModel) -> None:
    settings = Settings(
        attacks=("nearest",), seats=(Seat.RECIPIENT,), prompts=1, lookalikes=3, audit_releases=200, layer_prompts=0
    )
    policies = with_noise([("noisy", noised(1.0))], [FAINT])
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
    settings = Settings(
        attacks=("answer",), seats=(Seat.RECIPIENT,), prompts=1, lookalikes=2, audit_releases=100, layer_prompts=0
    )
    (loud,) = evaluate([("loud", noised(LOUD))], loaded, settings).policies
    assert loud.utility.kl_nats > 1e-3


def test_variants_name_what_they_change_and_refuse_what_means_nothing() -> None:
    codecs = with_codecs([("p", policy_of("sealed-decode"))], ["raw", "q4"])
    assert [(name, policy.transfer.codec) for name, policy in codecs] == [("p, raw", "raw"), ("p, q4", "q4")]
    assert with_noise(codecs, [0.1]) == codecs
    with pytest.raises(UsageError, match="zip"):
        with_codecs(codecs, ["zip"])
    with pytest.raises(UsageError, match="--sigma"):
        with_noise(codecs, [-1.0])
