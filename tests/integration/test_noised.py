"""Noised modes end to end: what reaches the cloud depends on private text through noise, and is paid for first."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from splitinfer.errors import (
    BudgetExceededError,
    CryptoParameterError,
    EgressDeniedError,
    LayoutMismatchError,
    PolicyError,
    TransportError,
    UsageError,
)
from splitinfer.handoff import ReleasedTransfer, Reply, Segment
from splitinfer.home.distances import DistanceFile
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.noise.gaussian import epsilon_of
from splitinfer.noise.sensitivity import ids_digest
from splitinfer.segments import note, public, question
from splitinfer.transport.memory import MemoryTransport
from tests.integration.conftest import CommandLine
from tests.support import tiny_models
from tests.support.curious_clouds import CuriousCloud, tensor_bytes, without_chance
from tests.support.memory_clouds import NOISE, NOISED_MODES, STATED_MODES, Paired, policy_of
from trust_models.policy import Policy

PUBLIC = public("Prices: apple 3, pear 5")


def prompt(last: str) -> list[Segment]:
    return [PUBLIC, note("The customer is Ana Paz."), question(f"Where does she live, {last}")]


def noised(*, sampling: dict[str, object] | None = None, **noise: object) -> Policy:
    return policy_of("noised-decode", noise={**NOISE, **noise}, sampling=sampling or {"max_new_tokens": 4})


def test_prompts_that_differ_in_the_last_private_token_differ_in_the_cache_alone(
    pair: Paired, tiny: Engine, curious: CuriousCloud, same_noise: None
) -> None:
    """Same length, same injected noise: manifest, first token, steps, sampling are byte for byte the same."""
    for last in ("x", "y"):
        pair.run(noised(), prompt(last), tiny, curious)
    (one, one_cache), (two, two_cache) = curious.caches
    assert without_chance(one) == without_chance(two)
    assert tensor_bytes(one_cache) != tensor_bytes(two_cache), (
        "the last private token reaches the cache through its noised row"
    )
    assert one["last_token"] == tiny.tokenize(prompt("x")).token_ids[-1]
    outcomes = [record for record in pair.records() if record["type"] == "outcome"]
    assert len({(record["bytes_sent"], record["bytes_received"]) for record in outcomes}) == 1


def test_rows_before_the_difference_and_nothing_else_of_the_cache_are_the_same(
    pair: Paired, tiny: Engine, same_noise: None
) -> None:
    from splitinfer.noised import release

    rows = []
    with pair.session(noised(), tiny, pair.service(tiny)) as session:
        for last in ("x", "y"):
            rows.append(release(session._device, tiny.tokenize(prompt(last))).rows)
    differing = (rows[0] != rows[1]).any(axis=1).nonzero()[0].tolist()
    assert differing == [tiny.tokenize(prompt("x")).private_positions[-1]]


def test_only_private_tokens_are_noised(pair: Paired, tiny: Engine) -> None:
    from splitinfer.noised import release

    tokens = tiny.tokenize(prompt("x"))
    with pair.session(noised(), tiny, pair.service(tiny)) as session:
        rows = release(session._device, tokens).rows
    exact = tiny.embedding_rows(tokens.token_ids)
    changed = (rows != exact).any(axis=1).nonzero()[0].tolist()
    assert tuple(changed) == tokens.private_positions
    assert len(changed) < len(tokens.token_ids) - tokens.text_spans[0][1]


def test_noise_is_drawn_anew_for_every_run_and_every_run_is_paid_for(
    pair: Paired, tiny: Engine, curious: CuriousCloud
) -> None:
    with pair.session(noised(), tiny, curious) as session:
        for _ in range(2):
            session.run(prompt("x"))
    one, two = (tensor_bytes(cache) for _, cache in curious.caches)
    assert one != two
    paid = [record for record in pair.records() if record["type"] == "noise"]
    assert len(paid) == len({record["key_sha256"] for record in paid}) == 2
    assert float(paid[1]["epsilon_spent"]) > float(paid[0]["epsilon_spent"])


def test_certificate_has_the_numbers_of_the_release_and_stands_in_the_log_before_the_intent(
    pair: Paired, tiny: Engine
) -> None:
    answer = pair.run(noised(adjacency=3, sigma=0.5, delta=1e-6), prompt("x"), tiny, pair.service(tiny))
    distance = DistanceFile(pair.device).get(tiny.identity.weights_sha256, ids_digest(tiny.text_token_ids))
    assert distance is not None
    stated = answer.to_json()["certificate"]
    assert stated["l2_sensitivity"] == pytest.approx(distance.value * math.sqrt(3))
    assert stated["mu"] == pytest.approx(distance.value * math.sqrt(3) / 0.5)
    assert stated["epsilon"] == epsilon_of(stated["mu"], 1e-6)
    assert (stated["adjacency"], stated["sigma"], stated["answer_is_seen"]) == ("replace 3 tokens", 0.5, True)
    kinds = [record["type"] for record in pair.records()]
    assert kinds == ["noise", "intent", "outcome"]
    assert float(pair.records()[0]["epsilon"]) == stated["epsilon"]
    assert not answer.exact


def test_epsilon_of_the_policy_is_that_of_the_certificate(pair: Paired, tiny: Engine) -> None:
    policy = noised(sigma=None, epsilon=4.0, delta=1e-5, adjacency="prompt", budget_epsilon=4.0)
    certificate = pair.run(policy, prompt("x"), tiny, pair.service(tiny)).certificate
    assert certificate is not None
    assert certificate.epsilon == pytest.approx(4.0, rel=1e-7)
    assert certificate.verdict == "formal"
    with pytest.raises(BudgetExceededError):
        pair.run(policy, prompt("y"), tiny, pair.service(tiny))


def test_spent_budget_refuses_before_anything_leaves_and_says_so_in_the_log(
    pair: Paired, tiny: Engine, curious: CuriousCloud
) -> None:
    policy = noised(sigma=None, epsilon=1.0, delta=1e-5, budget_epsilon=1.2)
    pair.run(policy, prompt("x"), tiny, curious)
    with pytest.raises(BudgetExceededError):
        pair.run(policy, prompt("x"), tiny, curious)
    assert len(curious.caches) == 1
    assert (pair.last["type"], pair.last["code"]) == ("denied", "budget_exceeded")
    other = noised(sigma=None, epsilon=1.0, delta=1e-5, budget_epsilon=1.2, subject="other")
    pair.run(other, prompt("x"), tiny, curious)


class Broken:
    """A cloud that cannot be reached."""

    def exchange(self, transfer: ReleasedTransfer) -> Reply:  # noqa: ARG002
        raise TransportError("nobody is there")


def test_a_run_that_fails_is_paid_for_and_its_noise_is_never_drawn_again(pair: Paired, tiny: Engine) -> None:
    with pair.session(noised(), tiny, transport=Broken()) as session, pytest.raises(TransportError):
        session.run(prompt("x"))
    assert [record["type"] for record in pair.records()] == ["noise", "intent", "outcome"]


def test_a_fallback_keeps_the_price_and_says_that_the_answer_was_not_seen(pair: Paired, tiny: Engine) -> None:
    policy = policy_of("noised-decode", on_remote_failure="local", sampling={"max_new_tokens": 3})
    with pair.session(policy, tiny, transport=Broken()) as session:
        answer = session.run(prompt("x"))
    assert answer.is_fallback
    assert answer.certificate is not None
    assert not answer.certificate.answer_is_seen


def test_a_stuck_source_of_randomness_refuses_the_second_release(
    pair: Paired, tiny: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitinfer import noised as module

    own = module.NoiseKey
    monkeypatch.setattr(module, "NoiseKey", lambda randomness: own(bytes))  # noqa: ARG005
    pair.run(noised(), prompt("x"), tiny, pair.service(tiny))
    with pytest.raises(CryptoParameterError, match="repeats"):
        pair.run(noised(), prompt("y"), tiny, pair.service(tiny))


@pytest.mark.parametrize("given", [{"max_new_tokens": 9}, {"temperature": 0.5}, {"seed": 3}, {"stop": "Paris"}])
def test_sampling_comes_from_the_policy_alone(pair: Paired, tiny: Engine, given: dict[str, object]) -> None:
    with pair.session(noised(), tiny, pair.service(tiny)) as session:
        with pytest.raises(UsageError, match=r"\[sampling\]"):
            session.run(prompt("x"), **given)
        assert session.run(prompt("x"), max_new_tokens=4).finish_reason == "length"
    assert [record["type"] for record in pair.records()].count("noise") == 1


def test_stop_texts_of_the_policy_travel(pair: Paired, tiny: Engine, curious: CuriousCloud) -> None:
    sampling = {"max_new_tokens": 4, "temperature": 0.5, "seed": 11, "stop": ["@@"]}
    pair.run(noised(sampling=sampling), prompt("x"), tiny, curious)
    sent = curious.caches[0][0]["sampling"]
    assert (sent["max_new_tokens"], sent["stop"], sent["seed"], sent["temperature"]) == (4, ["@@"], "11", "0.5")


def test_a_prompt_without_private_text_is_refused(pair: Paired, tiny: Engine) -> None:
    with pytest.raises(EgressDeniedError, match="nothing to noise"):
        pair.run(noised(), [PUBLIC], tiny, pair.service(tiny))
    assert pair.last["type"] == "denied"


NO_END = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}"


def test_a_template_that_ends_in_private_text_needs_a_public_first_token(pair: Paired, tmp_path: Path) -> None:
    bare = Engine(load(str(tiny_models.build(tmp_path / "bare", template=NO_END))))
    with pytest.raises(PolicyError, match="first_token_text"):
        pair.run(noised(), prompt("x"), bare, pair.service(bare))
    answer = pair.run(noised(first_token_text="\n>"), prompt("x"), bare, pair.service(bare))
    assert len(answer.token_ids) <= 4
    tokens = bare.tokenize(prompt("x"))
    assert answer.prompt_tokens == len(tokens.token_ids) + 2


def test_with_little_noise_the_answer_is_that_of_local(pair: Paired, engine: Engine, segments: list[Segment]) -> None:
    local = pair.run("local", segments, engine, max_new_tokens=12)
    for post in ("none", "nearest", "posterior"):
        policy = noised(sigma=1e-5, post=post, budget_epsilon=1e300, sampling={"max_new_tokens": 12})
        assert pair.run(policy, segments, engine, pair.service(engine)).text == local.text, post


def test_with_the_noise_of_a_meaningful_epsilon_the_cache_is_another(
    pair: Paired, tiny: Engine, curious: CuriousCloud
) -> None:
    pair.run(noised(sigma=1e-6, budget_epsilon=1e300), prompt("x"), tiny, curious)
    pair.run(noised(sigma=5.0, subject="other"), prompt("x"), tiny, curious)
    one, two = (tensor_bytes(cache) for _, cache in curious.caches)
    assert one != two


def sent_up(**noise: object) -> Policy:
    return policy_of("noised-prefill", noise={**NOISE, **noise})


def test_rows_that_travel_differ_in_the_last_private_token_alone(
    pair: Paired, tiny: Engine, curious: CuriousCloud, same_noise: None
) -> None:
    """Same length, same injected noise: the manifest is byte for byte the same, and so is every other row."""
    for last in ("x", "y"):
        pair.run(sent_up(), prompt(last), tiny, curious, max_new_tokens=2)
    (one, one_rows), (two, two_rows) = curious.rows
    assert without_chance(one) == without_chance(two)
    assert (one["last_token"], one["sampling"], one["kind"]) == (None, None, "rows")
    width = tiny.row_bytes
    differing = [
        at for at in range(len(one_rows) // width) if one_rows[at * width :][:width] != two_rows[at * width :][:width]
    ]
    assert differing == [tiny.tokenize(prompt("x")).private_positions[-1]]


def test_both_placements_of_the_same_noise_give_the_same_tokens_and_price(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, same_noise: None
) -> None:
    cloud = pair.service(tiny_on_cloud)
    up = pair.run(sent_up(), prompt("x"), tiny, cloud, max_new_tokens=4)
    down = pair.run(noised(), prompt("x"), tiny, cloud)
    assert up.token_ids == down.token_ids
    assert up.certificate is not None
    assert down.certificate is not None
    assert (up.certificate.epsilon, up.certificate.answer_is_seen) == (down.certificate.epsilon, False)
    assert up.egress.bytes_sent < down.egress.bytes_sent
    assert (up.decoded_on, down.decoded_on, up.exact) == ("device", "cloud", False)


def test_the_answer_does_not_reach_a_cloud_that_prefills(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    decoded = tiny_on_cloud.decoded_tokens
    answer = pair.run(sent_up(), prompt("x"), tiny, pair.service(tiny_on_cloud), max_new_tokens=5, seed=4)
    assert len(answer.token_ids) > 0
    assert tiny_on_cloud.decoded_tokens == decoded
    assert answer.prefilled_by_cloud_tokens == answer.prompt_tokens - 1
    assert answer.receipt is not None
    assert answer.receipt.event_count("prefilled") == answer.prompt_tokens - 1


def test_rows_that_are_no_finite_numbers_are_refused_by_the_cloud(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefilled = tiny_on_cloud.prefilled_tokens
    monkeypatch.setattr(tiny, "rows_to", lambda rows: b"\xff" * (len(rows) * tiny.row_bytes))
    with pytest.raises(LayoutMismatchError):
        pair.run(sent_up(), prompt("x"), tiny, pair.service(tiny_on_cloud), max_new_tokens=2)
    assert tiny_on_cloud.prefilled_tokens == prefilled


@pytest.mark.parametrize("mode", NOISED_MODES)
def test_run_prints_the_certificate(
    mode: str, pair: Paired, command: CommandLine, tiny_on_cloud: Engine, tmp_path: Path
) -> None:
    transport = MemoryTransport(pair.service(tiny_on_cloud))
    policy = tmp_path / "noised.toml"
    policy.write_text(
        f'mode = "{mode}"\n[remote]\nname = "default"\n[noise]\nadjacency = 2\nsigma = 0.005\nsubject = "cli"\n'
        "budget_epsilon = 1e12\n" + ("[sampling]\nmax_new_tokens = 4\n" if mode in STATED_MODES else "")
    )
    asked = ("run", "--policy", policy, "--private-text", "Where is Ana?")
    ran = command(*asked, "--json", home=pair.device, transport=transport)
    assert ran.code == 0, ran.err
    stated = json.loads(ran.out)["certificate"]
    assert stated["verdict"] == "formally meaningless, empirical only"
    assert stated["sentence"].count("epsilon") == 1
    if mode not in STATED_MODES:
        return
    refused = command(*asked, "--seed", "4", home=pair.device, transport=transport)
    assert refused.is_refusal("usage", 2, "[sampling]")
