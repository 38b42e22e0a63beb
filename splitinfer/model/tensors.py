"""Reads safetensors headers and bytes without torch: a file -> its tensors' names, types, shapes, digests; both sides.

The format is 8 bytes of little-endian header length, a JSON header, then the data that the header's offsets tile.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from splitinfer.errors import UnsupportedModelError

__all__ = ["MAX_HEADER_BYTES", "TensorDigest", "tensor_digests"]

MAX_HEADER_BYTES = 100_000_000
_READ_BYTES = 1 << 20
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """One tensor: the header's own dtype word and shape, and the lower-case hex SHA-256 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def tensor_digests(path: Path) -> Iterator[TensorDigest]:
    """Yield every tensor of one file in offset order, reading at most 1 MiB at a time.

    Raises UnsupportedModelError where the header is malformed, too large, or its offsets do not tile the data.
    """
    with path.open("rb") as file:
        for entry in _entries(file, path.name):
            yield TensorDigest(entry.name, entry.dtype, entry.shape, _digest(file, entry.stop - entry.start, path.name))


def _entries(file: BinaryIO, name: str) -> list[_Entry]:
    size_bytes = os.fstat(file.fileno()).st_size
    header_bytes = int.from_bytes(file.read(8), "little")
    if size_bytes < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - 8):
        raise UnsupportedModelError(f"{name} is not a safetensors file: its header length is out of range")
    header = _parse(file.read(header_bytes), name)
    entries = [_entry(key, value, name) for key, value in header.items() if key != "__metadata__"]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_tiling(entries, size_bytes - 8 - header_bytes, name)
    return entries


def _parse(raw: bytes, name: str) -> dict[str, object]:
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{name} has a safetensors header that is not JSON with unique keys") from error
    if not isinstance(header, dict):
        raise UnsupportedModelError(f"{name} has a safetensors header that is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or any(type(item) is not int or item < 0 for item in value):
        return None
    return tuple(value)


def _entry(key: str, value: object, name: str) -> _Entry:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES or shape is None or offsets is None or len(offsets) != 2:
        raise UnsupportedModelError(f"{name} declares a tensor with an unknown dtype, shape or offsets")
    start, stop = offsets
    if stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise UnsupportedModelError(f"{name} declares a tensor whose offsets do not match its dtype and shape")
    return _Entry(key, dtype, shape, start, stop)


def _check_tiling(entries: list[_Entry], data_bytes: int, name: str) -> None:
    position = 0
    for entry in entries:
        if entry.start != position:
            raise UnsupportedModelError(f"{name} declares tensors that overlap or leave a hole")
        position = entry.stop
    if position != data_bytes:
        raise UnsupportedModelError(f"{name} holds {data_bytes} bytes of tensors, but its header declares {position}")


def _digest(file: BinaryIO, size_bytes: int, name: str) -> str:
    digest = hashlib.sha256()
    while size_bytes:
        data = file.read(min(size_bytes, _READ_BYTES))
        if not data:
            raise UnsupportedModelError(f"{name} ended while it was read")
        digest.update(data)
        size_bytes -= len(data)
    return digest.hexdigest()
