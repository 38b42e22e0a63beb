from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from splitinfer.errors import LimitExceededError, ManifestError
from splitinfer.sealing.receipt import RECEIPT_BYTES, Event, Receipt, read_receipt_region, receipt_region
from splitinfer.sealing.signing import Purpose, verify
from tests.support.device_cloud import receipt, signed_receipt

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EVENTS = ("received", "opened", "reused", "prefilled", "decoded", "kept", "erased", "refused")
events = st.lists(st.builds(Event, event=st.sampled_from(EVENTS), count=st.integers(0, 2**31 - 1)), max_size=8)


@given(events=events, protection=st.text(alphabet=st.characters(codec="ascii", categories=["Ll", "Pd"]), max_size=64))
@settings(deadline=None, max_examples=40)
def test_a_receipt_region_comes_back(events: list[Event], protection: str) -> None:
    made = signed_receipt(KEY, events=events, protection=protection)
    block = receipt_region(made)
    assert len(block) == RECEIPT_BYTES
    assert read_receipt_region(block) == made


def test_the_longest_receipt_fits() -> None:
    longest = [Event(event="prefilled", count=2**31 - 1)] * 8
    made = signed_receipt(KEY, events=longest, protection="x" * 64, served_at=2**53 - 1)
    assert read_receipt_region(receipt_region(made)) == made


def test_a_receipt_too_long_for_its_block_is_refused() -> None:
    longest = [Event(event="prefilled", count=2**31 - 1)] * 8
    # 64 characters that take six bytes each in JSON, and a body that nobody could sign again.
    body = receipt(events=longest, protection="\x01" * 64).model_copy(update={"ciphertext_root": "a" * 2048})
    with pytest.raises(LimitExceededError):
        receipt_region(Receipt(body=receipt(), signature="0" * 128).model_copy(update={"body": body}))


def test_nine_events_are_refused() -> None:
    with pytest.raises(ValidationError):
        receipt(events=[Event(event="opened", count=1)] * 9)


def test_a_receipt_is_signed_for_its_purpose() -> None:
    made = signed_receipt(KEY)
    verify(KEY.public_key().public_bytes_raw(), Purpose.RECEIPT, made.body.to_bytes(), bytes.fromhex(made.signature))


@given(at=st.integers(0, RECEIPT_BYTES - 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=80)
def test_a_changed_block_is_another_receipt_or_refused(at: int, bit: int) -> None:
    made = signed_receipt(KEY)
    block = bytearray(receipt_region(made))
    block[at] ^= 1 << bit
    try:
        assert read_receipt_region(bytes(block)) != made
    except ManifestError:
        return


@pytest.mark.parametrize("block", [b"", b"\x00", bytes(4), bytes(RECEIPT_BYTES), b"\xff" * RECEIPT_BYTES])
def test_a_block_that_is_no_receipt_is_refused(block: bytes) -> None:
    with pytest.raises(ManifestError):
        read_receipt_region(block)


def test_a_receipt_of_another_version_is_refused() -> None:
    with pytest.raises(ManifestError):
        read_receipt_region(receipt_region(signed_receipt(KEY, version=2)))


def test_the_count_of_an_event_that_did_not_happen_is_none() -> None:
    made = signed_receipt(KEY)
    assert made.event_count("received") == 3
    assert made.event_count("refused") is None
