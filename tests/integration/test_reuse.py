"""A second question about the same public document moves nothing but a record in the log; anything else asks again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitinfer.answer import Answer
from splitinfer.egress.verification import read_records, verify
from splitinfer.errors import StoreError, TransportError, VerificationError
from splitinfer.handoff import Route, Segment
from splitinfer.home import Home
from splitinfer.home.seen import SeenFile
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.segments import note, public, question
from splitinfer.session import Session
from splitinfer.transport.memory import MemoryTransport
from tests.integration.conftest import CANARY, CommandLine
from tests.support.memory_clouds import CountingCloud, LyingEngine, Paired, policy_of
from tests.support.processes import cloud_process, route_through, run_cli
from tests.support.public_caches import FullDisk, cache_files
from tests.support.recording_proxy import RecordingProxy
from tests.support.scanner import Scanner
from trust_models.policy import Policy

DOCUMENT = "Price list of Karimo & Daughters: router 215 dollars, lamp 19.90, kettle 7.35; delivery on Thursdays."
FIRST = [public(DOCUMENT), note("Customer Maria Lopez, 415-203-7786"), question("What is the phone number?")]
SECOND = [public(DOCUMENT), note(f"A quite different ticket of {CANARY}"), question("And what does a lamp cost?")]
SHORT = [public("lamp 5, kettle 7"), question("which?")]
CHANGED = [public(f"{DOCUMENT} Closed in May."), *FIRST[1:]]


def keeping(rows: int = 0, **sections: Any) -> Policy:
    return policy_of(
        "public-prefix", verify_rows=rows, store={"enabled": True, **sections.pop("store", {})}, **sections
    )


def asked(cloud: CountingCloud) -> int:
    """Return how often the cloud was asked to prefill."""
    return cloud.routes.count(Route.PREFILL)


@pytest.fixture
def cloud(pair: Paired, tiny_on_cloud: Engine) -> CountingCloud:
    return CountingCloud(pair.service(tiny_on_cloud))


def run(pair: Paired, segments: Sequence[Segment], engine: Engine, cloud: Any, policy: Policy | None = None) -> Answer:
    return pair.run(policy or keeping(), segments, engine, cloud, max_new_tokens=6)


def store_of(pair: Paired) -> Path:
    return pair.device.path / "store"


# --- a real cloud process -------------------------------------------------------------------------------------------


def test_a_second_question_puts_no_byte_on_the_wire_and_is_answered_as_locally(tmp_path: Path, engine: Engine) -> None:
    """Also with the server stopped; a changed document needs a transfer again."""
    with cloud_process(tmp_path) as cloud, RecordingProxy(cloud.port) as proxy:
        device = Home(tmp_path / "device")
        route_through(device.path, proxy.url)
        # Without its own memory a session has nothing but the store.
        with Session.open("public-prefix", home=device, engine=engine, remember=False) as session:
            first = session.run(FIRST, max_new_tokens=12)
            assert len(proxy.take()) == 2, "the keyset, then the transfer"
            second = session.run(SECOND, max_new_tokens=12)
            assert proxy.take() == []
            changed = session.run(CHANGED, max_new_tokens=12)
            assert len(proxy.take()) == 2
            cloud.stop()
            again = session.run(FIRST, max_new_tokens=12, temperature=0.8, seed=5)
            with pytest.raises(TransportError):
                session.run([public("never seen before"), *FIRST[1:]], max_new_tokens=2)
        with Session.open("local", home=device, engine=engine) as session:
            for answer, segments in ((first, FIRST), (second, SECOND), (changed, CHANGED)):
                assert answer.token_ids == session.run(segments, max_new_tokens=12).token_ids
            assert again.token_ids == session.run(FIRST, max_new_tokens=12, temperature=0.8, seed=5).token_ids
    assert [one.is_reused for one in (first, second, changed, again)] == [False, True, False, True]
    assert str(second.egress) == str(again.egress) == "nothing left the device"
    assert (second.receipt, second.exact, second.note) == (None, True, None)
    assert second.prefilled_by_cloud_tokens == first.prefilled_by_cloud_tokens > 0
    check_log(device, second)
    check_nothing_readable(device, engine)
    done = run_cli("audit", "verify", home=device.path)
    assert done.returncode == 0, done.stderr


def check_log(device: Home, reused: Answer) -> None:
    records = [dict(record) for record in read_records(device.audit)]
    kinds = [record["type"] for record in records]
    assert kinds[:6] == ["intent", "outcome", "reuse", "intent", "outcome", "reuse"]
    (transfer,) = (call for call in records[1]["calls"] if call["route"] == "POST /v1/prefill")
    entry = records[2]
    assert (entry["mode"], entry["protection"], entry["bytes_sent"]) == ("public-prefix", "none", 0)
    assert (entry["transfer_id"], entry["received_root"]) == (transfer["transfer_id"], transfer["received_root"])
    assert (entry["recipient"], entry["tokens_bucket"]) == (records[0]["recipient"], records[0]["tokens_bucket"])
    assert entry["policy_sha256"] == reused.policy_digest
    assert reused.audit_size == 3
    verify(device.audit, device.key("checkpoint").public_key())


def check_nothing_readable(device: Home, engine: Engine) -> None:
    scanner = Scanner()
    scanner.add_words(["Karimo", "Daughters", "Thursdays", "delivery", "Lopez", CANARY])
    prompt = engine.tokenize(FIRST)
    scanner.add_tokens(prompt.token_ids)
    steps = [(0, prompt.leading_public_tokens)]
    scanner.add_cache(engine.prefill(prompt.token_ids, steps=steps))
    assert len(cache_files(device.path / "store")) == 2
    assert scanner.find_in_files(device.path) == {}


def test_the_command_line_says_what_it_did_and_takes_no_store(
    command: CommandLine, pair: Paired, tmp_path: Path, tiny_on_cloud: Engine
) -> None:
    (tmp_path / "prices.md").write_text(DOCUMENT)
    counting = CountingCloud(pair.service(tiny_on_cloud))
    arguments = ("run", "--policy", "public-prefix", "--public", tmp_path / "prices.md", "--private-text", CANARY)
    options = {"home": pair.device, "transport": MemoryTransport(counting)}

    def ask(*more: str) -> Any:
        return command(*arguments, "--max-new-tokens", 2, *more, **options)

    assert ask("--no-store").code == ask("--no-store").code == 0
    assert asked(counting) == 2
    assert not store_of(pair).exists()
    assert "the store" not in ask().err
    ran = ask()
    assert "left the device: nothing left the device" in ran.err
    assert "the public text's cache was in the store; the cloud was not asked" in ran.err
    said = json.loads(ask("--json").out)
    assert (said["is_reused"], said["bytes_sent"], said["calls"]) == (True, 0, [])
    assert asked(counting) == 3
    assert json.loads(ask("--no-store", "--json").out)["is_reused"] is False
    listed = json.loads(command("store", "list", "--json", home=pair.device).out)["entries"]
    assert [entry["facts"]["tokens"] for entry in listed] == [said["prefilled_by_cloud_tokens"]]
    assert json.loads(command("store", "clear", "--json", home=pair.device).out)["removed"] == 1
    assert json.loads(ask("--json").out)["is_reused"] is False


# --- what is reused, and what is not --------------------------------------------------------------------------------


def test_another_session_finds_what_one_stored(pair: Paired, tiny: Engine, cloud: CountingCloud) -> None:
    first, second = (run(pair, segments, tiny, cloud) for segments in (FIRST, SECOND))
    assert (first.is_reused, second.is_reused, asked(cloud)) == (False, True, 1)
    assert second.token_ids == pair.run("local", SECOND, tiny, max_new_tokens=6).token_ids


@pytest.mark.parametrize("name", ["lossless", "q8"])
def test_what_came_in_another_codec_is_found_again(name: str, pair: Paired, tiny: Engine, cloud: CountingCloud) -> None:
    policy = keeping(transfer={"codec": name})
    first, second = (run(pair, FIRST, tiny, cloud, policy) for _ in range(2))
    assert (first.is_reused, second.is_reused) == (False, True)
    assert second.token_ids == first.token_ids
    assert second.exact == first.exact == (name == "lossless")


def test_a_policy_without_a_store_keeps_and_finds_nothing(pair: Paired, tiny: Engine, cloud: CountingCloud) -> None:
    run(pair, FIRST, tiny, cloud, policy_of("public-prefix"))
    assert not store_of(pair).exists()
    run(pair, FIRST, tiny, cloud)
    assert not run(pair, FIRST, tiny, cloud, policy_of("public-prefix")).is_reused


@pytest.mark.parametrize("mode", ["sealed-prefill", "sealed-decode", "local"])
def test_other_modes_store_nothing_and_use_nothing(mode: str, pair: Paired, tiny: Engine, cloud: CountingCloud) -> None:
    everything_public = [public(DOCUMENT), question("a")]
    run(pair, everything_public, tiny, cloud)
    names = sorted(os.listdir(store_of(pair)))
    answer = pair.run(mode, everything_public, tiny, None if mode == "local" else cloud, max_new_tokens=4)
    assert not answer.is_reused
    assert sorted(os.listdir(store_of(pair))) == names
    assert pair.last["type"] == ("local" if mode == "local" else "outcome")


def test_another_chunk_or_another_cloud_asks_again(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, cloud: CountingCloud, tmp_path: Path
) -> None:
    run(pair, FIRST, tiny, cloud)
    policy = Policy.model_validate({**keeping().model_dump(), "transfer": {"chunk_tokens": 64}})
    assert run(pair, FIRST, tiny, cloud, policy).is_reused == (tiny.tokenize(FIRST).leading_public_tokens <= 64)
    other = Paired(pair.device, Home(tmp_path / "other-cloud"))
    other.point_at("http://127.0.0.1:9")
    (other.cloud.path / "allowed").write_text((pair.cloud.path / "allowed").read_text())
    assert not run(other, FIRST, tiny, other.service(tiny_on_cloud)).is_reused


def test_other_weights_or_numerics_ask_again(pair: Paired, tiny: Engine, cloud: CountingCloud, tiny_directory) -> None:
    run(pair, FIRST, tiny, cloud)
    loaded = load(str(tiny_directory))
    other = Engine(replace(loaded, numerics=replace(loaded.numerics, threads=64)))
    answer = run(pair, FIRST, other, cloud)
    assert (answer.is_reused, answer.exact) == (False, False)
    again = run(pair, FIRST, other, cloud)
    assert (again.is_reused, again.exact) == (True, False)


def test_a_refused_cache_is_not_stored(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    liar = pair.service(LyingEngine(tiny_on_cloud, layer=0, row=3))
    with pytest.raises(VerificationError):
        run(pair, SHORT, tiny, liar, keeping(64))
    assert cache_files(store_of(pair)) == []


def test_what_a_retired_recipient_sent_is_not_used(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, cloud: CountingCloud
) -> None:
    run(pair, FIRST, tiny, cloud)
    SeenFile(pair.device).remember(identity_sha256=pair.pin, generation=2, replica_id="a" * 32, epoch=1)
    (pair.cloud.path / "generation").write_text("2")
    renewed = pair.service(tiny_on_cloud)
    assert not run(pair, FIRST, tiny, renewed).is_reused
    assert run(pair, FIRST, tiny, renewed).is_reused


# --- verify_rows ----------------------------------------------------------------------------------------------------


def test_a_policy_that_asks_for_more_rows_recomputes_them_once_without_the_cloud(
    pair: Paired, tiny: Engine, cloud: CountingCloud
) -> None:
    def rows(count: int) -> tuple[int, bool]:
        before = tiny.prefilled_tokens
        answer = run(pair, FIRST, tiny, cloud, keeping(count))
        rest = answer.prompt_tokens - 1 - answer.prefilled_by_cloud_tokens
        return tiny.prefilled_tokens - before - rest, answer.is_reused

    assert rows(2) == (2, False)
    assert rows(2) == (0, True)
    assert rows(0) == (0, True)
    assert rows(5) == (5, True)
    assert rows(5) == (0, True)
    assert asked(cloud) == 1


def test_a_stored_cache_that_is_not_honest_is_refused_once_more_rows_are_asked_for(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, cloud: CountingCloud
) -> None:
    assert 3 < tiny.tokenize(SHORT).leading_public_tokens <= 64
    run(pair, SHORT, tiny, pair.service(LyingEngine(tiny_on_cloud, layer=0, row=3)))
    decoded = tiny.decoded_tokens
    with pytest.raises(VerificationError, match="layer 0"):
        run(pair, SHORT, tiny, None, keeping(64))
    assert tiny.decoded_tokens == decoded
    assert (pair.last["type"], pair.last["code"]) == ("reuse", "verification")
    assert cache_files(store_of(pair)) == []
    assert not run(pair, SHORT, tiny, cloud, keeping(64)).is_reused


# --- disks ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_stores_nothing_and_the_run_goes_on_and_says_so(
    pair: Paired, tiny: Engine, cloud: CountingCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair.session(keeping(), tiny, cloud) as session:
        monkeypatch.setattr(session._device.store, "_files", FullDisk(5000))
        answer = session.run(FIRST, max_new_tokens=6)
    assert answer.note == (
        "the public text's cache was not stored: the store of public caches cannot be used (No space left on device)"
    )
    assert answer.token_ids == pair.run("local", FIRST, tiny, max_new_tokens=6).token_ids
    assert cache_files(store_of(pair)) == []


def test_a_limit_below_one_cache_stores_nothing_and_says_so(
    pair: Paired, tiny: Engine, cloud: CountingCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair.session(keeping(), tiny, cloud) as session:
        monkeypatch.setattr(session._device.store, "max_bytes", 5000)
        answer = session.run(FIRST, max_new_tokens=2)
    assert answer.note
    assert "raise store.max_bytes" in answer.note
    assert cache_files(store_of(pair)) == []


def test_an_unusable_folder_is_a_typed_error_before_anything_is_sent(
    pair: Paired, tiny: Engine, cloud: CountingCloud
) -> None:
    store_of(pair).write_text("")
    with pytest.raises(StoreError):
        run(pair, FIRST, tiny, cloud)
    assert cloud.routes == []


@pytest.mark.parametrize("at", [3, 50, 2000, 5000, -1])
def test_a_damaged_store_is_a_miss(at: int, pair: Paired, tiny: Engine, cloud: CountingCloud) -> None:
    first = run(pair, FIRST, tiny, cloud)
    (path,) = cache_files(store_of(pair))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    again = run(pair, FIRST, tiny, cloud)
    assert (again.is_reused, again.token_ids, asked(cloud)) == (False, first.token_ids, 2)
    assert run(pair, FIRST, tiny, cloud).is_reused
