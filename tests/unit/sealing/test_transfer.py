from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import AuthenticationError
from splitinfer.sealing.heads import PublicManifest, ReplyHead, RequestHead
from splitinfer.sealing.keys import CONTENT_KEY_BYTES, KemKey, unwrap_content_key
from splitinfer.sealing.signing import Purpose, signer, verify
from splitinfer.sealing.stream import CHUNK_BYTES
from splitinfer.sealing.transfer import (
    EXPIRY_SECONDS,
    HEAD_BOUND_BYTES,
    TransferKeys,
    seal_reply,
    seal_request,
)
from splitinfer.sealing.wire import parse_wire
from tests.support.device_cloud import Pair, cut, joined, request_manifest
from tests.support.keys import NOW

TRANSFERS = 10_000


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


def head_of(body: bytes) -> bytes:
    return body[4 : 4 + int.from_bytes(body[:4], "big")]


@given(data=st.binary(max_size=9000), sizes=st.lists(st.integers(0, 5000), max_size=5), step=st.integers(1, 9000))
@settings(deadline=None, max_examples=25)
def test_a_sealed_request_opens_at_its_recipient(data: bytes, sizes: list[int], step: int) -> None:
    pair = Pair()
    manifest = request_manifest()
    body, keys = pair.seal(cut(data, sizes), following_bytes=len(data), manifest=manifest.to_bytes())
    sealed = joined(body)
    assert len(sealed) == body.body_bytes
    opened = pair.open(sealed, [step])
    assert opened.manifest() == manifest
    opened.reader.expect(len(data))
    assert opened.reader.read(len(data)) == data
    opened.reader.finish(pair.device_public)
    assert (opened.content_key, opened.manifest_digest) == (keys.content_key, keys.manifest_digest)
    assert opened.reader.root() == body.stream.root()


@pytest.mark.parametrize("chunk_bytes", CHUNK_BYTES)
def test_every_chunk_size_opens(pair: Pair, chunk_bytes: int) -> None:
    data = os.urandom(chunk_bytes + 5)
    body, _ = pair.seal([data], following_bytes=len(data), chunk_bytes=chunk_bytes)
    opened = pair.open(joined(body))
    assert opened.reader.manifest() == b"{}"
    opened.reader.expect(len(data))
    assert opened.reader.read(len(data)) == data
    opened.reader.finish(pair.device_public)


