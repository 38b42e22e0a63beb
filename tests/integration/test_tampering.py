"""An attacker owns the network between device and cloud: every change to a transfer is refused, by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from splitinfer import errors
from splitinfer.cli.main import main
from splitinfer.egress.verification import read_records, verify
from splitinfer.handoff import SamplingParams, Segment
from splitinfer.home import Home
from splitinfer.model.loading import LoadedModel, load
from splitinfer.segments import note, public, question
from tests.support import mutations as table
from tests.support.attack_scene import AttackScene, WatchedEngine, counted_cloud
from tests.support.mutations import Mutation
from tests.support.processes import cloud_process, route_through, run_cli
from tests.support.tampering_proxy import TamperingProxy
from tests.support.wire import Message

REMOTE_MODES = ("public-prefix", "sealed-prefill", "sealed-decode")
DOCUMENT, NOTE = "Price list: Belsa lamp $19.90", "Customer: Maria Lopez\nPhone: 415-203-7786"
QUESTION = "What is the phone number of Maria Lopez?"
SEGMENTS = (public(DOCUMENT), note(NOTE), question(QUESTION))
# Long enough that a prompt's token slab fills a chunk of its own.
LONG_SEGMENTS = (public("word " * 1100), question(QUESTION))
ANSWER_TOKENS = 8
MANIFEST_FRAMES = 8
TALLY: Counter[str] = Counter()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("embedded")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> Iterator[AttackScene]:
    """The cloud is a process of its own."""
    base = tmp_path_factory.mktemp("tampering")
    with cloud_process(base) as cloud, TamperingProxy(cloud.port) as proxy:
        route_through(base / "device", proxy.url)
        yield AttackScene(proxy, Home(base / "device"), WatchedEngine(loaded), base)


@pytest.fixture(scope="module", autouse=True)
def summary(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end how many attacks there were."""
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and TALLY["mutations"]:
        reporter.write_line(f"\ntampering: {TALLY['refused']} of {TALLY['mutations']} refused")


def refuse_all(
    scene: AttackScene, mode: str, mutations: Sequence[Mutation], segments: Sequence[Segment] = SEGMENTS
) -> None:
    """Attack with each, honest runs before and after; every one must end as the table says."""
    assert mutations
    assert len({mutation.name for mutation in mutations}) == len(mutations)
    shown = _shown_by_chunk(scene, mode)
    scene.honest(mode, segments, max_new_tokens=ANSWER_TOKENS)
    faults = []
    for mutation in mutations:
        TALLY["mutations"] += 1
        try:
            result = scene.attack(mutation, mode, segments, max_new_tokens=ANSWER_TOKENS)
            expected = shown[: max(0, mutation.fault_chunk - MANIFEST_FRAMES)] if mutation.where == "reply" else []
            assert result.pieces == [piece for piece in expected if piece], f"{len(result.pieces)} pieces were shown"
        except AssertionError as fault:
            faults.append(f"{mutation.name}: {fault}")
        else:
            TALLY["refused"] += 1
    scene.honest(mode, segments, max_new_tokens=ANSWER_TOKENS)
    assert faults == []


def _shown_by_chunk(scene: AttackScene, mode: str) -> list[str]:
    """Return the text that each verified token frame shows; only `sealed-decode` shows any before the end."""
    if mode != "sealed-decode":
        return []
    scene.proxy.arm()
    ids = scene.engine.tokenize(SEGMENTS).token_ids
    snapshot = scene.engine.prefill(ids[:-1], steps=[(0, len(ids) - 1)])
    params = SamplingParams(max_new_tokens=ANSWER_TOKENS)
    tokens = [token for token, _ in scene.engine.decode(snapshot, last_token=ids[-1], params=params)]
    stream = scene.engine.text_stream()
    pieces = [stream.push(token) for token in tokens]
    assert len([piece for piece in pieces if piece]) >= 4
    return pieces


def earlier(scene: AttackScene, mode: str, segments: Sequence[Segment] = SEGMENTS) -> table.Transfer:
    return scene.honest(mode, segments, max_new_tokens=ANSWER_TOKENS)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_keyset_is_refused_before_anything_is_sent(scene: AttackScene, mode: str) -> None:
    earlier(scene, mode)
    keyset = scene.proxy.transfers[0].reply
    assert keyset is not None
    chosen = list(table.keyset_mutations(keyset))
    refuse_all(scene, mode, chosen if mode == "sealed-prefill" else chosen[::4])


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_request_head_is_refused(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, list(table.request_head_mutations(earlier(scene, mode))))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_request_stream_is_refused(scene: AttackScene, mode: str) -> None:
    segments = SEGMENTS if mode == "sealed-decode" else LONG_SEGMENTS
    past = earlier(scene, mode, segments)
    assert len(past.sent.chunks) >= 3, "a manifest chunk, one of slabs, the final one"
    refuse_all(scene, mode, list(table.request_stream_mutations(past)), segments)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_reply_head_is_refused(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, list(table.reply_head_mutations(earlier(scene, mode))))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_reply_stream_is_refused_and_only_verified_text_is_shown(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, list(table.reply_stream_mutations(earlier(scene, mode))))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_an_answer_that_is_no_splitinfer_stream_is_refused(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, list(table.reply_http_mutations()))
