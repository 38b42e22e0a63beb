"""Frames come back as they were written, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.egress.files import OpenMode
from splitinfer.egress.records import framed, frames, parse_record, record_bytes
from splitinfer.errors import BrokenLogError
from tests.support.lossy_files import LossyDisk, LossyFiles

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=5)


def _read(data: bytes) -> list[bytes]:
    files = LossyFiles(LossyDisk())
    handle = files.open(Path("/home/log"), OpenMode.WRITE)
    files.write_at(handle, 0, data)
    return [frame.payload for frame in frames(files, handle, start=0, stop=len(data))]


@given(RECORDS)
@settings(deadline=None, max_examples=100)
def test_records_come_back_as_they_were_written(records: list[dict]) -> None:
    payloads = [record_bytes(record) for record in records]
    assert _read(b"".join(map(framed, payloads))) == payloads
    assert [parse_record(payload) for payload in payloads] == records


@given(RECORDS, st.data())
@settings(deadline=None, max_examples=100)
def test_only_an_incomplete_last_frame_is_left_out(records: list[dict], data: st.DataObject) -> None:
    payloads = [record_bytes(record) for record in records]
    whole = b"".join(map(framed, payloads[:-1]))
    last = framed(payloads[-1])
    kept = data.draw(st.integers(0, len(last) - 1))
    assert _read(whole + last[:kept]) == payloads[:-1]
    assert _read(whole + bytes(len(last))) == payloads[:-1]


@given(RECORDS, st.data())
@settings(deadline=None, max_examples=200)
def test_changed_frame_never_reads_as_another_record(records: list[dict], data: st.DataObject) -> None:
    payloads = [record_bytes(record) for record in records]
    log = b"".join(map(framed, payloads))
    at = data.draw(st.integers(0, len(log) - 1))
    changed = bytearray(log)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = _read(bytes(changed))
    except BrokenLogError:
        return
    # Only a zero byte in the last frame passes for a sector that was never written.
    assert found == payloads[:-1]


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_are_refused_or_left_out(data: bytes) -> None:
    try:
        assert _read(data) == []
    except BrokenLogError:
        return


def test_zeroed_header_before_another_record_is_refused() -> None:
    two = framed(record_bytes({"a": 1})) + framed(record_bytes({"b": 2}))
    with pytest.raises(BrokenLogError):
        _read(bytes(12) + two[12:])
