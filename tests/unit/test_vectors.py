"""Every frozen vector against the product: honest ones are accepted, each other is refused with the error it names."""

from __future__ import annotations

import hashlib

import pytest

from splitinfer import codec
from splitinfer.attestation.appraise import appraise
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import ModelMismatchError, SplitInferError, error_for_code
from splitinfer.receive.reading import read_head
from splitinfer.receive.replies import OpenedReply
from splitinfer.receive.resuming import open_state_answer
from splitinfer.sealing.resume import StateQuery
from tests.support.vector_cloud import VectorCloud, open_answer, sealed_refusal, watch_sinks
from tests.support.vector_device import VectorDevice
from tests.support.vectors import (
    BytesSource,
    Vector,
    VectorRecipient,
    VectorSeen,
    WatchedSink,
    all_vectors,
    cache_sink,
    context,
    expectations,
    find_vector,
    open_vector_reply,
    receive_cache,
    receive_request,
    vectors,
)


def _parameters(file_name: str, *, honest: bool, whole: bool = True) -> list[object]:
    """Return the vectors; without `whole` those that intake can refuse, which knows no routes and no wishes."""
    found = [vector for vector in vectors(file_name) if vector.is_honest == honest]
    found = [vector for vector in found if whole or not vector.says["whole"]]
    return [pytest.param(vector, id=vector.name) for vector in found]


def _error(vector: Vector) -> type[SplitInferError]:
    error = error_for_code(vector.says["error"])
    assert error is not None
    return error


def _recipient(vector: Vector) -> VectorRecipient:
    recipient = VectorRecipient(vector)
    if vector.says["first"]:
        receive_request(find_vector(vector.says["first"]), recipient, [])
    return recipient


# One message stands for every AuthenticationError, so that only the place tells which check refused.
_PLACES = {7: {"open_request"}, 10: {"check_commitment", "unwrap_content_key"}, 11: {"open_into"}, 13: {"finish"}}


def _require_place(vector: Vector, refused: pytest.ExceptionInfo[SplitInferError]) -> None:
    check, names = vector.says["check"], {entry.name for entry in refused.traceback}
    assert check not in _PLACES or names & _PLACES[check]
    assert not (check == 7 and "_unwrapped" in names)


def _require_wiped(sinks: list[WatchedSink]) -> None:
    assert all(sink.is_wiped and not sink.is_finished for sink in sinks)


def _cache_hex(snapshot: object) -> str:
    assert isinstance(snapshot, CacheSnapshot)
    packed = codec.pack(snapshot, codec="raw", padded_tokens=64)
    return b"".join(bytes(slab) for slab in packed.slabs()).hex()


@pytest.mark.parametrize("vector", _parameters("request.bin", honest=True))
def test_honest_request_is_accepted(vector: Vector) -> None:
    sinks: list[WatchedSink] = []
    verified = receive_request(vector, _recipient(vector), sinks)
    assert [sink.is_finished for sink in sinks] == [True]
    if vector.says.get("asks") == "close":
        assert verified.payload == ()
    elif vector.says.get("asks") == "rows":
        assert verified.payload.hex() == context()["rows_hex"]
    elif vector.says["route"] == "prefill":
        assert list(verified.payload) == context()["token_ids"][vector.says.get("base_tokens", 0) :]
    else:
        assert _cache_hex(verified.payload) == context()["cache_hex"][vector.says["layout"]]


@pytest.mark.parametrize("vector", _parameters("request.bin", honest=False, whole=False))
def test_changed_request_is_refused(vector: Vector) -> None:
    sinks: list[WatchedSink] = []
    recipient = _recipient(vector)
    with pytest.raises(_error(vector)) as refused:
        receive_request(vector, recipient, sinks)
    assert refused.type is _error(vector)
    _require_place(vector, refused)
    _require_wiped(sinks)


