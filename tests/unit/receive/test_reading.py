from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import LimitExceededError, TruncatedError
from splitinfer.receive.reading import MAX_HEAD_BYTES, read_exact, read_head, require_end
from splitinfer.sealing.encoding import prefixed
from tests.support.device_cloud import Bytes

steps = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@given(data=st.binary(max_size=300), steps=steps)
@settings(deadline=None, max_examples=40)
def test_short_reads_are_put_together(data: bytes, steps: list[int]) -> None:
    buffer = bytearray(len(data))
    source = Bytes(data + b"more", steps)
    read_exact(source, memoryview(buffer))
    assert buffer == data
    assert source.left == 4


@given(data=st.binary(max_size=100), missing=st.integers(1, 100), steps=steps)
@settings(deadline=None, max_examples=40)
def test_a_source_that_ends_early_is_refused(data: bytes, missing: int, steps: list[int]) -> None:
    with pytest.raises(TruncatedError):
        read_exact(Bytes(data, steps), memoryview(bytearray(len(data) + missing)))


@given(head=st.binary(max_size=2000), steps=steps)
@settings(deadline=None, max_examples=30)
def test_a_head_is_read_and_nothing_after_it(head: bytes, steps: list[int]) -> None:
    source = Bytes(prefixed(head) + b"chunks", steps)
    assert read_head(source) == head
    assert source.left == 6


def test_the_longest_head_is_read() -> None:
    assert read_head(Bytes(prefixed(bytes(MAX_HEAD_BYTES)))) == bytes(MAX_HEAD_BYTES)


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 1, 2**31, 2**32 - 1])
def test_a_longer_head_is_refused_before_it_is_read(size: int) -> None:
    source = Bytes(size.to_bytes(4, "big") + bytes(100))
    with pytest.raises(LimitExceededError):
        read_head(source)
    assert source.left == 100


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00", b"\x00\x00\x00\x01"])
def test_a_cut_head_is_refused(data: bytes) -> None:
    with pytest.raises(TruncatedError):
        read_head(Bytes(data))


def test_the_end_is_required() -> None:
    require_end(Bytes(b""))
    with pytest.raises(TruncatedError):
        require_end(Bytes(b"\x00"))
