"""A stream that is sent on yields the same ciphertext again, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import CodecError, LayoutMismatchError, UsageError
from splitinfer.sealing.transfer import SealedBody
from tests.support.device_cloud import Pair, joined

PAIR = Pair()
TOTAL = 9000


class Pieces:
    """Pieces that can be iterated again, and changed between."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.data), 777):
            yield bytes(self.data[start : start + 777])


def sealed(pieces: Pieces) -> SealedBody:
    body, _ = PAIR.seal(pieces, following_bytes=TOTAL, chunk_bytes=512)
    return body


def pull(body: SealedBody, count: int) -> list[bytes]:
    return [bytes(chunk) for chunk in islice(iter(body.stream), count)]


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_stream_sent_on_from_any_chunk_is_the_stream_sent_at_once(data: st.DataObject) -> None:
    body = sealed(Pieces(bytes(range(250)) * 36))
    count = body.stream.count
    pulled = data.draw(st.integers(0, count))
    start = data.draw(st.integers(0, pulled))
    first = pull(body, pulled)
    root = body.stream.root()
    rest = [bytes(chunk) for chunk in body.stream.resumed(start)]
    assert rest[: pulled - start] == first[start:]
    assert len(rest) == count - start
    assert (body.stream.root() == root) == (pulled == count)
    again = [bytes(chunk) for chunk in body.stream.resumed(0)]
    assert again == [*first[:start], *rest]
    assert sum(map(len, rest)) == body.stream.bytes_from(start)


def test_changed_pieces_are_not_sent() -> None:
    pieces = Pieces(bytes(TOTAL))
    body = sealed(pieces)
    pull(body, 14)
    pieces.data[-TOTAL + 5 * 512] ^= 1
    resumed = body.stream.resumed(10)
    emitted = []
    with pytest.raises(CodecError):
        emitted.extend(bytes(chunk) for chunk in resumed)
    assert len(emitted) < 4


def test_shorter_pieces_are_not_sent_as_a_whole() -> None:
    pieces = Pieces(bytes(TOTAL))
    body = sealed(pieces)
    pull(body, 9)
    del pieces.data[-1]
    with pytest.raises(LayoutMismatchError):
        joined(body.stream.resumed(9))


def test_a_chunk_that_was_never_pulled_cannot_come_first() -> None:
    body = sealed(Pieces(bytes(TOTAL)))
    pull(body, 3)
    with pytest.raises(UsageError):
        body.stream.resumed(4)


def test_the_first_pull_stays_the_only_one_without_a_start() -> None:
    body = sealed(Pieces(bytes(TOTAL)))
    pull(body, 1)
    with pytest.raises(UsageError):
        iter(body.stream)