@pytest.mark.parametrize("vector", _parameters("request.bin", honest=True))
def test_honest_request_is_answered_by_the_whole_cloud(vector: Vector) -> None:
    cloud, asks = VectorCloud(vector), vector.says.get("asks") or vector.says["route"]
    if vector.says["first"]:
        cloud.reply(find_vector(vector.says["first"]))
    done, base = len(cloud.engine.calls), vector.says.get("base_tokens", 0)
    reply = open_answer(vector, cloud.reply(vector))
    kinds = {"prefill": "cache", "rows": "cache", "decode": "tokens", "close": "closed"}
    calls = {"cache": ["start_prefill"], "tokens": ["decode"], "closed": []}
    assert reply.manifest.kind == kinds[asks]
    assert cloud.engine.calls[done:] == calls[kinds[asks]]
    if asks == "rows":
        assert cloud.engine.seen_rows.hex() == context()["rows_hex"]
        assert cloud.engine.arguments[done:] == [((0,) * 21, [(0, 16), (16, 21)], 64)]
    if asks == "prefill":
        # Zeros stand for the ids of what is held, whose rows are not computed again.
        token_ids = (0,) * base + tuple(context()["token_ids"][base:])
        assert cloud.engine.arguments[done:] == [(token_ids, [(base, 16), (16, 21)], base + 64)]


