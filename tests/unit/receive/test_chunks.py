from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import (
    AuthenticationError,
    LayoutMismatchError,
    LimitExceededError,
    ManifestError,
    TruncatedError,
    VerificationError,
)
from splitinfer.handoff import VerifiedTransfer
from splitinfer.receive.chunks import ChunkReader
from splitinfer.receive.intake import finish_verified
from splitinfer.receive.reading import MAX_MANIFEST_BYTES
from splitinfer.sealing.keys import Direction, derive_stream_keys
from splitinfer.sealing.manifest import manifest_region
from splitinfer.sealing.signing import signer
from splitinfer.sealing.stream import CHUNK_BYTES, TAG_BYTES, ChunkCipher, ChunkRoot, SealedStream
from tests.support.device_cloud import Bytes, RecordingSink, joined

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
DIGEST = bytes([7]) * 32
CHUNK = 512
WHOLE = CHUNK + TAG_BYTES


def cipher() -> ChunkCipher:
    keys = derive_stream_keys(bytes(32), direction=Direction.REQUEST, manifest_digest=DIGEST, nonce=bytes(32))
    return ChunkCipher(keys, transfer_id=bytes(16), direction=Direction.REQUEST)


def sealed(region: bytes, data: bytes, *, chunk_bytes: int = CHUNK, key: Ed25519PrivateKey = KEY) -> bytes:
    return joined(
        SealedStream(
            cipher=cipher(),
            direction=Direction.REQUEST,
            chunk_bytes=chunk_bytes,
            data_bytes=len(region) + len(data),
            manifest_digest=DIGEST,
            pieces=[region, data],
            signer=signer(key),
            chunks=ChunkRoot(),
        )
    )


def reader(data: bytes, *, chunk_bytes: int = CHUNK, steps: Sequence[int] = (1 << 30,)) -> ChunkReader:
    return ChunkReader(
        Bytes(data, steps), cipher(), direction=Direction.REQUEST, chunk_bytes=chunk_bytes, manifest_digest=DIGEST
    )


def a_stream(data: bytes, *, manifest: bytes = b"{}", chunk_bytes: int = CHUNK) -> bytes:
    return sealed(manifest_region(manifest, chunk_bytes=chunk_bytes), data, chunk_bytes=chunk_bytes)


def received(
    stream: bytes,
    sink: RecordingSink,
    *,
    tail_bytes: int = 0,
    chunk_bytes: int = CHUNK,
    steps: Sequence[int] = (1 << 30,),
    check_tail: Callable[[bytes], None] | None = None,
) -> VerifiedTransfer:
    chunks = reader(stream, chunk_bytes=chunk_bytes, steps=steps)
    chunks.manifest()
    sizes = [len(slab) for slab in sink.memory]
    return finish_verified(
        chunks,
        sink,
        iter(sizes),
        data_bytes=sum(sizes) + tail_bytes,
        sender=PUBLIC,
        tail_bytes=tail_bytes,
        check_tail=check_tail,
    )


def refused(stream: bytes, sizes: Sequence[int], error: type[VerificationError]) -> None:
    """Demand the error, no `finish`, and a sink that was wiped last."""
    sink = RecordingSink(sizes)
    with pytest.raises(error):
        received(stream, sink)
    assert "finish" not in sink.calls
    assert sink.calls[-1] == "wipe"
    assert sink.is_clean


slab_sizes = st.lists(
    st.integers(0, 1600) | st.sampled_from([CHUNK, 2 * CHUNK, CHUNK - 68, CHUNK - 67, CHUNK - 1, CHUNK + 1]),
    min_size=1,
    max_size=6,
)


@given(sizes=slab_sizes, tail=st.integers(0, 900), steps=st.lists(st.integers(1, 700), min_size=1, max_size=4))
@settings(deadline=None, max_examples=100)
def test_slabs_of_any_sizes_come_back_however_the_bytes_arrive(sizes: list[int], tail: int, steps: list[int]) -> None:
    data = os.urandom(sum(sizes) + tail)
    sink = RecordingSink(sizes)
    tails: list[bytes] = []
    verified = received(a_stream(data), sink, tail_bytes=tail, steps=steps, check_tail=tails.append)
    assert verified.payload == data[: len(data) - tail]
    assert tails == [data[len(data) - tail :]]
    assert verified.chunk_count * WHOLE == len(a_stream(data))
    assert sink.calls == ["slab"] * len(sizes) + ["finish"]


