from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import LayoutMismatchError
from splitinfer.receive.tokens import TOKEN_BYTES, RowSink, TokenSink, token_slab
from splitinfer.schedule import pad_tokens


def filled(data: bytes, *, true_tokens: int, vocabulary: int) -> TokenSink:
    sink = TokenSink(true_tokens=true_tokens, padded_tokens=len(data) // TOKEN_BYTES, vocabulary=vocabulary)
    sink.slab()[:] = data
    return sink


@given(ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200).map(tuple))
@settings(deadline=None, max_examples=40)
def test_token_ids_come_back(ids: tuple[int, ...]) -> None:
    padded = pad_tokens(len(ids))
    slab = token_slab(ids, padded_tokens=padded)
    assert len(slab) == padded * TOKEN_BYTES
    assert filled(slab, true_tokens=len(ids), vocabulary=2**32).finish() == ids


@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=60).map(tuple), at=st.integers(0, 59))
@settings(deadline=None, max_examples=30)
def test_an_id_outside_the_vocabulary_is_refused(ids: tuple[int, ...], at: int) -> None:
    at %= len(ids)
    wrong = (*ids[:at], 1000, *ids[at + 1 :])
    with pytest.raises(LayoutMismatchError) as caught:
        filled(token_slab(wrong, padded_tokens=64), true_tokens=len(wrong), vocabulary=1000).finish()
    assert "1000" not in str(caught.value)


@given(true=st.integers(1, 63), at=st.integers(0, 255))
@settings(deadline=None, max_examples=30)
def test_padding_that_is_not_zero_is_refused(true: int, at: int) -> None:
    slab = bytearray(token_slab((1,) * true, padded_tokens=64))
    at = true * TOKEN_BYTES + at % (len(slab) - true * TOKEN_BYTES)
    slab[at] = 1
    with pytest.raises(LayoutMismatchError):
        filled(bytes(slab), true_tokens=true, vocabulary=1000).finish()


def test_finishing_and_wiping_overwrite_the_ids() -> None:
    for end in ("finish", "wipe"):
        sink = filled(token_slab((5, 6), padded_tokens=64), true_tokens=2, vocabulary=1000)
        memory = sink.slab()
        getattr(sink, end)()
        assert not any(memory)


def test_a_refused_slab_is_overwritten() -> None:
    sink = filled(token_slab((5, 2000), padded_tokens=64), true_tokens=2, vocabulary=1000)
    memory = sink.slab()
    with pytest.raises(LayoutMismatchError):
        sink.finish()
    assert not any(memory)


def test_a_sink_shows_no_ids() -> None:
    sink = filled(token_slab((54321,), padded_tokens=64), true_tokens=1, vocabulary=2**17)
    assert "54321" not in repr(sink)


@given(rows=st.lists(st.binary(min_size=6, max_size=6), min_size=1, max_size=20), at=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_rows_come_back_and_padding_that_is_not_zero_is_refused(rows: list[bytes], at: int) -> None:
    sink = RowSink(true_tokens=len(rows), padded_tokens=64, row_bytes=6)
    sink.slab()[:] = b"".join(rows).ljust(64 * 6, b"\0")
    assert sink.finish() == b"".join(rows)
    assert not any(sink.slab())
    used = 6 * len(rows)
    sink.slab()[used + at % (64 * 6 - used)] = 1
    with pytest.raises(LayoutMismatchError):
        sink.finish()
