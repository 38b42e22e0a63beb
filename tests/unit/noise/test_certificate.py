"""The certificate states its numbers, and calls what is meaningless meaningless."""

from __future__ import annotations

import json
import math

import pytest

from splitinfer.noise.accounting import Adjacency, embedding_event, slab_event
from splitinfer.noise.certificate import Measured, SlabNoise, certify, promise_of
from splitinfer.noise.gaussian import epsilon_of, mu_of, recovery_bound
from splitinfer.noise.sensitivity import Distance
from trust_models.noise import Noise

D = Distance(2.0, is_exact=True, rows=10)


def certificate(sigma: float, **given: object):
    event = embedding_event(D, sigma=sigma, tokens=64, key_sha256="ab" * 32)
    fields = {"l2_sensitivity": 4.0, "sensitivity_is_exact": True, "sigma": sigma, **given}
    return certify(event, Adjacency(4), delta=1e-5, **fields)


def test_numbers_are_those_of_the_release() -> None:
    stated = certificate(4.0, measured=Measured(0.25, 0.125)).to_json()
    assert (stated["mu"], stated["epsilon"]) == (1.0, epsilon_of(1.0, 1e-5))
    assert stated["adjacency"] == "replace 4 tokens"
    assert stated["recovery_bound_by_prior"] == {
        "0.25": recovery_bound(0.25, 0.5),
        "0.1": recovery_bound(0.1, 0.5),
        "0.5": recovery_bound(0.5, 0.5),
    }
    assert stated["attacker_recovery"] == 0.125
    assert stated["verdict"] == "formal"
    json.dumps(stated, allow_nan=False)


def test_sentence_is_plain_and_says_that_the_answer_is_seen() -> None:
    text = certificate(4.0, measured=Measured(0.25, 0.125)).sentence()
    assert "replace 4 tokens" in text
    assert "epsilon 4.377, delta 1e-05" in text
    assert "reads the generated answer" in text
    assert "recovered 12.5 %" in text
    assert "mu" not in text.split()
    assert "meaningless" not in text
    assert "reads the generated answer" not in certificate(4.0, answer_is_seen=False).sentence()


@pytest.mark.parametrize(("sigma", "is_meaningless"), [(0.6, False), (0.3, True), (1e-3, True)])
def test_an_epsilon_above_the_threshold_is_called_meaningless_in_so_many_words(
    sigma: float, is_meaningless: bool
) -> None:
    found = certificate(sigma)
    assert found.is_meaningless is is_meaningless
    assert (found.verdict == "formally meaningless, empirical only") is is_meaningless
    assert ("formally meaningless, empirical only" in found.sentence()) is is_meaningless


def test_a_release_without_a_finite_price_states_none() -> None:
    stated = certify(slab_event(math.inf, key_sha256="ab" * 32), Adjacency(None), delta=1e-5).to_json()
    assert (stated["epsilon"], stated["mu"], stated["recovery_bound_by_prior"]) == (None, None, {})
    assert stated["verdict"] == "empirical only"


def test_record_holds_no_fractions_for_the_log_takes_none() -> None:
    record = certificate(4.0, measured=Measured(0.25, 0.5)).record()

    def values(value: object) -> list[object]:
        inner = value.values() if isinstance(value, dict) else [value]
        return [part for one in inner for part in (values(one) if isinstance(one, dict) else [one])]

    assert not any(isinstance(value, float) for value in values(record))
    assert float(record["epsilon"]) == epsilon_of(1.0, 1e-5)


@pytest.mark.parametrize(("adjacency", "replaced"), [(4, 4), ("prompt", 64)])
def test_what_a_policy_promises_is_known_before_a_run_where_it_states_epsilon(adjacency: object, replaced: int) -> None:
    noise = Noise(adjacency=adjacency, epsilon=8.0, delta=1e-5, subject="me", budget_epsilon=9.0)
    promise = promise_of(noise, answer_is_seen=True)
    assert promise is not None
    assert promise.epsilon == pytest.approx(8.0, rel=1e-9)
    assert promise.mu_one_token == pytest.approx(mu_of(8.0, 1e-5) / math.sqrt(replaced))
    unknown = Noise(adjacency=adjacency, sigma=1.0, subject="me", budget_epsilon=9.0)
    assert promise_of(unknown, answer_is_seen=True) is None


def test_bound_on_a_token_is_that_of_one_token_not_of_k() -> None:
    assert certificate(4.0).recovery_bounds()["0.5"] == pytest.approx(recovery_bound(0.5, 2.0 / 4.0))


def test_a_clipped_cache_states_the_noise_of_every_slab_and_the_log_a_digest_of_it() -> None:
    slabs = [SlabNoise(f"0.keys.{head}", 1.0, 16.0, 8.0 + head) for head in range(2)]
    event = slab_event(1.0, key_sha256="ab" * 32)
    found = certify(event, Adjacency(None), delta=1e-5, l2_sensitivity=22.6, sensitivity_is_exact=True, slabs=slabs)
    stated = found.to_json()
    assert stated["slabs"] == [
        {"slab": "0.keys.0", "clip_norm": 1.0, "l2_sensitivity": 16.0, "sigma": 8.0},
        {"slab": "0.keys.1", "clip_norm": 1.0, "l2_sensitivity": 16.0, "sigma": 9.0},
    ]
    assert (stated["adjacency"], stated["mu"], stated["l2_sensitivity"]) == (
        "replace the whole private text",
        1.0,
        22.6,
    )
    assert "c_j" in str(stated["sigma_rule"])
    logged = found.record()["slabs"]
    assert logged["count"] == 2
    assert (logged["sigma_least"], logged["sigma_most"]) == ("8.0", "9.0")
    other = certify(event, Adjacency(None), delta=1e-5, slabs=slabs[::-1]).record()["slabs"]
    assert other["sha256"] != logged["sha256"]
