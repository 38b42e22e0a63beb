"""Token frames: generated tokens as fixed-size frames, so that sizes show neither token nor answer length; both sides.

A frame is 512 bytes: kind, 2-byte payload length, payload, zeros. Frames after the end are padding, up to a bucket of
`max_new_tokens`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

from splitinfer.errors import LimitExceededError, ManifestError
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES

__all__ = ["FINISH_REASONS", "Frame", "FrameKind", "end_frame", "frame_count", "pad_frame", "parse_frame"]
__all__ += ["refusal_frame", "token_frame"]

FRAME_FLOOR = 16
FINISH_REASONS = ("length", "end_of_text", "stop")
_HEADER_BYTES = 3
# What the other side says ends up on a terminal.
_CODE = re.compile(r"[a-z_]{1,40}")


class FrameKind(IntEnum):
    """What a frame carries."""

    PAD = 0
    TOKENS = 1
    END = 2
    REFUSAL = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """A parsed frame: its kind and one of token ids, finish reason or refusal code."""

    kind: FrameKind
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    finish_reason: str = ""
    code: str = ""


def frame_count(max_new_tokens: int) -> int:
    """Return the frames of a reply: the next power of two from 16 upwards, and one for the end."""
    return max(FRAME_FLOOR, 1 << (max_new_tokens - 1).bit_length()) + 1


def token_frame(token_id: int) -> bytes:
    """Encode one token."""
    return _frame(FrameKind.TOKENS, token_id.to_bytes(4, "big"))


def end_frame(finish_reason: str) -> bytes:
    """Encode the end and why it came."""
    return _frame(FrameKind.END, bytes([FINISH_REASONS.index(finish_reason)]))


def refusal_frame(code: str) -> bytes:
    """Encode an error of the tree that ended the answer."""
    return _frame(FrameKind.REFUSAL, code.encode("ascii"))


def pad_frame() -> bytes:
    """Encode a frame that says nothing."""
    return _frame(FrameKind.PAD, b"")


def _frame(kind: FrameKind, payload: bytes) -> bytes:
    return (bytes([kind]) + len(payload).to_bytes(2, "big") + payload).ljust(FRAME_CHUNK_BYTES, b"\x00")


def parse_frame(data: bytes) -> Frame:
    """Parse one frame; raises ManifestError or LimitExceededError."""
    size = int.from_bytes(data[1:3], "big")
    if size > FRAME_CHUNK_BYTES - _HEADER_BYTES:
        raise LimitExceededError("a frame declares more than it holds")
    payload = data[_HEADER_BYTES : _HEADER_BYTES + size]
    if any(data[_HEADER_BYTES + size :]):
        raise ManifestError("a frame is not padded with zeros")
    try:
        return _parsed(FrameKind(data[0]), payload)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ManifestError("a frame is malformed") from error


def _parsed(kind: FrameKind, payload: bytes) -> Frame:
    if kind is FrameKind.TOKENS:
        if not payload or len(payload) % 4:
            raise ValueError
        ids = tuple(int.from_bytes(payload[i : i + 4], "big") for i in range(0, len(payload), 4))
        return Frame(kind, token_ids=ids)
    if kind is FrameKind.END:
        (reason,) = payload
        return Frame(kind, finish_reason=FINISH_REASONS[reason])
    if kind is FrameKind.REFUSAL:
        code = payload.decode("ascii")
        if not _CODE.fullmatch(code):
            raise ValueError
        return Frame(kind, code=code)
    if payload:
        raise ValueError
    return Frame(kind)
