from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import (
    AuthenticationError,
    LimitExceededError,
    ManifestError,
    ReplayError,
    StaleKeysetError,
    TruncatedError,
    VerificationError,
)
from splitinfer.receive.intake import MAX_EXPIRY_SECONDS, open_request, require_chunk_bytes
from splitinfer.receive.tokens import TokenSink, token_slab
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.heads import RequestHead
from splitinfer.sealing.manifest import RequestManifest
from splitinfer.sealing.signing import Purpose, sign
from splitinfer.sealing.stream import CHUNK_BYTES
from tests.support.device_cloud import Bytes, Pair, joined, layout_bytes, request_manifest, slab_sizes
from tests.support.device_cloud import RecordingSink as Sink


@pytest.fixture
def pair() -> Pair:
    return Pair()


def a_request(pair: Pair, ids: tuple[int, ...] = (1, 2, 3)) -> bytes:
    slab = token_slab(ids, padded_tokens=64)
    manifest = request_manifest(tokens=len(ids)).to_bytes()
    return joined(pair.seal([slab], following_bytes=len(slab), manifest=manifest)[0])


def whole(pair: Pair, body: bytes, sink: TokenSink) -> None:
    """Take in a request with one slab of 64 tokens."""
    opened = pair.open(body)
    opened.manifest()
    opened.receive(sink, iter([256]), data_bytes=256)


def split(body: bytes) -> tuple[RequestHead, bytes]:
    size = int.from_bytes(body[:4], "big")
    return RequestHead.model_validate_json(body[4 : 4 + size]), body[4 + size :]


def resigned(pair: Pair, body: bytes, *, manifest: Mapping[str, object] | None = None, **changes: object) -> bytes:
    """Change a head and sign it again with the device's own key."""
    head, chunks = split(body)
    changed = head.model_copy(update={"manifest": head.manifest.model_copy(update=dict(manifest or {})), **changes})
    signature = sign(pair.device, Purpose.REQUEST, changed.signed_bytes()).hex()
    return prefixed(changed.model_copy(update={"signature": signature}).to_bytes()) + chunks


@given(
    ids=st.lists(st.integers(0, 999), min_size=1, max_size=64).map(tuple),
    steps=st.lists(st.integers(1, 5000), min_size=1),
)
@settings(deadline=None, max_examples=15)
def test_a_prompt_arrives(ids: tuple[int, ...], steps: Sequence[int]) -> None:
    pair = Pair()
    opened = pair.open(a_request(pair, ids), steps)
    manifest = opened.manifest()
    assert manifest == request_manifest(tokens=len(ids))
    assert opened.sealed_manifest_sha256 == manifest.digest.hex()
    sink = TokenSink(true_tokens=len(ids), padded_tokens=64, vocabulary=1000)
    verified = opened.receive(sink, iter([256]), data_bytes=256)
    assert verified.payload == ids
    assert verified.ciphertext_root == opened.reader.root()


def test_a_cache_arrives(pair: Pair) -> None:
    data = os.urandom(layout_bytes(100))
    manifest = request_manifest("decode")
    body, _ = pair.seal([data], following_bytes=len(data), manifest=manifest.to_bytes(), chunk_bytes=65536)
    opened = pair.open(joined(body))
    assert opened.manifest() == manifest
    sizes = slab_sizes(100)
    assert opened.receive(Sink(sizes), iter(sizes), data_bytes=len(data)).payload == data


def test_a_request_is_executed_once(pair: Pair) -> None:
    body = a_request(pair)
    pair.open(body)
    with pytest.raises(ReplayError):
        pair.open(body)


def test_a_request_under_a_fresh_nonce_but_a_known_id_is_refused(pair: Pair) -> None:
    body = a_request(pair)
    pair.open(body)
    again = resigned(pair, body, server_nonce=pair.recipient.nonces.issue().hex())
    with pytest.raises(ReplayError):
        pair.open(again)


def test_a_nonce_serves_one_request(pair: Pair) -> None:
    first, second = a_request(pair), a_request(pair)
    nonce = split(first)[0].server_nonce
    pair.open(first)
    with pytest.raises(ReplayError):
        pair.open(resigned(pair, second, server_nonce=nonce))


def test_a_request_with_a_bad_signature_spends_no_nonce(pair: Pair) -> None:
    body = a_request(pair)
    head, chunks = split(body)
    forged = prefixed(head.model_copy(update={"signature": "0" * 128}).to_bytes()) + chunks
    with pytest.raises(AuthenticationError):
        pair.open(forged)
    pair.open(body)


def test_a_device_that_is_not_allowed_is_refused(pair: Pair) -> None:
    pair.recipient.allowed.clear()
    with pytest.raises(AuthenticationError):
        pair.open(a_request(pair))


def test_a_device_cannot_sign_for_another(pair: Pair) -> None:
    other = Ed25519PrivateKey.generate()
    pair.recipient.allowed.append(other.public_key().public_bytes_raw())
    body = a_request(pair)
    head, chunks = split(body)
    signature = sign(other, Purpose.REQUEST, head.signed_bytes()).hex()
    with pytest.raises(AuthenticationError):
        pair.open(prefixed(head.model_copy(update={"signature": signature}).to_bytes()) + chunks)


