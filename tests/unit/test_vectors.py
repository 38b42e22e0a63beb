"""Every frozen vector against the product: honest ones are accepted, each other is refused with the error it names."""

from __future__ import annotations

import hashlib

import pytest

from splitinfer import codec
from splitinfer.attestation.appraise import appraise
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import ModelMismatchError, SplitInferError, error_for_code
from splitinfer.receive.replies import OpenedReply
from tests.support.vectors import (
    Vector,
    VectorRecipient,
    VectorSeen,
    WatchedSink,
    all_vectors,
    context,
    find_vector,
    open_vector_reply,
    receive_cache,
    receive_request,
    vectors,
)


def _parameters(file_name: str, *, honest: bool) -> list[object]:
    found = [vector for vector in vectors(file_name) if vector.is_honest == honest]
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


def _require_wiped(sinks: list[WatchedSink]) -> None:
    assert all(sink.is_wiped and not sink.is_finished for sink in sinks)


def _cache_sha256(snapshot: object) -> str:
    assert isinstance(snapshot, CacheSnapshot)
    packed = codec.pack(snapshot, codec="raw", padded_tokens=64)
    return hashlib.sha256(b"".join(bytes(slab) for slab in packed.slabs())).hexdigest()


@pytest.mark.parametrize("vector", _parameters("request.bin", honest=True))
def test_honest_request_is_accepted(vector: Vector) -> None:
    sinks: list[WatchedSink] = []
    verified = receive_request(vector, _recipient(vector), sinks)
    assert [sink.is_finished for sink in sinks] == [True]
    if vector.says["route"] == "prefill":
        assert list(verified.payload) == context()["token_ids"]  # type: ignore[call-overload]
    else:
        assert _cache_sha256(verified.payload) == context()["cache_sha256"][vector.says["layout"]]


# That a request came by the route of its kind is the cloud's check: test_cloud_vectors.py.
@pytest.mark.parametrize(
    "vector", [p for p in _parameters("request.bin", honest=False) if "another-route" not in str(p.id)]  # type: ignore[attr-defined]
)
def test_changed_request_is_refused(vector: Vector) -> None:
    sinks: list[WatchedSink] = []
    recipient = _recipient(vector)
    with pytest.raises(_error(vector)) as refused:
        receive_request(vector, recipient, sinks)
    assert refused.type is _error(vector)
    _require_wiped(sinks)


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
        assert _cache_sha256(result) == context()["cache_sha256"][vector.says["layout"]]
    elif vector.says["read"] == "tokens":
        assert result == context()["answer"]
    else:
        assert type(result) is ModelMismatchError


@pytest.mark.parametrize("vector", _parameters("reply.bin", honest=False))
def test_changed_reply_is_refused(vector: Vector) -> None:
    sinks: list[WatchedSink] = []
    shown: list[int] = []
    with pytest.raises(_error(vector)) as refused:
        _read(vector, open_vector_reply(vector), sinks, shown)
    assert refused.type is _error(vector)
    _require_wiped(sinks)
    assert shown == context()["answer"][: len(shown)]


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
