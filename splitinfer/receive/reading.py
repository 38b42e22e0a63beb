"""Exact, bounded reads from an untrusted source; both sides."""

from __future__ import annotations

from splitinfer.errors import LimitExceededError, TruncatedError
from splitinfer.handoff import Source

__all__ = ["MAX_HEAD_BYTES", "MAX_MANIFEST_BYTES", "read_exact", "read_head", "require_end"]

MAX_HEAD_BYTES = 16 * 1024
MAX_MANIFEST_BYTES = 1024 * 1024


def read_exact(source: Source, buffer: memoryview) -> None:
    """Fill the buffer; raises TruncatedError where the source ends first."""
    filled = 0
    while filled < len(buffer):
        count = source.readinto(buffer[filled:])
        if count <= 0:
            raise TruncatedError("the stream ended before its final chunk")
        filled += count


def read_head(source: Source) -> bytes:
    """Read a 4-byte length and that many bytes, at most 16 KiB (check 1)."""
    size = bytearray(4)
    read_exact(source, memoryview(size))
    length = int.from_bytes(size, "big")
    if length > MAX_HEAD_BYTES:
        raise LimitExceededError(f"the head declares {length} bytes, the limit is {MAX_HEAD_BYTES}")
    head = bytearray(length)
    read_exact(source, memoryview(head))
    return bytes(head)


def require_end(source: Source) -> None:
    """Refuse any byte after the final chunk (check 12)."""
    if source.readinto(memoryview(bytearray(1))):
        raise TruncatedError("the stream goes on after its final chunk")
