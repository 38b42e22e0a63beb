"""Noised modes with turns, streaming and lost connections: one draw for a charge, and nothing is kept in between."""

from __future__ import annotations

from typing import Any

import pytest

from splitinfer.errors import PolicyError, TransportError
from splitinfer.handoff import Route, Segment
from splitinfer.model.engine import Engine
from splitinfer.noise.gaussian import composed
from splitinfer.segments import answered, question
from tests.support.lost_connections import Cut, CuttingCloud
from tests.support.memory_clouds import NOISED_MODES, Paired, policy_of

SAMPLING = {"max_new_tokens": 3}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinfer.resume.BACKOFF_SECONDS", 0.0)


def paid(pair: Paired) -> list[dict[str, Any]]:
    return [record for record in pair.records() if record["type"] == "noise"]


@pytest.mark.parametrize("mode", NOISED_MODES)
def test_every_turn_is_a_release_of_its_own_and_nothing_is_kept_between_them(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    cloud = pair.service(tiny_on_cloud)
    with pair.session(policy_of(mode, sampling=SAMPLING), tiny, cloud) as session:
        first = session.run(segments, **SAMPLING)
        assert session._device.conversation.held is None
        assert session._device.conversation.link is None
        following = [*segments, answered(first.text or "nothing"), question("And where?")]
        second = session.run(following, **SAMPLING)
        assert session._device.conversation.held is None
    assert (first.base_tokens, second.base_tokens) == (0, 0)
    assert cloud.held_sessions == 0
    charges = paid(pair)
    assert len({record["key_sha256"] for record in charges}) == 2
    costs = [float(record["mu_one_token"]) for record in charges]
    assert composed(costs) > max(costs)
    assert float(charges[1]["epsilon_spent"]) > float(charges[0]["epsilon_spent"])
    assert [record["type"] for record in pair.records()] == ["noise", "intent", "outcome"] * 2


@pytest.mark.parametrize("mode", NOISED_MODES)
def test_a_policy_cannot_let_the_cloud_keep_a_noised_session(mode: str) -> None:
    with pytest.raises((PolicyError, ValueError), match="keep no session"):
        policy_of(mode, session={"keep": True})


@pytest.mark.parametrize("mode", NOISED_MODES)
@pytest.mark.parametrize("cut", [Cut(up=5000), Cut(down=700)], ids=["up", "down"])
def test_a_transfer_that_goes_on_after_a_lost_connection_draws_and_pays_once(
    *, mode: str, cut: Cut, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    cloud = CuttingCloud(pair.service(tiny_on_cloud), cut)
    answer = pair.run(mode, segments, tiny, cloud, **SAMPLING)
    assert Route.RESUME in cloud.routes
    assert answer.receipt is not None
    assert len(paid(pair)) == 1
    # One transfer, one content key: the receipt's root covers the chunks of both connections.
    assert answer.receipt.body.ciphertext_root == pair.last["calls"][-1]["sent_root"]


@pytest.mark.parametrize("mode", NOISED_MODES)
def test_a_lost_transfer_that_may_not_go_on_is_not_sent_again(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    cloud = CuttingCloud(pair.service(tiny_on_cloud), Cut(down=700))
    policy = policy_of(mode, transfer={"resume_attempts": 0}, sampling=SAMPLING)
    with pytest.raises(TransportError):
        pair.run(policy, segments, tiny, cloud, **SAMPLING)
    assert [route for route in cloud.routes if route is not Route.KEYSET] == cloud.routes[1:2]
    assert len(paid(pair)) == 1


@pytest.mark.parametrize("mode", NOISED_MODES)
def test_a_fallback_computes_from_the_exact_prompt_and_remembers_nothing(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    cloud = CuttingCloud(pair.service(tiny_on_cloud), Cut(up=5000))
    policy = policy_of(mode, on_remote_failure="local", transfer={"resume_attempts": 0}, sampling=SAMPLING)
    with pair.session(policy, tiny, cloud) as session:
        answer = session.run(segments, **SAMPLING)
        assert session._device.conversation.held is None
    assert answer.is_fallback
    assert answer.token_ids == pair.run("local", segments, tiny, **SAMPLING).token_ids
