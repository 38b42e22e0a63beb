"""Every supported architecture gives the same token ids under all modes; the cloud is in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.errors import UnsupportedCacheError
from splitinfer.handoff import Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.segments import note, public, question
from tests.support import tiny_models
from tests.support.memory_clouds import EXACT_REMOTE_MODES, Paired, policy_of

WINDOW = 16
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": 5}
# Far longer than the window of the sliding models, before and after the border of public and private text.
PROMPT = [public("a public list of lamps and kettles " * 3), note("a private note " * 4), question("which one?")]


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def two_sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Engine, Engine]:
    directory = str(tiny_models.build(tmp_path_factory.mktemp("model") / request.param, request.param))
    return request.param, Engine(load(directory)), Engine(load(directory))


def run(pair: Paired, mode: str, engine: Engine, cloud: object, **sampling: object) -> tuple[int, ...]:
    answer = pair.run(mode, PROMPT, engine, cloud, max_new_tokens=24, **sampling)
    assert answer.exact
    assert len(answer.token_ids) == 24 or answer.finish_reason == "end_of_text"
    return answer.token_ids


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "seeded"])
def test_every_architecture_gives_identical_ids_in_all_modes(
    two_sides: tuple[str, Engine, Engine], sampling: dict[str, float], pair: Paired
) -> None:
    _, ours, theirs = two_sides
    service = pair.service(theirs)
    local = run(pair, "local", ours, None, **sampling)
    for mode in EXACT_REMOTE_MODES:
        assert run(pair, mode, ours, service, **sampling) == local, mode


def test_prompt_is_longer_than_the_sliding_window(two_sides: tuple[str, Engine, Engine]) -> None:
    kind, ours, _ = two_sides
    prompt = ours.tokenize(PROMPT)
    is_sliding = any(layer.kind == "sliding" for layer in ours.layout.layers)
    assert is_sliding == (kind in {"mistral", "gemma3_text"})
    assert prompt.leading_public_tokens > 2 * WINDOW
    assert len(prompt.token_ids) - prompt.leading_public_tokens > 2 * WINDOW


def test_verify_rows_accepts_an_honest_cache_or_names_the_window(
    two_sides: tuple[str, Engine, Engine], pair: Paired
) -> None:
    kind, ours, theirs = two_sides
    policy = policy_of("public-prefix", verify_rows=8)
    local = pair.run("local", PROMPT, ours, max_new_tokens=4)
    if kind in {"mistral", "gemma3_text"}:
        with pytest.raises(UnsupportedCacheError, match="window of 16"):
            pair.run(policy, PROMPT, ours, pair.service(theirs), max_new_tokens=4)
        return
    answer = pair.run(policy, PROMPT, ours, pair.service(theirs), max_new_tokens=4)
    assert answer.token_ids == local.token_ids


def test_verify_rows_accepts_an_honest_sliding_cache_within_its_window(tmp_path: Path, pair: Paired) -> None:
    directory = str(tiny_models.build(tmp_path / "mistral", "mistral", template=None))
    ours, theirs = Engine(load(directory)), Engine(load(directory))
    short: list[Segment] = [public("lamps"), question("which one?")]
    policy = policy_of("public-prefix", verify_rows=64)
    assert ours.tokenize(short).leading_public_tokens < WINDOW
    answer = pair.run(policy, short, ours, pair.service(theirs), max_new_tokens=4)
    assert answer.token_ids == pair.run("local", short, ours, max_new_tokens=4).token_ids
