"""A source that is lost leaves everything in place, and the next one goes on with the first chunk not verified."""

from __future__ import annotations

import pytest

from splitinfer.errors import AuthenticationError, TransportError, TruncatedError
from splitinfer.receive.intake import OpenedRequest, Receiving, open_request
from tests.support.device_cloud import Bytes, Pair, RecordingSink, joined, request_manifest

SIZES = (700, 5000, 4096, 1)
DATA = bytes(range(256)) * 50
CHUNK = 512 + 16


class Losing(Bytes):
    """Gives its bytes, then raises TransportError instead of ending."""

    def readinto(self, buffer: memoryview) -> int:
        count = super().readinto(buffer)
        if not count and len(buffer):
            raise TransportError("cut")
        return count


def sealed(pair: Pair) -> tuple[bytes, int]:
    """Return a whole request with four slabs in small chunks, and the length of its head."""
    total = sum(SIZES)
    body, _ = pair.seal([DATA[:total]], following_bytes=total, manifest=request_manifest().to_bytes(), chunk_bytes=512)
    data = joined(body)
    return data, len(body.head)


def receive(opened: OpenedRequest, sink: RecordingSink) -> bytes:
    opened.manifest()
    return opened.receive(sink, iter(SIZES), data_bytes=sum(SIZES)).payload


@pytest.mark.parametrize("inside", [0, 1, 300])
def test_a_source_lost_at_any_chunk_is_gone_on_with(inside: int) -> None:
    pair = Pair()
    data, head = sealed(pair)
    for at in range(head, len(data) + 1, CHUNK):
        pair = Pair()
        data, head = sealed(pair)
        cut = min(at + inside, len(data))
        opened = open_request(Losing(data[:cut]), pair.recipient)
        sink = RecordingSink(SIZES)
        with pytest.raises(TransportError):
            receive(opened, sink)
        assert opened.reader.count == (cut - head) // CHUNK
        assert "wipe" not in sink.calls
        opened.reader.attach(Bytes(data[head + opened.reader.count * CHUNK :], (100,)))
        assert receive(opened, RecordingSink(SIZES)) == DATA[: sum(SIZES)]


def test_a_source_can_be_lost_again_and_again() -> None:
    pair = Pair()
    data, head = sealed(pair)
    opened, sink = open_request(Losing(data[: head + 5]), pair.recipient), RecordingSink(SIZES)
    for _ in range(1000):
        try:
            assert receive(opened, sink) == DATA[: sum(SIZES)]
            return
        except TransportError:
            start = head + opened.reader.count * CHUNK
            is_last = start + 2 * CHUNK > len(data)
            opened.reader.attach(Bytes(data[start:]) if is_last else Losing(data[start : start + CHUNK + 100]))
    pytest.fail("it never came to its end")


def test_a_source_that_ends_is_not_lost_and_wipes() -> None:
    pair = Pair()
    data, _ = sealed(pair)
    opened, sink = open_request(Bytes(data[:-1]), pair.recipient), RecordingSink(SIZES)
    with pytest.raises(TruncatedError):
        receive(opened, sink)
    assert sink.calls[-1] == "wipe"
    assert sink.is_clean


def test_chunks_that_were_verified_are_refused_as_a_second_ciphertext() -> None:
    pair = Pair()
    data, head = sealed(pair)
    opened, sink = open_request(Losing(data[: head + 12 * CHUNK]), pair.recipient), RecordingSink(SIZES)
    with pytest.raises(TransportError):
        receive(opened, sink)
    opened.reader.attach(Bytes(data[head + 11 * CHUNK :]))
    with pytest.raises(AuthenticationError):
        receive(opened, sink)
    assert sink.is_clean


def test_giving_up_wipes_sink_and_plaintext() -> None:
    pair = Pair()
    data, head = sealed(pair)
    opened, sink = open_request(Losing(data[: head + 12 * CHUNK]), pair.recipient), RecordingSink(SIZES)
    with pytest.raises(TransportError):
        receive(opened, sink)
    assert not sink.is_clean
    opened.wipe()
    assert sink.is_clean
    assert not any(opened.reader._plain)


def test_receiving_hands_nothing_over_before_its_last_check() -> None:
    pair = Pair()
    data, head = sealed(pair)
    opened, sink = open_request(Losing(data[:-1]), pair.recipient), RecordingSink(SIZES)
    opened.manifest()
    receiving = Receiving(opened.reader, sink, iter(SIZES), data_bytes=sum(SIZES), sender=pair.device_public)
    with pytest.raises(TransportError):
        receiving.run()
    assert "finish" not in sink.calls
    opened.reader.attach(Bytes(data[head + opened.reader.count * CHUNK :]))
    assert receiving.run().payload == DATA[: sum(SIZES)]
