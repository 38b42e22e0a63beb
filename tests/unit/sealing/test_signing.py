from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import AuthenticationError
from splitinfer.sealing.signing import Purpose, sign, signer, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


@given(payload=st.binary(max_size=300), purpose=st.sampled_from(list(Purpose)))
@settings(deadline=None, max_examples=40)
def test_a_signature_verifies(payload: bytes, purpose: Purpose) -> None:
    verify(PUBLIC, purpose, payload, sign(KEY, purpose, payload))
    assert signer(KEY)(purpose, payload) == sign(KEY, purpose, payload)


@pytest.mark.parametrize(("made", "read"), list(itertools.permutations(Purpose, 2)))
def test_a_signature_for_one_purpose_is_none_for_another(made: Purpose, read: Purpose) -> None:
    with pytest.raises(AuthenticationError):
        verify(PUBLIC, read, b"payload", sign(KEY, made, b"payload"))


@given(payload=st.binary(max_size=100), other=st.binary(max_size=100))
@settings(deadline=None, max_examples=40)
def test_a_signature_is_over_the_whole_payload(payload: bytes, other: bytes) -> None:
    if payload != other:
        with pytest.raises(AuthenticationError):
            verify(PUBLIC, Purpose.RECEIPT, other, sign(KEY, Purpose.RECEIPT, payload))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_a_signature_of_another_form_is_refused(signature: bytes) -> None:
    with pytest.raises(AuthenticationError):
        verify(PUBLIC, Purpose.RECEIPT, b"payload", signature)


@pytest.mark.parametrize("public_key", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_a_public_key_that_is_none_is_refused(public_key: bytes) -> None:
    with pytest.raises(AuthenticationError):
        verify(public_key, Purpose.RECEIPT, b"payload", sign(KEY, Purpose.RECEIPT, b"payload"))


def test_a_signature_by_another_key_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(AuthenticationError):
        verify(PUBLIC, Purpose.KEYSET, b"payload", sign(other, Purpose.KEYSET, b"payload"))


def test_every_refusal_reads_the_same() -> None:
    causes = [(PUBLIC, bytes(64)), (b"", bytes(64)), (PUBLIC, b"")]
    messages = set()
    for public_key, signature in causes:
        with pytest.raises(AuthenticationError) as caught:
            verify(public_key, Purpose.KEYSET, b"payload", signature)
        messages.add(str(caught.value))
    assert len(messages) == 1
