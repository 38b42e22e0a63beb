"""Mode `noised-decode` with noise on the finished cache: clipped at a price, relative without one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import BudgetExceededError, CryptoParameterError, TransportError, UnsupportedCacheError
from splitinfer.handoff import ReleasedTransfer, Reply, Segment
from splitinfer.home.clips import ClipFile
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.noise.clipping import allocate, prompt_mu
from splitinfer.noise.gaussian import epsilon_of, mu_of
from splitinfer.noised_cache import charge_cache
from splitinfer.schedule import pad_tokens
from splitinfer.segments import note, public, question
from splitinfer.transport.memory import MemoryTransport
from tests.integration.conftest import CommandLine
from tests.support import tiny_models
from tests.support.curious_clouds import CuriousCloud, without_chance
from tests.support.memory_clouds import Paired, policy_of
from trust_models.policy import Policy

PUBLIC = public("Prices: apple 3, pear 5")
CLIPPED = {"mechanism": "clipped", "adjacency": "prompt", "epsilon": 8.0, "delta": 1e-5}
RELATIVE = {"mechanism": "relative", "relative_noise": 0.1}
SPENDABLE = {"subject": "test", "budget_epsilon": 1e12}
UNPRICED = {"subject": "test", "budget_epsilon": "unlimited"}


def clipped(**noise: object) -> Policy:
    return noised({**CLIPPED, **SPENDABLE, **noise})


def relative(**noise: object) -> Policy:
    return noised({**RELATIVE, **UNPRICED, **noise})


def noised(noise: dict[str, object], tokens: int = 4) -> Policy:
    return policy_of("noised-decode", noise=noise, sampling={"max_new_tokens": tokens})


def prompt(last: str) -> list[Segment]:
    return [PUBLIC, note("The customer is Ana Paz."), question(f"Where does she live, {last}")]


def changed_rows(one: CacheSnapshot, two: CacheSnapshot) -> set[int]:
    """Return the token rows in which two caches differ in any tensor."""
    found: set[int] = set()
    for a, b in zip(one.layers, two.layers, strict=True):
        for name, tensor in a.items():
            found |= set((tensor != b[name]).any(dim=1).any(dim=-1)[0].nonzero()[:, 0].tolist())
    return found


def exact_cache(engine: Engine, segments: list[Segment]) -> CacheSnapshot:
    ids = engine.tokenize(segments).token_ids
    return engine.prefill(ids, steps=[(0, len(ids) - 1)])


@pytest.mark.parametrize("policy", [clipped(), relative()], ids=["clipped", "relative"])
def test_every_row_from_the_first_private_token_on_is_noised_in_every_tensor(
    policy: Policy, pair: Paired, tiny: Engine, curious: CuriousCloud
) -> None:
    pair.run(policy, prompt("x"), tiny, curious)
    cache, exact = curious.caches[0][1], exact_cache(tiny, prompt("x"))
    first = tiny.tokenize(prompt("x")).private_positions[0]
    for seen, own in zip(cache.layers, exact.layers, strict=True):
        for name, tensor in seen.items():
            same = (tensor == own[name]).all(dim=-1)[0]
            assert same[:, :first].all() or np.allclose(tensor[:, :, :first], own[name][:, :, :first], atol=1e-5)
            assert not same[:, first:].any(), name


@pytest.mark.parametrize("policy", [clipped(), relative()], ids=["clipped", "relative"])
def test_neighbours_differ_in_the_cache_alone(
    policy: Policy, pair: Paired, tiny: Engine, curious: CuriousCloud, same_noise: None
) -> None:
    for last in ("x", "y"):
        pair.run(policy, prompt(last), tiny, curious)
    (one, one_cache), (two, two_cache) = curious.caches
    assert without_chance(one) == without_chance(two)
    assert changed_rows(one_cache, two_cache)
    assert one["last_token"] == tiny.tokenize(prompt("x")).token_ids[-1]
    outcomes = [record for record in pair.records() if record["type"] == "outcome"]
    assert len({(record["bytes_sent"], record["bytes_received"]) for record in outcomes}) == 1


def test_a_clipped_release_is_priced_as_the_policy_says_and_paid_before_it_leaves(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    policy = clipped(budget_epsilon=8.0)
    answer = pair.run(policy, prompt("x"), tiny, pair.service(tiny_on_cloud))
    stated = answer.to_json()["certificate"]
    assert stated["epsilon"] == pytest.approx(8.0, rel=1e-6)
    assert stated["mu"] == pytest.approx(mu_of(8.0, 1e-5), rel=1e-9)
    assert (stated["mechanism"], stated["adjacency"]) == ("cache", "replace the whole private text")
    assert stated["recovery_bound_by_prior"]["0.1"] > 0.1
    assert [record["type"] for record in pair.records()] == ["noise", "intent", "outcome"]
    assert not answer.exact
    with pytest.raises(BudgetExceededError):
        pair.run(policy, prompt("y"), tiny, pair.service(tiny_on_cloud))
    assert (pair.last["type"], pair.last["code"]) == ("denied", "budget_exceeded")


def test_clip_norms_come_from_public_text_and_are_found_once(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.run(clipped(), prompt("x"), tiny, pair.service(tiny_on_cloud))
    plan = ClipFile(pair.device).get(tiny.identity.weights_sha256)
    assert plan is not None
    layers, heads = 2, 2
    assert len(plan.slabs) == layers * 2 * heads
    assert {slab.dim for slab in plan.slabs} == {8}
    assert len({slab.clip_norm for slab in plan.slabs}) == len(plan.slabs)
    assert all(slab.weight > 0 for slab in plan.slabs)
    monkeypatch.setattr(Engine, "study_public_text", lambda _: pytest.fail("found before"))
    pair.run(clipped(), prompt("another text"), tiny, pair.service(tiny_on_cloud))
    assert ClipFile(pair.device).get(tiny.identity.weights_sha256) == plan


def test_noise_of_a_clipped_cache_has_the_size_that_its_price_says(pair: Paired, tiny: Engine) -> None:
    tokens, exact = tiny.tokenize(prompt("x")), exact_cache(tiny, prompt("x"))
    with pair.session(clipped(), tiny, transport=Broken()) as session:
        charged = charge_cache(session._device, tokens)
        made = charged.noised(exact)
        with pytest.raises(CryptoParameterError):
            charged.noised(exact)
    plan, first = ClipFile(pair.device).get(tiny.identity.weights_sha256), tokens.private_positions[0]
    assert plan is not None
    rows = pad_tokens(exact.true_tokens - first)
    sigmas = allocate(plan, mu=mu_of(8.0, 1e-5), rows=rows)
    assert epsilon_of(prompt_mu(plan, sigmas, rows=rows), 1e-5) == pytest.approx(8.0, rel=1e-6)
    for slab, sigma in zip(plan.slabs, sigmas, strict=True):
        index, name, head = slab.name.split(".")
        tensor = made.layers[int(index)][name][0, int(head), first:]
        # The rows themselves are at most a clip norm long, far less than this noise.
        assert tensor.std() == pytest.approx(sigma, rel=0.25)


def test_with_little_noise_the_answer_is_that_of_local(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    local = pair.run("local", prompt("x"), tiny, max_new_tokens=6)
    faint = noised({**RELATIVE, **UNPRICED, "relative_noise": 1e-9}, tokens=6)
    assert pair.run(faint, prompt("x"), tiny, pair.service(tiny_on_cloud)).token_ids == local.token_ids


def test_relative_noise_states_no_epsilon_in_answer_certificate_or_log(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    answer = pair.run(relative(), prompt("x"), tiny, pair.service(tiny_on_cloud))
    stated = answer.to_json()["certificate"]
    assert (stated["epsilon"], stated["mu"], stated["delta"], stated["adjacency"]) == (None, None, None, None)
    assert stated["verdict"] == "empirical only"
    assert "epsilon" not in stated["sentence"]
    assert "empirical only" in stated["sentence"]
    record = pair.records()[0]
    assert (record["mechanism"], record["verdict"], record["epsilon"]) == ("empirical", "empirical only", None)
    assert float(record["epsilon_spent"]) == math.inf, "the ledger counts it as infinite"


def test_after_relative_noise_a_budget_of_the_same_subject_admits_nothing(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    pair.run(relative(), prompt("x"), tiny, pair.service(tiny_on_cloud))
    with pytest.raises(BudgetExceededError):
        pair.run(clipped(), prompt("x"), tiny, pair.service(tiny_on_cloud))
    pair.run(relative(), prompt("x"), tiny, pair.service(tiny_on_cloud))
    pair.run(clipped(subject="other"), prompt("x"), tiny, pair.service(tiny_on_cloud))


class Broken:
    """A cloud that cannot be reached."""

    def exchange(self, transfer: ReleasedTransfer) -> Reply:  # noqa: ARG002
        raise TransportError("nobody is there")


def test_a_run_that_fails_is_paid_for_and_a_fallback_was_not_seen(pair: Paired, tiny: Engine) -> None:
    policy = policy_of(
        "noised-decode", on_remote_failure="local", noise={**CLIPPED, **SPENDABLE}, sampling={"max_new_tokens": 3}
    )
    with pair.session(policy, tiny, transport=Broken()) as session:
        answer = session.run(prompt("x"))
    assert answer.is_fallback
    assert answer.certificate is not None
    assert not answer.certificate.answer_is_seen
    assert [record["type"] for record in pair.records()][:3] == ["noise", "intent", "outcome"]


def test_a_cache_without_a_row_for_every_token_is_refused_before_it_is_paid_for(pair: Paired, tmp_path: Path) -> None:
    sliding = Engine(load(str(tiny_models.build(tmp_path / "sliding", "mistral"))))
    with (
        pair.session(relative(), sliding, transport=Broken()) as session,
        pytest.raises(UnsupportedCacheError, match="embedding"),
    ):
        session.run(prompt("x"))
    assert not [record for record in pair.records() if record["type"] == "noise"]


def test_run_prints_that_relative_noise_is_empirical(
    pair: Paired, command: CommandLine, tiny_on_cloud: Engine, tmp_path: Path
) -> None:
    transport = MemoryTransport(pair.service(tiny_on_cloud))
    policy = tmp_path / "relative.toml"
    policy.write_text(
        'mode = "noised-decode"\n[remote]\nname = "default"\n[noise]\nmechanism = "relative"\nrelative_noise = 0.1\n'
        'subject = "cli"\nbudget_epsilon = "unlimited"\n[sampling]\nmax_new_tokens = 4\n'
    )
    asked = ("run", "--policy", policy, "--private-text", "Where is Ana?")
    shown = command(*asked, home=pair.device, transport=transport)
    assert shown.code == 0, shown.err
    assert "empirical only" in shown.out + shown.err
    assert "epsilon" not in shown.out + shown.err
    ran = command(*asked, "--json", home=pair.device, transport=transport)
    stated = json.loads(ran.out)["certificate"]
    assert (stated["verdict"], stated["epsilon"]) == ("empirical only", None)
    explained = command("policy", "explain", policy, "--json", home=pair.device)
    said = json.loads(explained.out)
    assert "empirical only" in said["guarantee"]
    assert "epsilon" not in said["explanation"]
