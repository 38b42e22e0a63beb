"""A session's records: what was sealed comes back; changed, cut, moved, repeated and oversized parts are refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import (
    AuthenticationError,
    LimitExceededError,
    ManifestError,
    ReplayError,
    SplitInferError,
    TruncatedError,
)
from splitinfer.receive.records import read_record
from splitinfer.rounds import Operation, Record
from splitinfer.sealing.keys import Direction, derive_record_keys, derive_stream_keys
from splitinfer.sealing.records import (
    PART_BYTES,
    PART_HEAD_BYTES,
    RecordOpener,
    RecordSealer,
    sealed_bytes,
)
from splitinfer.sealing.stream import ChunkRoot
from tests.support.device_cloud import Bytes

KEY, DIGEST, NONCES, TRANSFER = b"k" * 32, b"d" * 32, (b"a" * 32, b"b" * 32), b"t" * 16
RECORD = Record(3, 1, Operation.SCORES, (b"query",))


def keys(direction: Direction = Direction.REQUEST, nonces: tuple[bytes, bytes] = NONCES):
    return derive_record_keys(KEY, direction=direction, manifest_digest=DIGEST, nonces=nonces)


def sealer(direction: Direction = Direction.REQUEST) -> RecordSealer:
    return RecordSealer(keys(direction), transfer_id=TRANSFER, direction=direction, chunks=ChunkRoot())


def opener(direction: Direction = Direction.REQUEST, **other: bytes) -> RecordOpener:
    transfer = other.get("transfer", TRANSFER)
    return RecordOpener(keys(direction), transfer_id=transfer, direction=direction, chunks=ChunkRoot())


def sealed(*records: Record) -> list[bytes]:
    one = sealer()
    return [b"".join(one.seal(record)) for record in records]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.builds(
            Record,
            step=st.integers(0, 2**64 - 1),
            layer=st.integers(0, 2**32 - 1),
            operation=st.sampled_from(Operation),
            blobs=st.lists(st.binary(max_size=40), max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_records_come_back_in_order(records: list[Record]) -> None:
    source, one = Bytes(b"".join(sealed(*records)), (1, 7, 1000)), opener()
    assert [read_record(source, one) for _ in records] == records


def test_a_long_record_travels_in_parts_and_both_sides_have_one_root() -> None:
    record = Record(0, 0, Operation.TILE, (bytes(PART_BYTES), b"x" * 100))
    ours, theirs = ChunkRoot(), ChunkRoot()
    sealing = RecordSealer(keys(), transfer_id=TRANSFER, direction=Direction.REQUEST, chunks=ours)
    parts = list(sealing.seal(record))
    opening = RecordOpener(keys(), transfer_id=TRANSFER, direction=Direction.REQUEST, chunks=theirs)
    assert read_record(Bytes(b"".join(parts)), opening) == record
    assert len(parts) == ours.count == theirs.count == 2
    assert ours.root() == theirs.root()
    assert sum(map(len, parts)) == sealed_bytes(record.size_bytes)


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 19, 20, 24, 25, 26, 29, PART_HEAD_BYTES, -1])
def test_any_changed_byte_is_refused(at: int) -> None:
    data = bytearray(sealed(RECORD)[0])
    data[at] ^= 1
    with pytest.raises(SplitInferError):
        read_record(Bytes(bytes(data)), opener())


@pytest.mark.parametrize("cut", [1, PART_HEAD_BYTES - 1, PART_HEAD_BYTES, 60])
def test_a_cut_record_is_truncated(cut: int) -> None:
    with pytest.raises(TruncatedError):
        read_record(Bytes(sealed(RECORD)[0][:cut]), opener())


def test_a_repeated_record_is_a_replay() -> None:
    first, _ = sealed(RECORD, RECORD)
    source, one = Bytes(first + first), opener()
    read_record(source, one)
    with pytest.raises(ReplayError, match="part 0 of record 0 came where part 0 of 1 is next"):
        read_record(source, one)


def test_records_that_changed_places_are_a_replay() -> None:
    first, second = sealed(RECORD, RECORD)
    with pytest.raises(ReplayError):
        read_record(Bytes(second + first), opener())


def test_a_left_out_part_is_a_replay() -> None:
    parts = list(sealer().seal(Record(0, 0, Operation.TILE, (bytes(2 * PART_BYTES),))))
    with pytest.raises(ReplayError, match="part 2 of record 0 came where part 1"):
        read_record(Bytes(parts[0] + parts[2]), opener())


def test_the_reply_to_another_request_is_a_replay_before_it_is_opened() -> None:
    data = b"".join(sealer(Direction.REPLY).seal(RECORD))
    asked = Record(3, 2, Operation.SCORES)
    with pytest.raises(ReplayError, match="another one than was asked for"):
        read_record(Bytes(data), opener(Direction.REPLY), asked=asked)
    assert read_record(Bytes(data), opener(Direction.REPLY), asked=RECORD) == RECORD


@pytest.mark.parametrize("other", [opener(Direction.REPLY), opener(transfer=b"u" * 16)], ids=["direction", "transfer"])
def test_a_record_of_another_direction_or_transfer_is_not_authentic(other: RecordOpener) -> None:
    with pytest.raises(AuthenticationError):
        read_record(Bytes(sealed(RECORD)[0]), other)


@pytest.mark.parametrize(("final", "length"), [(0, 5), (2, 5), (1, 0), (1, PART_BYTES + 1)])
def test_a_malformed_head_is_refused_before_memory_is_taken(final: int, length: int) -> None:
    head = struct.pack(">QQIBIBI", 0, 3, 1, Operation.SCORES, 0, final, length)
    with pytest.raises(ManifestError):
        read_record(Bytes(head), opener())


def test_an_endless_record_is_refused_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinfer.sealing.records.MAX_RECORD_BYTES", PART_BYTES)
    with pytest.raises(LimitExceededError, match="above the limit"):
        list(sealer().seal(Record(0, 0, Operation.TILE, (bytes(PART_BYTES),))))
    one = opener()
    one._plain += bytes(PART_BYTES)
    with pytest.raises(LimitExceededError, match="above the limit"):
        read_record(Bytes(sealed(RECORD)[0]), one)


def test_streams_and_records_have_different_keys() -> None:
    stream = derive_stream_keys(KEY, direction=Direction.REQUEST, manifest_digest=DIGEST, nonce=NONCES[0])
    derived = [keys(), keys(Direction.REPLY), keys(nonces=(NONCES[0], NONCES[0])), stream]
    assert len({one.aead_key for one in derived}) == len({one.base_nonce for one in derived}) == 4