def test_an_unallowed_sender_and_a_bad_signature_read_the_same(pair: Pair) -> None:
    body = a_request(pair)
    messages = []
    for allowed in ([], [pair.device_public]):
        pair.recipient.allowed[:] = allowed
        head, chunks = split(body)
        with pytest.raises(AuthenticationError) as caught:
            pair.open(prefixed(head.model_copy(update={"signature": "0" * 128}).to_bytes()) + chunks)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        ({"version": 2}, ManifestError),
        ({"suite": "other"}, ManifestError),
        ({"chunk_bytes": 0}, LimitExceededError),
        ({"chunk_bytes": 1024}, LimitExceededError),
        ({"chunk_bytes": 2**31 - 1}, LimitExceededError),
        ({"keyset_digest": "0" * 64}, StaleKeysetError),
        ({"sender_id": "0" * 64}, AuthenticationError),
        ({"transfer_id": "0" * 32}, AuthenticationError),
    ],
    ids=str,
)
def test_a_changed_manifest_is_refused_even_when_signed(
    pair: Pair, manifest: dict[str, object], error: type[VerificationError]
) -> None:
    with pytest.raises(error):
        pair.open(resigned(pair, a_request(pair), manifest=manifest))


def test_expiry_is_between_now_and_ten_minutes(pair: Pair) -> None:
    now = int(pair.clock())
    for expires_at in (0, now - 1, now, now + MAX_EXPIRY_SECONDS + 1, 2**53 - 1):
        with pytest.raises(ManifestError):
            pair.open(resigned(pair, a_request(pair), manifest={"expires_at": expires_at}))


def test_a_request_to_an_expired_keyset_is_refused() -> None:
    pair = Pair(keyset_seconds=100)
    body = a_request(pair)
    pair.clock.seconds += 100
    fresh = resigned(pair, body, manifest={"expires_at": int(pair.clock()) + 10})
    with pytest.raises(StaleKeysetError):
        pair.open(fresh)


def test_a_request_to_the_keyset_before_the_present_one_is_answered() -> None:
    pair = Pair(keyset_seconds=50)
    body = a_request(pair)
    digest = pair.replica.current().digest
    pair.clock.seconds += 40
    assert pair.replica.current().digest != digest
    pair.open(body)


@pytest.mark.parametrize("name", ["stream_nonce", "commitment"])
def test_another_commitment_or_nonce_is_refused(pair: Pair, name: str) -> None:
    with pytest.raises(AuthenticationError):
        pair.open(resigned(pair, a_request(pair), manifest=None, **{name: "0" * 64}))


def test_a_wrap_of_another_request_is_refused(pair: Pair) -> None:
    other = split(a_request(pair))[0].wrap
    with pytest.raises(AuthenticationError):
        pair.open(resigned(pair, a_request(pair), wrap=other))


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=40)
def test_any_changed_bit_of_a_request_is_refused_by_a_typed_error(at: int, bit: int) -> None:
    pair = Pair()
    body = bytearray(a_request(pair))
    body[at % len(body)] ^= 1 << bit
    sink = TokenSink(true_tokens=3, padded_tokens=64, vocabulary=1000)
    with pytest.raises((VerificationError, StaleKeysetError)):
        whole(pair, bytes(body), sink)
    assert not any(sink.slab())


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_refused_by_a_typed_error(data: bytes) -> None:
    pair = Pair()
    for body in (data, prefixed(data), prefixed(data) + bytes(5000)):
        with pytest.raises(VerificationError):
            open_request(Bytes(body), pair.recipient)


@given(size=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_a_request_cut_anywhere_is_truncated(size: int) -> None:
    pair = Pair()
    body = a_request(pair)
    sink = TokenSink(true_tokens=3, padded_tokens=64, vocabulary=1000)
    with pytest.raises(TruncatedError):
        whole(pair, body[: size % len(body)], sink)
    assert not any(sink.slab())


def test_a_sealed_manifest_of_another_form_is_refused(pair: Pair) -> None:
    for data in (b"", b"{}", b"[]", request_manifest().to_bytes() + b" "):
        opened = pair.open(joined(pair.seal([], following_bytes=0, manifest=data)[0]))
        with pytest.raises(ManifestError):
            opened.manifest()


def test_the_closed_table_of_chunk_sizes() -> None:
    for size in CHUNK_BYTES:
        require_chunk_bytes(size)
    for size in (0, 1, 511, 513, 8192, 2**21, -512):
        with pytest.raises(LimitExceededError):
            require_chunk_bytes(size)


def test_a_manifest_is_the_one_that_was_sealed(pair: Pair) -> None:
    manifest = request_manifest("decode", policy_sha256="9" * 64)
    opened = pair.open(joined(pair.seal([], following_bytes=0, manifest=manifest.to_bytes())[0]))
    read = opened.manifest()
    assert isinstance(read, RequestManifest)
    assert read == manifest
