from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import merkle
from splitinfer.errors import AuthenticationError, LayoutMismatchError, LimitExceededError, SplitInferError
from splitinfer.receive.chunks import ChunkReader
from splitinfer.sealing.keys import Direction, derive_stream_keys
from splitinfer.sealing.manifest import manifest_region
from splitinfer.sealing.signing import signer
from splitinfer.sealing.stream import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    TAG_BYTES,
    TRAILER_BYTES,
    ChunkCipher,
    ChunkRoot,
    SealedStream,
    chunk_count,
)
from tests.support.device_cloud import Bytes, cut, joined

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
DIGEST = bytes([7]) * 32
TRANSFER_ID = bytes([9]) * 16
DIRECTIONS = list(Direction)


def cipher(direction: Direction, content_key: bytes = bytes([1]) * 32) -> ChunkCipher:
    keys = derive_stream_keys(content_key, direction=direction, manifest_digest=DIGEST, nonce=bytes(32))
    return ChunkCipher(keys, transfer_id=TRANSFER_ID, direction=direction)


def stream(
    pieces: Iterable[memoryview | bytes],
    data_bytes: int,
    *,
    chunk_bytes: int = 512,
    direction: Direction = Direction.REQUEST,
) -> SealedStream:
    return SealedStream(
        cipher=cipher(direction),
        direction=direction,
        chunk_bytes=chunk_bytes,
        data_bytes=data_bytes,
        manifest_digest=DIGEST,
        pieces=pieces,
        signer=signer(KEY),
        chunks=ChunkRoot(),
    )


def reader(data: bytes, *, chunk_bytes: int = 512, direction: Direction = Direction.REQUEST) -> ChunkReader:
    return ChunkReader(
        Bytes(data), cipher(direction), direction=direction, chunk_bytes=chunk_bytes, manifest_digest=DIGEST
    )


def opened(data: bytes, following_bytes: int, *, chunk_bytes: int, direction: Direction = Direction.REQUEST) -> bytes:
    chunks = reader(data, chunk_bytes=chunk_bytes, direction=direction)
    manifest = chunks.manifest()
    chunks.expect(following_bytes)
    block = chunks.read(following_bytes)
    chunks.finish(PUBLIC)
    return manifest + block


def edges(chunk_bytes: int) -> list[int]:
    return [0, 1, chunk_bytes - 69, chunk_bytes - 68, chunk_bytes - 67, chunk_bytes - 1]


@pytest.mark.parametrize("chunk_bytes", CHUNK_BYTES)
@pytest.mark.parametrize("edge", range(6))
def test_a_stream_of_any_length_comes_back(chunk_bytes: int, edge: int) -> None:
    for whole in (0, 1, 2) if chunk_bytes < 1 << 18 else (1,):
        data = os.urandom(whole * chunk_bytes + edges(chunk_bytes)[edge])
        region = manifest_region(b"{}", chunk_bytes=chunk_bytes)
        sealed = stream([region, data], len(region) + len(data), chunk_bytes=chunk_bytes)
        ciphertext = joined(sealed)
        assert len(ciphertext) == sealed.body_bytes == sealed.count * (chunk_bytes + TAG_BYTES)
        assert opened(ciphertext, len(data), chunk_bytes=chunk_bytes) == b"{}" + data


@given(
    data=st.binary(max_size=3000),
    sizes=st.lists(st.integers(0, 1500), max_size=12),
    chunk_bytes=st.sampled_from(CHUNK_BYTES[:2]),
    direction=st.sampled_from(DIRECTIONS),
)
@settings(deadline=None, max_examples=60)
def test_how_pieces_are_cut_does_not_show(
    data: bytes, sizes: list[int], chunk_bytes: int, direction: Direction
) -> None:
    plain = manifest_region(b"{}", chunk_bytes=chunk_bytes) + data
    whole = joined(stream([plain], len(plain), chunk_bytes=chunk_bytes, direction=direction))
    pieces = joined(stream(cut(plain, sizes), len(plain), chunk_bytes=chunk_bytes, direction=direction))
    assert pieces == whole
    assert opened(whole, len(data), chunk_bytes=chunk_bytes, direction=direction) == b"{}" + data


@given(
    announced=st.integers(0, 2500),
    actual=st.integers(0, 2500),
    sizes=st.lists(st.integers(0, 900), max_size=6),
)
@settings(deadline=None, max_examples=150)
def test_more_or_fewer_bytes_than_announced_never_make_a_stream(announced: int, actual: int, sizes: list[int]) -> None:
    sealed = stream(cut(bytes(actual), sizes), announced)
    if announced == actual:
        assert len(joined(sealed)) == sealed.body_bytes
        return
    chunks: list[bytes] = []
    with pytest.raises(LayoutMismatchError):
        chunks.extend(bytes(chunk) for chunk in sealed)
    assert len(chunks) < sealed.count, "the final chunk was sealed"


@pytest.mark.parametrize("chunk_bytes", CHUNK_BYTES)
@pytest.mark.parametrize("surplus", [-1, 1, -64, 64])
@pytest.mark.parametrize("edge", range(6))
def test_a_wrong_announcement_at_a_chunk_edge_is_refused(chunk_bytes: int, surplus: int, edge: int) -> None:
    data_bytes = chunk_bytes + edges(chunk_bytes)[edge]
    sealed = stream([bytes(data_bytes + surplus)], data_bytes, chunk_bytes=chunk_bytes)
    with pytest.raises(LayoutMismatchError):
        joined(sealed)


