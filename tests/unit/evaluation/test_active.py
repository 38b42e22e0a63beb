"""Who tampers is refused in every mode, who copies a disk finds nothing; both would tell a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.evaluation.active import MANIPULATIONS, ActiveFigures, Tamperer, attack_actively
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.prompts import make_prompts
from splitinfer.evaluation.store_reader import probes_of, read_disk, share_found
from splitinfer.handoff import CloudReply, Route, SamplingParams, Source
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from tests.support import tiny_models
from tests.support.memory_clouds import policy_of

PARAMS = SamplingParams(max_new_tokens=2)
(PROMPT,) = make_prompts(1, seed=0, document_rows=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory: Path = tmp_path_factory.mktemp("active") / "llama"
    return Engine(load(str(tiny_models.build(directory))))


@pytest.mark.parametrize("mode", ["public-prefix", "sealed-prefill", "sealed-decode", "noised-prefill", "masked"])
def test_every_manipulation_is_refused(engine: Engine, mode: str) -> None:
    found = attack_actively(policy_of(mode), engine, PROMPT, attempts=1, params=PARAMS, seed=1)
    assert found is not None
    assert set(found.by_kind) == set(MANIPULATIONS)
    assert found.accepted.successes == 0
    # Each but one at most found its occasion, and none ended in a refusal that says what was wrong inside.
    assert found.accepted.trials >= len(MANIPULATIONS) - 1
    assert sum(found.refusals.values()) >= found.accepted.trials - 1


def test_nothing_crosses_that_could_be_changed_under_local(engine: Engine) -> None:
    assert attack_actively(policy_of("local"), engine, PROMPT, attempts=1, params=PARAMS, seed=1) is None


class Careless:
    """A cloud that works on whatever it is sent."""

    def handle(self, route: Route, body: Source) -> CloudReply:
        del route
        buffer = memoryview(bytearray(64))
        while body.readinto(buffer):
            pass
        return CloudReply(5, iter([b"reply"]))


class Body:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self.data))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count


def test_a_cloud_that_works_on_an_older_request_is_found() -> None:
    tamperer = Tamperer(seed=0)
    tamperer.before(Careless())
    tamperer.arm(None)
    assert b"".join(bytes(piece) for piece in tamperer.handle(Route.DECODE, Body(b"request")).body) == b"reply"
    assert bytes(tamperer.recorded.request) == b"request"
    assert tamperer.replay(Route.DECODE)


@pytest.mark.parametrize(
    ("kind", "length"), [("reply changed", 5), ("reply cut", None), ("bytes injected", 69), ("older reply", 5)]
)
def test_a_reply_is_changed_in_the_way_that_is_said(kind: str, length: int | None) -> None:
    tamperer = Tamperer(seed=0)
    tamperer.before(Careless())
    tamperer.arm(None)
    list(tamperer.handle(Route.DECODE, Body(b"request")).body)
    tamperer.recorded.reply[:] = b"older"
    tamperer.arm(kind)
    made = b"".join(bytes(piece) for piece in tamperer.handle(Route.DECODE, Body(b"request")).body)
    assert tamperer.has_acted
    assert made != b"reply"
    assert len(made) == length if length else len(made) < 5


def test_shares_are_of_all_manipulations() -> None:
    figures = ActiveFigures({"a": Rate(1, 3), "b": Rate(0, 3)})
    assert figures.accepted == Rate(1, 6)


def test_a_copied_store_shows_sizes_and_nothing_else(engine: Engine) -> None:
    policy = policy_of("public-prefix", store={"enabled": True})
    seen = read_disk(policy, engine, PROMPT, params=PARAMS)
    assert seen.files >= 1
    assert seen.size_bytes > 0
    assert (seen.found.successes, seen.found.trials > 20) == (0, True)
    assert read_disk(policy_of("sealed-decode"), engine, PROMPT, params=PARAMS).files == 0


def test_a_cache_in_clear_would_be_found(engine: Engine) -> None:
    ids = engine.tokenize(PROMPT.segments).token_ids
    cache = engine.prefill(ids, steps=[(0, len(ids))])
    clear = [tensor.numpy().tobytes() for layer in cache.layers for tensor in layer.values()]
    text = " ".join(segment.text for segment in PROMPT.segments).encode()
    found = share_found(probes_of(PROMPT, ids, cache), [*clear, text])
    assert found.successes >= len(PROMPT.segments) + len(clear)
