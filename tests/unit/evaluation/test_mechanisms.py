"""The audits hold the product's own release functions to what they claim, and find every planted bug."""

from __future__ import annotations

import pytest

from splitinfer.evaluation.audit.mechanisms import Mechanism, clipped_cache, embedding_noise
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from tests.support import tiny_models

RELEASES = 2000


@pytest.fixture(scope="module")
def mechanisms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mechanism]:
    engine = Engine(load(str(tiny_models.build(tmp_path_factory.mktemp("audited") / "llama"))))
    return {"embedding": embedding_noise(engine, mu=2.0), "cache": clipped_cache(mu=2.0)}


@pytest.mark.parametrize("name", ["embedding", "cache"])
def test_the_products_noise_keeps_its_promise_and_no_more(mechanisms: dict[str, Mechanism], name: str) -> None:
    mechanism = mechanisms[name]
    assert mechanism.claimed_mu == pytest.approx(2.0)
    found = mechanism.audit(releases=RELEASES)
    assert not found.is_refuted
    assert found.lower_mu > 0.7 * mechanism.claimed_mu


@pytest.mark.parametrize(("name", "bugs"), [("embedding", 4), ("cache", 3)])
def test_every_planted_bug_is_found(mechanisms: dict[str, Mechanism], name: str, bugs: int) -> None:
    mechanism = mechanisms[name]
    assert len(mechanism.planted_bugs) == bugs
    for bug in mechanism.planted_bugs:
        assert mechanism.audit(releases=RELEASES, bug=bug).is_refuted, bug


def test_a_large_promise_is_audited_on_a_closer_pair(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No number of releases could bound a mu of 40; the noise that it is made of can be held to a share of it."""
    engine = Engine(load(str(tiny_models.build(tmp_path_factory.mktemp("closer") / "llama"))))
    closer = embedding_noise(engine, mu=40.0).closer()
    assert closer.claimed_mu == pytest.approx(3.0)
    found = closer.audit(releases=RELEASES)
    assert 0.7 * closer.claimed_mu < found.lower_mu <= closer.claimed_mu
    assert closer.audit(releases=RELEASES, bug="half the noise").is_refuted