def test_a_tail_that_is_refused_wipes_the_sink() -> None:
    def refuse(tail: bytes) -> None:
        raise ManifestError("the tail is wrong")

    sink = RecordingSink([900])
    with pytest.raises(ManifestError):
        received(a_stream(b"x" * 1000), sink, tail_bytes=100, check_tail=refuse)
    assert "finish" not in sink.calls
    assert sink.is_clean


@given(sizes=slab_sizes)
@settings(deadline=None, max_examples=60)
def test_opening_in_place_and_through_the_scratch_chunk_give_the_same(sizes: list[int]) -> None:
    data = os.urandom(sum(sizes))
    in_place, bytewise = RecordingSink(sizes), RecordingSink([1] * sum(sizes))
    stream = a_stream(data)
    assert received(stream, in_place).payload == received(stream, bytewise).payload == data


@pytest.mark.parametrize("chunk_bytes", CHUNK_BYTES)
def test_every_chunk_size_is_read(chunk_bytes: int) -> None:
    sizes = [chunk_bytes // 2, chunk_bytes, chunk_bytes // 3, 2]
    data = os.urandom(sum(sizes))
    stream = a_stream(data, chunk_bytes=chunk_bytes)
    assert received(stream, RecordingSink(sizes), chunk_bytes=chunk_bytes).payload == data


def test_one_byte_at_a_time_is_enough() -> None:
    data = os.urandom(700)
    assert received(a_stream(data), RecordingSink([700]), steps=[1]).payload == data


@given(size=st.integers(0, 20_000))
@settings(deadline=None, max_examples=30)
def test_a_manifest_of_any_length_comes_back(size: int) -> None:
    manifest = os.urandom(size)
    chunks = reader(a_stream(b"", manifest=manifest))
    assert chunks.manifest() == manifest


def test_the_longest_manifest_is_read_and_a_longer_one_refused() -> None:
    largest = bytes(MAX_MANIFEST_BYTES - 4)
    assert reader(a_stream(b"", manifest=largest, chunk_bytes=65536), chunk_bytes=65536).manifest() == largest
    for declared in (MAX_MANIFEST_BYTES - 3, 2**32 - 1):
        region = declared.to_bytes(4, "big").ljust(65536, b"\x00")
        chunks = reader(sealed(region, b"", chunk_bytes=65536), chunk_bytes=65536)
        with pytest.raises(LimitExceededError):
            chunks.manifest()
        assert chunks.count == 1, "more was read than the declared length"


def test_a_manifest_padded_with_something_is_refused() -> None:
    region = bytearray(manifest_region(b"{}", chunk_bytes=CHUNK))
    region[-1] = 1
    with pytest.raises(ManifestError):
        reader(sealed(bytes(region), b"")).manifest()


CUT = a_stream(os.urandom(5 * CHUNK), manifest=b"{}")
FIRST = 8 * WHOLE


@pytest.mark.parametrize("chunks", range(8, len(CUT) // WHOLE))
@pytest.mark.parametrize("more", [0, 1, TAG_BYTES, WHOLE - 1])
def test_a_stream_cut_anywhere_is_refused_and_wiped(chunks: int, more: int) -> None:
    refused(CUT[: chunks * WHOLE + more], [5 * CHUNK], TruncatedError)


@pytest.mark.parametrize("size", [0, 1, WHOLE - 1, WHOLE, 7 * WHOLE])
def test_a_stream_cut_within_its_manifest_is_refused(size: int) -> None:
    with pytest.raises(TruncatedError):
        reader(CUT[:size]).manifest()


@pytest.mark.parametrize("extra", [b"\x00", bytes(WHOLE), CUT[-WHOLE:]])
def test_bytes_after_the_final_chunk_are_refused_and_wiped(extra: bytes) -> None:
    refused(CUT + extra, [5 * CHUNK], TruncatedError)


@given(at=st.integers(FIRST, len(CUT) - 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_a_changed_bit_is_refused_and_wiped(at: int, bit: int) -> None:
    changed = bytearray(CUT)
    changed[at] ^= 1 << bit
    refused(bytes(changed), [5 * CHUNK], AuthenticationError)


@pytest.mark.parametrize(("left", "right"), [(8, 9), (8, 13), (12, 13)])
def test_swapped_chunks_are_refused_and_wiped(left: int, right: int) -> None:
    chunks = [CUT[at : at + WHOLE] for at in range(0, len(CUT), WHOLE)]
    chunks[left], chunks[right] = chunks[right], chunks[left]
    refused(b"".join(chunks), [5 * CHUNK], AuthenticationError)


@pytest.mark.parametrize("index", [8, 10, 12])
def test_a_left_out_or_repeated_chunk_is_refused_and_wiped(index: int) -> None:
    at = index * WHOLE
    refused(CUT[:at] + CUT[at + WHOLE :], [5 * CHUNK], VerificationError)
    refused(CUT[:at] + CUT[at : at + WHOLE] + CUT[at:], [5 * CHUNK], AuthenticationError)


@pytest.mark.parametrize("sizes", [[4 * CHUNK], [6 * CHUNK], [5 * CHUNK - 1], [0], [5 * CHUNK + 445]])
def test_a_sink_of_another_size_never_finishes(sizes: list[int]) -> None:
    refused(CUT, sizes, VerificationError)


def test_a_slab_of_another_length_than_scheduled_is_refused_and_wiped() -> None:
    sink = RecordingSink([100])
    chunks = reader(a_stream(bytes(200)))
    chunks.manifest()
    with pytest.raises(LayoutMismatchError):
        finish_verified(chunks, sink, iter([200]), data_bytes=200, sender=PUBLIC)
    assert sink.calls[-1] == "wipe"


def test_a_trailer_of_another_key_is_refused_and_wiped() -> None:
    region = manifest_region(b"{}", chunk_bytes=CHUNK)
    refused(sealed(region, b"x" * 900, key=Ed25519PrivateKey.generate()), [900], AuthenticationError)


def test_a_sinks_own_failure_wipes_it() -> None:
    class Failing(RecordingSink):
        def finish(self) -> bytes:
            self.calls.append("finish")
            raise ManifestError("the sink found a fault")

    sink = Failing([900])
    with pytest.raises(ManifestError):
        received(a_stream(b"x" * 900), sink)
    assert sink.calls[-1] == "wipe"
    assert sink.is_clean


def test_an_interruption_wipes_the_sink() -> None:
    sink = RecordingSink([900, 900])

    def sizes() -> Iterator[int]:
        yield 900
        raise KeyboardInterrupt

    chunks = reader(a_stream(b"x" * 1800))
    chunks.manifest()
    with pytest.raises(KeyboardInterrupt):
        finish_verified(chunks, sink, sizes(), data_bytes=1800, sender=PUBLIC)
    assert sink.calls[-1] == "wipe"
    assert sink.is_clean


def test_the_scratch_chunk_is_wiped_whether_it_went_well_or_not() -> None:
    stream = a_stream(b"x" * 900)
    for data in (stream, stream[:-1]):
        chunks = reader(data)
        chunks.manifest()
        sink = RecordingSink([900])
        try:
            finish_verified(chunks, sink, iter([900]), data_bytes=900, sender=PUBLIC)
        except TruncatedError:
            assert data is not stream
        assert not any(chunks._plain)


def test_slack_that_is_not_zero_is_refused_and_wiped() -> None:
    # The sender signs a longer stream than the manifest implies, of as many chunks.
    refused(a_stream(bytes(900) + b"\x01"), [900], ManifestError)


def test_a_stream_is_not_finished_before_its_manifest_said_what_follows() -> None:
    chunks = reader(CUT)
    chunks.manifest()
    with pytest.raises(TruncatedError):
        chunks.finish(PUBLIC)


def test_more_chunks_than_one_key_may_seal_are_refused_before_they_are_read() -> None:
    source = Bytes(CUT)
    chunks = ChunkReader(source, cipher(), direction=Direction.REQUEST, chunk_bytes=CHUNK, manifest_digest=DIGEST)
    chunks.manifest()
    left = source.left
    with pytest.raises(LimitExceededError):
        chunks.expect(CHUNK * 2**20)
    assert source.left == left


class Miscounting(SealedStream):
    """Signs the right count and states another."""

    def _trailer(self) -> bytes:
        signed = super()._trailer()
        return (self.count + 1).to_bytes(4, "big") + signed[4:]


def test_a_trailer_that_states_another_count_than_it_signs_is_refused_and_wiped() -> None:
    region = manifest_region(b"{}", chunk_bytes=CHUNK)
    stream = Miscounting(
        cipher=cipher(),
        direction=Direction.REQUEST,
        chunk_bytes=CHUNK,
        data_bytes=len(region) + 900,
        manifest_digest=DIGEST,
        pieces=[region, b"x" * 900],
        signer=signer(KEY),
        chunks=ChunkRoot(),
    )
    refused(joined(stream), [900], TruncatedError)