def test_a_stream_can_be_pulled_once_only() -> None:
    pieces = iter([bytes(512), bytes([1]) * 512])
    sealed = stream(pieces, 1024)
    first = bytes(next(iter(sealed)))
    again: list[bytes] = []
    with pytest.raises(SplitInferError):
        again.extend(bytes(chunk) for chunk in sealed)
    # Another plaintext under the same key and index would give away the authentication key of AES-GCM.
    assert [chunk for chunk in again if chunk != first] == []


def test_pieces_of_wider_items_are_sealed_as_their_bytes() -> None:
    numbers = memoryview(bytearray(os.urandom(1024))).cast("I")
    assert joined(stream([numbers], 1024)) == joined(stream([numbers.tobytes()], 1024))


def test_a_large_piece_is_not_copied_before_it_is_sealed() -> None:
    piece = bytearray(3 * 512)
    chunks = iter(stream([memoryview(piece)], len(piece)))
    next(chunks)
    piece[512:1024] = bytes([5]) * 512
    second = bytes(next(chunks))
    out = bytearray(512)
    cipher(Direction.REQUEST).open_into(1, memoryview(second), memoryview(out), final=False)
    assert out == bytes([5]) * 512


def test_chunks_are_counted_with_the_trailer() -> None:
    assert chunk_count(0, 512) == 1
    assert chunk_count(512 - TRAILER_BYTES, 512) == 1
    assert chunk_count(512 - TRAILER_BYTES + 1, 512) == 2
    assert chunk_count(512 * MAX_CHUNKS - TRAILER_BYTES, 512) == MAX_CHUNKS
    with pytest.raises(LimitExceededError):
        chunk_count(512 * MAX_CHUNKS - TRAILER_BYTES + 1, 512)


def test_a_stream_above_two_to_the_twenty_chunks_is_refused_before_its_first() -> None:
    sealed = stream([], 512 * MAX_CHUNKS)
    with pytest.raises(LimitExceededError):
        next(iter(sealed))


places = st.tuples(st.integers(0, 2) | st.integers(0, MAX_CHUNKS - 1), st.booleans(), st.sampled_from(DIRECTIONS))


@given(place=places, other=places)
@settings(deadline=None, max_examples=100)
def test_a_chunk_opens_in_its_own_place_only(
    place: tuple[int, bool, Direction], other: tuple[int, bool, Direction]
) -> None:
    plain, chunk = bytes(range(64)), bytearray(64 + TAG_BYTES)
    index, final, direction = place
    cipher(direction).seal_into(index, memoryview(plain), memoryview(chunk), final=final)
    assert opened_at(place, chunk) == plain
    if place != other:
        with pytest.raises(AuthenticationError):
            opened_at(other, chunk)


def opened_at(place: tuple[int, bool, Direction], chunk: bytearray) -> bytes:
    index, final, direction = place
    out = bytearray(len(chunk) - TAG_BYTES)
    cipher(direction).open_into(index, memoryview(chunk), memoryview(out), final=final)
    return bytes(out)


def test_a_chunk_of_another_transfer_does_not_open() -> None:
    keys = derive_stream_keys(bytes(32), direction=Direction.REQUEST, manifest_digest=DIGEST, nonce=bytes(32))
    chunk, out = bytearray(32 + TAG_BYTES), bytearray(32)
    ChunkCipher(keys, transfer_id=bytes(16), direction=Direction.REQUEST).seal_into(
        0, memoryview(bytes(32)), memoryview(chunk), final=False
    )
    other = ChunkCipher(keys, transfer_id=bytes(15) + b"\x01", direction=Direction.REQUEST)
    with pytest.raises(AuthenticationError):
        other.open_into(0, memoryview(chunk), memoryview(out), final=False)


def test_no_two_chunks_of_a_stream_share_a_nonce() -> None:
    zeros = joined(stream([bytes(64 * 512)], 64 * 512))
    chunks = [zeros[at : at + 512] for at in range(0, len(zeros), 512 + TAG_BYTES)]
    assert len(set(chunks)) == len(chunks), "equal plaintexts have equal ciphertexts"


def test_the_root_is_that_of_all_chunks_pulled() -> None:
    sealed = stream([bytes(2000)], 2000)
    data = joined(sealed)
    size = 512 + TAG_BYTES
    leaves = [merkle.leaf_hash(blake3(data[at : at + size]).digest()) for at in range(0, len(data), size)]
    assert sealed.root() == merkle.root_of(leaves)


def test_a_trailer_of_the_other_direction_is_refused() -> None:
    region = manifest_region(b"{}", chunk_bytes=512)
    wrong = SealedStream(
        cipher=cipher(Direction.REPLY),
        direction=Direction.REQUEST,
        chunk_bytes=512,
        data_bytes=len(region),
        manifest_digest=DIGEST,
        pieces=[region],
        signer=signer(KEY),
        chunks=ChunkRoot(),
    )
    data = joined(wrong)
    with pytest.raises(AuthenticationError):
        opened(data, 0, chunk_bytes=512, direction=Direction.REPLY)
