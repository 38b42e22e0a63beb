from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import LimitExceededError, ManifestError
from splitinfer.sealing.frames import (
    FINISH_REASONS,
    Frame,
    FrameKind,
    end_frame,
    frame_count,
    pad_frame,
    parse_frame,
    refusal_frame,
    token_frame,
)
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES


@given(token=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_a_token_frame_comes_back(token: int) -> None:
    data = token_frame(token)
    assert len(data) == FRAME_CHUNK_BYTES
    assert parse_frame(data) == Frame(FrameKind.TOKENS, token_ids=(token,))


@pytest.mark.parametrize("reason", FINISH_REASONS)
def test_an_end_frame_comes_back(reason: str) -> None:
    assert parse_frame(end_frame(reason)) == Frame(FrameKind.END, finish_reason=reason)


@given(code=st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=40))
@settings(deadline=None, max_examples=20)
def test_a_refusal_frame_comes_back(code: str) -> None:
    assert parse_frame(refusal_frame(code)) == Frame(FrameKind.REFUSAL, code=code)


@pytest.mark.parametrize("code", ["\x1b[2J", "line\nline", "a b", "\x7f"])
def test_a_refusal_frame_whose_code_is_not_plain_is_refused(code: str) -> None:
    """What the other side says ends up on a terminal."""
    with pytest.raises(ManifestError):
        parse_frame(refusal_frame(code))


def test_a_pad_frame_comes_back() -> None:
    assert parse_frame(pad_frame()) == Frame(FrameKind.PAD)


def test_every_frame_has_one_size() -> None:
    frames = [pad_frame(), end_frame("stop"), token_frame(0), token_frame(2**32 - 1), refusal_frame("x" * 200)]
    assert {len(frame) for frame in frames} == {FRAME_CHUNK_BYTES}


@given(data=st.binary(min_size=FRAME_CHUNK_BYTES, max_size=FRAME_CHUNK_BYTES))
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_a_frame_or_refused_by_a_typed_error(data: bytes) -> None:
    try:
        frame = parse_frame(data)
    except (ManifestError, LimitExceededError):
        return
    assert frame.kind in FrameKind


@given(kind=st.integers(0, 255), size=st.integers(0, 65535), payload=st.binary(max_size=509))
@settings(deadline=None, max_examples=200)
def test_a_frame_with_any_header_is_a_frame_or_refused_by_a_typed_error(kind: int, size: int, payload: bytes) -> None:
    data = (bytes([kind]) + size.to_bytes(2, "big") + payload).ljust(FRAME_CHUNK_BYTES, b"\x00")
    try:
        frame = parse_frame(data)
    except (ManifestError, LimitExceededError):
        return
    assert size <= 509
    assert frame.kind == kind


@pytest.mark.parametrize("tokens", [1, 15, 16])
def test_short_answers_are_all_alike(tokens: int) -> None:
    assert frame_count(tokens) == 17


@given(tokens=st.integers(1, 2**20))
@settings(deadline=None, max_examples=100)
def test_frames_hold_the_answer_and_its_end_in_a_power_of_two(tokens: int) -> None:
    frames = frame_count(tokens)
    assert frames >= tokens + 1
    assert (frames - 1).bit_count() == 1
    assert frames - 1 < 2 * max(tokens, 16)
    assert frame_count(tokens + 1) >= frames


def test_an_unknown_finish_reason_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        end_frame("bored")
