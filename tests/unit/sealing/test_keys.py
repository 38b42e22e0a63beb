from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import AuthenticationError, SplitInferError
from splitinfer.sealing.keys import (
    CONTENT_KEY_BYTES,
    KEM_PUBLIC_KEY_BYTES,
    WRAP_BYTES,
    Direction,
    KemKey,
    check_commitment,
    derive_stream_keys,
    unwrap_content_key,
    wrap_content_key,
)

KEM = KemKey.generate()
DIGEST = bytes([3]) * 32
CONTENT_KEY = bytes(range(32))
WRAP = wrap_content_key(CONTENT_KEY, public_key=KEM.public_bytes, manifest_digest=DIGEST)


def test_sizes_are_those_of_the_format() -> None:
    assert len(KEM.public_bytes) == KEM_PUBLIC_KEY_BYTES == 1216
    assert len(WRAP) == WRAP_BYTES == 1168


def test_a_wrapped_key_comes_back() -> None:
    assert unwrap_content_key(WRAP, private_key=KEM, manifest_digest=DIGEST) == CONTENT_KEY


def test_two_wraps_of_one_key_differ_in_every_part() -> None:
    again = wrap_content_key(CONTENT_KEY, public_key=KEM.public_bytes, manifest_digest=DIGEST)
    assert again[:1088] != WRAP[:1088]
    assert again[1088:1120] != WRAP[1088:1120]
    assert again[1120:] != WRAP[1120:]


@given(at=st.integers(0, 32 * 8 - 1))
@settings(deadline=None, max_examples=20)
def test_a_wrap_is_bound_to_its_manifest(at: int) -> None:
    other = (int.from_bytes(DIGEST, "big") ^ (1 << at)).to_bytes(32, "big")
    with pytest.raises(AuthenticationError):
        unwrap_content_key(WRAP, private_key=KEM, manifest_digest=other)


@given(at=st.integers(0, WRAP_BYTES * 8 - 1))
@settings(deadline=None, max_examples=40)
def test_a_changed_wrap_is_refused_with_the_one_message(at: int) -> None:
    changed = (int.from_bytes(WRAP, "big") ^ (1 << at)).to_bytes(WRAP_BYTES, "big")
    with pytest.raises(AuthenticationError, match=f"^{AuthenticationError()}$"):
        unwrap_content_key(changed, private_key=KEM, manifest_digest=DIGEST)


@pytest.mark.parametrize(
    "wrap", [b"", WRAP[:-1], WRAP + b"\x00", WRAP[:1088], WRAP[:1088] + bytes(32) + WRAP[1120:], bytes(WRAP_BYTES)]
)
def test_a_wrap_of_another_form_is_refused(wrap: bytes) -> None:
    with pytest.raises(AuthenticationError):
        unwrap_content_key(wrap, private_key=KEM, manifest_digest=DIGEST)


def test_a_wrap_to_another_recipient_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        unwrap_content_key(WRAP, private_key=KemKey.generate(), manifest_digest=DIGEST)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_content_key_of_another_size_is_refused(size: int) -> None:
    wrap = wrap_content_key(bytes(size), public_key=KEM.public_bytes, manifest_digest=DIGEST)
    with pytest.raises(AuthenticationError):
        unwrap_content_key(wrap, private_key=KEM, manifest_digest=DIGEST)


@pytest.mark.parametrize(
    "public_key",
    [
        KEM.public_bytes[:-1],
        KEM.public_bytes + b"\x00",
        b"\xff" * 1184 + KEM.public_bytes[1184:],
        KEM.public_bytes[:1184] + bytes(32),  # a point of small order: the shared key would be known to all
        b"",
    ],
    ids=["short", "long", "ml-kem not reduced", "x25519 small order", "empty"],
)
def test_an_unusable_public_key_is_refused_by_a_typed_error(public_key: bytes) -> None:
    with pytest.raises(SplitInferError):
        wrap_content_key(CONTENT_KEY, public_key=public_key, manifest_digest=DIGEST)


def test_every_input_of_the_derivation_changes_all_of_the_keys() -> None:
    def derive(**changes: object) -> tuple[bytes, bytes, bytes]:
        fields: dict[str, object] = {"direction": Direction.REQUEST, "manifest_digest": DIGEST, "nonce": bytes(32)}
        content_key = changes.pop("content_key", CONTENT_KEY)
        keys = derive_stream_keys(content_key, **{**fields, **changes})  # type: ignore[arg-type]
        return keys.aead_key, keys.base_nonce, keys.commitment

    sets = [
        derive(),
        derive(direction=Direction.REPLY),
        derive(manifest_digest=bytes(32)),
        derive(nonce=b"\x01" + bytes(31)),
        derive(content_key=bytes(CONTENT_KEY_BYTES)),
    ]
    for part in zip(*sets, strict=True):
        assert len(set(part)) == len(sets)
    assert derive() == sets[0]


def test_a_commitment_is_checked_whole() -> None:
    keys = derive_stream_keys(CONTENT_KEY, direction=Direction.REPLY, manifest_digest=DIGEST, nonce=bytes(32))
    check_commitment(keys, keys.commitment)
    for wrong in (b"", keys.commitment[:-1], keys.commitment + b"\x00", bytes(32), keys.commitment[:-1] + b"\x00"):
        if wrong == keys.commitment:
            continue
        with pytest.raises(AuthenticationError):
            check_commitment(keys, wrong)


def test_no_key_shows_in_a_repr() -> None:
    keys = derive_stream_keys(CONTENT_KEY, direction=Direction.REPLY, manifest_digest=DIGEST, nonce=bytes(32))
    for secret in (keys.aead_key, keys.base_nonce):
        assert repr(secret) not in repr(keys)
        assert secret.hex() not in repr(keys)
    assert "PrivateKey" not in repr(KEM)