def test_ids_nonces_and_keys_of_ten_thousand_transfers_never_repeat(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The wrap costs far more than all else and is fresh by itself; its place is kept.
    monkeypatch.setattr("splitinfer.sealing.transfer.wrap_content_key", lambda *_, **__: bytes(1168))
    recipient = pair.appraised()
    drawn: dict[str, set[bytes]] = {name: set() for name in ("id", "content key", "nonce", "commitment", "aead nonce")}
    for _ in range(TRANSFERS):
        body, keys = seal_request(
            [],
            sealed_manifest=b"{}",
            following_bytes=0,
            chunk_bytes=512,
            recipient=recipient,
            sender_id="0" * 64,
            signer=signer(pair.device),
            now=NOW,
            randomness=os.urandom,
        )
        head = parse_wire(RequestHead, head_of(body.head), what="request head")
        drawn["id"].add(keys.transfer_id)
        drawn["content key"].add(keys.content_key)
        drawn["nonce"].add(bytes.fromhex(head.stream_nonce))
        drawn["commitment"].add(bytes.fromhex(head.commitment))
        drawn["aead nonce"].add(body.stream.cipher._nonce(0))
    assert {name: len(values) for name, values in drawn.items()} == dict.fromkeys(drawn, TRANSFERS)


def test_randomness_is_asked_for_each_value_on_its_own(pair: Pair) -> None:
    asked: list[int] = []

    def randomness(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    pair.seal([], following_bytes=0, randomness=randomness)
    assert sorted(asked) == [16, 32, 32]


def test_request_and_reply_have_keys_of_their_own(pair: Pair) -> None:
    """Same content key, same manifest, same nonce: the direction alone makes the difference."""
    body, keys = pair.seal([], following_bytes=0, chunk_bytes=512, randomness=bytes)
    answer = seal_reply(
        [],
        response_manifest=b"{}",
        following_bytes=0,
        chunk_bytes=512,
        keys=keys,
        signer=signer(pair.device),
        randomness=bytes,
    )
    request = parse_wire(RequestHead, head_of(body.head), what="request head")
    reply = parse_wire(ReplyHead, head_of(answer.head), what="reply head")
    assert request.stream_nonce == reply.stream_nonce == "0" * 64
    assert request.commitment != reply.commitment
    assert body.stream.cipher._nonce(0) != answer.stream.cipher._nonce(0)


def test_two_replies_to_one_request_have_different_keys(pair: Pair) -> None:
    _, keys = pair.seal([], following_bytes=0)
    bodies = [
        joined(
            seal_reply(
                [],
                response_manifest=b"{}",
                following_bytes=0,
                chunk_bytes=512,
                keys=keys,
                signer=signer(pair.device),
                randomness=os.urandom,
            )
        )
        for _ in range(2)
    ]
    heads = [parse_wire(ReplyHead, head_of(body), what="reply head") for body in bodies]
    assert heads[0].commitment != heads[1].commitment
    assert bodies[0][-512:] != bodies[1][-512:]


def test_the_public_manifest_says_no_more_than_the_format() -> None:
    assert set(PublicManifest.model_fields) == {
        "version",
        "suite",
        "transfer_id",
        "keyset_digest",
        "sender_id",
        "chunk_bytes",
        "expires_at",
    }


def test_nothing_sealed_stands_in_the_body(pair: Pair) -> None:
    text = b"the private text of a prompt"
    manifest = request_manifest()
    body, _ = pair.seal([text], following_bytes=len(text), manifest=manifest.to_bytes())
    sealed = joined(body)
    assert text not in sealed
    for secret in (manifest.policy_sha256, manifest.model.weights_sha256, "prefill"):
        assert secret.encode() not in sealed


def test_a_head_fits_in_its_announced_bound(pair: Pair) -> None:
    body, _ = pair.seal([], following_bytes=0, chunk_bytes=1 << 20)
    assert len(body.head) <= HEAD_BOUND_BYTES
    largest = parse_wire(RequestHead, head_of(body.head), what="request head")
    grown = largest.manifest.model_copy(update={"expires_at": 2**53 - 1})
    assert len(largest.model_copy(update={"manifest": grown}).to_bytes()) + 4 <= HEAD_BOUND_BYTES


def test_a_request_expires_in_five_minutes_or_with_the_keyset() -> None:
    pair = Pair()
    body, _ = pair.seal([], following_bytes=0)
    head = parse_wire(RequestHead, head_of(body.head), what="request head")
    assert head.manifest.expires_at == NOW + EXPIRY_SECONDS
    brief = Pair(keyset_seconds=100)
    body, _ = brief.seal([], following_bytes=0)
    assert parse_wire(RequestHead, head_of(body.head), what="request head").manifest.expires_at == NOW + 100


def test_the_signature_covers_every_field_of_the_head(pair: Pair) -> None:
    body, _ = pair.seal([], following_bytes=0)
    head = parse_wire(RequestHead, head_of(body.head), what="request head")
    signature = bytes.fromhex(head.signature)
    verify(pair.device_public, Purpose.REQUEST, head.signed_bytes(), signature)
    changes: list[dict[str, object]] = [
        {name: ("0" if getattr(head, name)[0] != "0" else "1") + getattr(head, name)[1:]}
        for name in ("wrap", "stream_nonce", "commitment", "server_nonce")
    ]
    changes += [
        {"manifest": head.manifest.model_copy(update={"expires_at": head.manifest.expires_at + 1})},
        {"manifest": head.manifest.model_copy(update={"chunk_bytes": 512})},
    ]
    for change in changes:
        changed = head.model_copy(update=change)
        with pytest.raises(AuthenticationError):
            verify(pair.device_public, Purpose.REQUEST, changed.signed_bytes(), signature)


def test_the_wrap_opens_under_the_manifest_of_its_head_only(pair: Pair) -> None:
    body, keys = pair.seal([], following_bytes=0)
    head = parse_wire(RequestHead, head_of(body.head), what="request head")
    kem: KemKey = pair.replica.current().kem
    wrap = bytes.fromhex(head.wrap)
    assert unwrap_content_key(wrap, private_key=kem, manifest_digest=head.manifest.digest) == keys.content_key
    other = head.manifest.model_copy(update={"sender_id": "0" * 64})
    with pytest.raises(AuthenticationError):
        unwrap_content_key(wrap, private_key=kem, manifest_digest=other.digest)


def test_transfer_keys_show_no_content_key() -> None:
    keys = TransferKeys(bytes(16), bytes(range(CONTENT_KEY_BYTES)), bytes(32))
    assert keys.content_key.hex() not in repr(keys)
    assert repr(keys.content_key) not in repr(keys)


def test_a_sealed_body_shows_no_key_and_no_plaintext(pair: Pair) -> None:
    secret = b"canary of a prompt"
    body, keys = pair.seal([secret], following_bytes=len(secret), manifest=request_manifest().to_bytes())
    shown = repr(body)
    assert keys.content_key.hex() not in shown
    assert "canary" not in shown
    assert "policy_sha256" not in shown


def test_an_opened_request_shows_no_content_key(pair: Pair) -> None:
    body, keys = pair.seal([], following_bytes=0)
    assert repr(keys.content_key) not in repr(pair.open(joined(body)))


def test_a_replica_shows_no_private_key() -> None:
    keys = Pair().replica.current()
    assert "PrivateKey" not in repr(keys)
    assert keys.receipt.private_bytes_raw().hex() not in repr(keys)


def test_the_sender_of_another_key_is_refused(pair: Pair) -> None:
    body, _ = pair.seal([], following_bytes=0, key=Ed25519PrivateKey.generate())
    with pytest.raises(AuthenticationError):
        pair.open(joined(body))
