"""Bytes over a local stream socket as length-prefixed frames; between a process and its workers, on one machine."""

from __future__ import annotations

import socket
import struct

from splitinfer.errors import LimitExceededError, TransportError, TruncatedError

__all__ = ["receive_frame", "send_frame"]

_LENGTH = struct.Struct(">Q")


def send_frame(stream: socket.socket, data: bytes) -> None:
    """Send one frame; raises TransportError where the other end is gone."""
    try:
        # In one write: a length alone would wait for an acknowledgement that waits for more.
        stream.sendall(_LENGTH.pack(len(data)) + data)
    except OSError as error:
        raise TransportError("the other process closed the connection while it was written to") from error


def receive_frame(stream: socket.socket, *, limit_bytes: int) -> bytes | None:
    """Return the next frame, or None where the other end closed between frames.

    Raises LimitExceededError for a longer one, TruncatedError where the end comes inside, TransportError for a broken
    connection.
    """
    head = _received(stream, _LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise TruncatedError("the connection ended inside a frame's length")
    (length,) = _LENGTH.unpack(head)
    if length > limit_bytes:
        raise LimitExceededError(f"a frame of {length} bytes is above the limit of {limit_bytes}")
    data = _received(stream, length)
    if len(data) < length:
        raise TruncatedError(f"the connection ended after {len(data)} of a frame's {length} bytes")
    return bytes(data)


def _received(stream: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        try:
            count = stream.recv_into(view[done:])
        except OSError as error:
            raise TransportError("the connection to the other process broke") from error
        if not count:
            break
        done += count
    view.release()
    del data[done:]
    return data
