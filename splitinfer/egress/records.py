"""Records and their frames in the log file: mapping to canonical JSON to framed bytes and back; device side.

A frame is three 32-bit big-endian numbers (length of the payload, CRC-32 of the payload, CRC-32 of the first eight
bytes), then the payload: one record as canonical JSON (RFC 8785), which is also the leaf of the tree. The header's own
checksum tells a changed length (corruption) from a record that a crash left incomplete.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from splitinfer.egress.files import FileLayer
from splitinfer.errors import AuditLogError, BrokenLogError

__all__ = [
    "HEADER_BYTES",
    "MAX_RECORD_BYTES",
    "Frame",
    "Record",
    "checked",
    "framed",
    "frames",
    "parse_record",
    "record_bytes",
]

Record = Mapping[str, object]

MAX_RECORD_BYTES = 64 * 1024
MAX_DEPTH = 16
_SECTOR_BYTES = 512
_HEADER = struct.Struct(">III")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete frame: its payload, and the offset of the byte after it."""

    payload: bytes
    end: int


def checked(record: Record, *, reserved: frozenset[str]) -> dict[str, object]:
    """Return the record as a dict; raises AuditLogError for a name in `reserved` or a value that a log cannot hold."""
    taken = sorted(reserved & set(record))
    if taken:
        raise AuditLogError(f"the log itself writes the fields {', '.join(taken)}; leave them out of the record")
    for value in record.values():
        _check_value(value, MAX_DEPTH)
    return dict(record)


def _check_value(value: object, depth: int) -> None:
    if depth == 0:
        raise AuditLogError(f"a record may be nested {MAX_DEPTH} deep at most")
    if isinstance(value, dict):
        for inner in value.values():
            _check_value(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, depth - 1)
    elif value is not None and not isinstance(value, str | int):
        kind = type(value).__name__
        raise AuditLogError(f"a record holds str, int, bool, None, list and dict only, not {kind}")


def record_bytes(record: dict[str, Any]) -> bytes:
    """Return the canonical JSON of a record (RFC 8785); raises AuditLogError where it has none or is too long."""
    try:
        payload = rfc8785.dumps(record)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        # The cause would quote the value, and a log error never carries what was to be logged.
        raise AuditLogError("a record has text keys, valid Unicode and integers within 2^53 only") from None
    if len(payload) > MAX_RECORD_BYTES:
        raise AuditLogError(f"a record may have {MAX_RECORD_BYTES} bytes at most, not {len(payload)}")
    return payload


def parse_record(payload: bytes) -> dict[str, Any]:
    """Read one canonical record; raises BrokenLogError where the bytes are anything else."""
    try:
        record = json.loads(payload)
        is_canonical = isinstance(record, dict) and rfc8785.dumps(record) == payload
    except (ValueError, RecursionError):
        is_canonical = False
    if not is_canonical:
        raise BrokenLogError("a record of the audit log is not canonical JSON")
    return record  # type: ignore[no-any-return]


def framed(payload: bytes) -> bytes:
    """Return the frame of one payload."""
    head = struct.pack(">II", len(payload), zlib.crc32(payload))
    return head + struct.pack(">I", zlib.crc32(head)) + payload


def frames(files: FileLayer, handle: int, *, start: int, stop: int) -> Iterator[Frame]:
    """Yield the complete frames between two offsets; ends early where an incomplete last one follows.

    Raises BrokenLogError where the bytes are neither: complete frames, then at most one that a crash cut short.
    """
    while start < stop:
        frame = _frame_at(files, handle, start, stop)
        if frame is None:
            return
        yield frame
        start = frame.end


def _frame_at(files: FileLayer, handle: int, start: int, stop: int) -> Frame | None:
    header = files.read_at(handle, start, min(HEADER_BYTES, stop - start))
    if len(header) < HEADER_BYTES:
        return None
    length, payload_crc, header_crc = _HEADER.unpack(header)
    if header_crc != zlib.crc32(header[:8]) or length > MAX_RECORD_BYTES:
        _check_never_written(files, handle, start, stop)
        return None
    end = start + HEADER_BYTES + length
    if end > stop:
        return None
    payload = files.read_at(handle, start + HEADER_BYTES, length)
    if payload_crc == zlib.crc32(payload):
        return Frame(payload=payload, end=end)
    # Canonical JSON has no zero byte: one shows pages that never reached the disk, in the last record only.
    if end == stop and b"\x00" in payload:
        return None
    raise BrokenLogError(f"the audit log's record at byte {start} does not match its checksum")


def _check_never_written(files: FileLayer, handle: int, start: int, stop: int) -> None:
    """Check that the rest is one record of which a sector never reached the disk, and so reads as zeros."""
    count = stop - start
    if count <= HEADER_BYTES + MAX_RECORD_BYTES:
        data = files.read_at(handle, start, count)
        first_cut = _SECTOR_BYTES - start % _SECTOR_BYTES
        sectors = [data[:first_cut], *(data[at : at + _SECTOR_BYTES] for at in range(first_cut, count, _SECTOR_BYTES))]
        # No whole frame has four zero bytes in a row at a sector's edge: neither its length nor JSON is zero.
        if any(len(sector) >= 4 and not any(sector) for sector in sectors):
            return
    raise BrokenLogError(f"the audit log's record at byte {start} has a damaged header")
