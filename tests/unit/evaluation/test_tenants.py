"""One tenant's clock says what another one sent only where the cloud's prefix cache is everybody's."""

from __future__ import annotations

import pytest

from splitinfer.evaluation.prompts import make_prompts
from splitinfer.evaluation.tenants import Tenants, time_prefixes
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from tests.support import tiny_models

ROWS = 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(load(str(tiny_models.build(tmp_path_factory.mktemp("tenants") / "llama"))))


@pytest.mark.parametrize("is_isolating", [True, False])
def test_a_tenants_request_is_served_from_anothers_only_without_the_devices_secret(
    engine: Engine, is_isolating: bool
) -> None:
    """What the clock shows is work: it is counted here, because a busy machine's clock shows anything."""
    prompt = make_prompts(1, seed=0, document_rows=ROWS)[0]
    public = engine.tokenize(prompt.segments).leading_public_tokens
    with Tenants.open(engine, is_isolating=is_isolating) as tenants:
        before = engine.prefilled_tokens
        tenants.send(prompt)
        alone = engine.prefilled_tokens - before
        assert tenants.seconds(prompt) > 0
        after = engine.prefilled_tokens - before - alone
    assert alone > public
    assert after == (alone if is_isolating else alone - public)


def test_half_of_the_texts_are_the_victims(engine: Engine) -> None:
    done: list[int] = []
    result = time_prefixes(engine, texts=4, tokens=1, seed=1, progress=done.append)
    assert (len(result.hits), len(result.misses)) == (2, 2)
    assert done == [1, 2, 3, 4]
    low, high = result.interval
    assert 0 <= low <= result.auc <= high <= 1