@pytest.mark.parametrize("vector", _parameters("request.bin", honest=False))
def test_changed_request_is_refused_by_the_whole_cloud(vector: Vector, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = VectorCloud(vector)
    if vector.says["first"]:
        cloud.reply(find_vector(vector.says["first"]))
    done, sinks = len(cloud.engine.calls), watch_sinks(monkeypatch)
    try:
        error, is_sealed = sealed_refusal(vector, cloud.reply(vector)), True
    except SplitInferError as raised:
        error, is_sealed = raised, False
    assert type(error) is _error(vector)
    # docs/format.md section 9: once the content key is known, refusals are sealed; before, the door answers.
    assert is_sealed == (vector.says["check"] > 10) or vector.says["check"] <= 2 or _ends_in_the_head(vector)
    assert cloud.engine.calls[done:] == []
    _require_wiped(sinks)


def _received(request: Vector, reply: OpenedReply) -> object:
    sink = cache_sink(expectations(request.says["layout"]).layout, reply.manifest, len(context()["token_ids"]))
    return reply.receive_cache(sink, sink.sizes(), data_bytes=sink.size_bytes, check_receipt=lambda _: None).payload


def _lost(vector: Vector) -> tuple[VectorCloud, Vector]:
    """Return a cloud that lost the connection of the request that a call of section 21 is about, and the request."""
    cloud, request = VectorCloud(vector), find_vector(vector.says["first"])
    cloud.lose(request, came=vector.says["came"])
    return cloud, request


@pytest.mark.parametrize("vector", _parameters("state.bin", honest=True))
def test_honest_state_query_is_answered(vector: Vector) -> None:
    cloud, _ = _lost(vector)
    query = StateQuery.model_validate_json(read_head(BytesSource(vector.data)))
    key = bytes.fromhex(context()["receipt_public_key"])
    body = open_state_answer(cloud.reply(vector), query=query, receipt_public_key=key)
    assert (body.state, body.request_chunks) == ("open", vector.says["came"])


@pytest.mark.parametrize("vector", _parameters("resume.bin", honest=True))
def test_honest_resume_gets_the_reply_of_the_whole_request(vector: Vector) -> None:
    cloud, request = _lost(vector)
    reply = open_answer(request, cloud.reply(vector))
    assert _cache_hex(_received(request, reply)) == context()["cache_hex"]["full"]
    assert cloud.engine.calls == ["start_prefill"]


@pytest.mark.parametrize("vector", [*_parameters("state.bin", honest=False), *_parameters("resume.bin", honest=False)])
def test_changed_call_about_a_lost_transfer_is_refused(vector: Vector) -> None:
    cloud, request = _lost(vector)
    try:
        error: SplitInferError = sealed_refusal(request, cloud.reply(vector))
    except SplitInferError as raised:
        error = raised
    assert type(error) is _error(vector)
    assert cloud.engine.calls == []


def _ends_in_the_head(vector: Vector) -> bool:
    return vector.says["error"] == "truncated" and len(vector.data) < 4 + int.from_bytes(vector.data[:4], "big")


def _read(vector: Vector, reply: OpenedReply, sinks: list[WatchedSink], shown: list[int]) -> object:
    if vector.says["read"] == "cache":
        return receive_cache(vector, reply, sinks).payload
    if vector.says["read"] == "tokens":
        for frame in reply.frames():
            shown.extend(frame.token_ids)
        return shown
    return reply.refuse()


@pytest.mark.parametrize("vector", _parameters("reply.bin", honest=True))
def test_honest_reply_is_accepted(vector: Vector) -> None:
    reply = open_vector_reply(vector)
    result = _read(vector, reply, [], [])
    assert reply.receipt is not None
    assert reply.receipt.body.transfer_id == vector.says["sent"]["transfer_id"]
    if vector.says["read"] == "cache":
        assert _cache_hex(result) == context()["cache_hex"][vector.says["layout"]]
    elif vector.says["read"] == "tokens":
        assert result == context()["answer"]
    else:
        assert type(result) is ModelMismatchError


@pytest.mark.parametrize("vector", _parameters("reply.bin", honest=False, whole=False))
def test_changed_reply_is_refused(vector: Vector) -> None:
    sinks: list[WatchedSink] = []
    shown: list[int] = []
    with pytest.raises(_error(vector)) as refused:
        _read(vector, open_vector_reply(vector), sinks, shown)
    assert refused.type is _error(vector)
    _require_place(vector, refused)
    _require_wiped(sinks)
    assert shown == context()["answer"][: len(shown)]


@pytest.mark.parametrize("vector", _parameters("reply.bin", honest=True))
def test_honest_reply_is_accepted_by_the_whole_device(vector: Vector) -> None:
    device = VectorDevice(vector)
    if vector.says["read"] == "refusal":
        with pytest.raises(ModelMismatchError):
            device.run()
    elif vector.says["read"] == "tokens":
        assert device.run() == context()["answer"]
    else:
        assert _cache_hex(device.run()) == context()["cache_hex"][vector.says["layout"]]
    assert device.has_receipt


@pytest.mark.parametrize("vector", _parameters("reply.bin", honest=False))
def test_changed_reply_is_refused_by_the_whole_device(vector: Vector) -> None:
    device = VectorDevice(vector)
    with pytest.raises(_error(vector)) as refused:
        device.run()
    assert refused.type is _error(vector)
    if vector.says["check"] == 0:
        # A signed receipt is evidence, kept even where it says something else than what was sent.
        assert device.has_receipt == ("signed-by-another-key" not in vector.name)
    _require_wiped(device.sinks)
    assert device.shown[:3] == context()["answer"][: len(device.shown)]


def _appraise(vector: Vector, seen: VectorSeen) -> str:
    pinned = context()["identity_sha256"]
    return appraise(vector.data, pinned_sha256=pinned, now=vector.says["now"], seen=seen).keyset_digest.hex()


@pytest.mark.parametrize("vector", _parameters("keyset.bin", honest=True))
def test_honest_keyset_is_accepted(vector: Vector) -> None:
    seen = VectorSeen(vector.says["seen"])
    assert _appraise(vector, seen) == context()["keyset_digest"]
    assert len(seen.remembered) == 1


@pytest.mark.parametrize("vector", _parameters("keyset.bin", honest=False))
def test_changed_keyset_is_refused_and_not_remembered(vector: Vector) -> None:
    seen = VectorSeen(vector.says["seen"])
    with pytest.raises(_error(vector)) as refused:
        _appraise(vector, seen)
    assert refused.type is _error(vector)
    assert seen.remembered == []


@pytest.mark.parametrize("vector", [pytest.param(v, id=v.name) for v in all_vectors()])
def test_vector_has_the_bytes_it_describes(vector: Vector) -> None:
    assert hashlib.sha256(vector.data).hexdigest() == vector.says["sha256"]
    assert vector.says["sentence"].endswith(".")
