"""One round of a session that computes together: a Record up, a Record down; both sides, bytes only.

`homomorphic` and `masking` are two halves each, joined by nothing but `exchange(record) -> record`.

    record = step, 8 bytes || layer, 4 || operation, 1 || number of blobs, 4
             || for every blob its length, 4, and its bytes                       (all numbers big-endian)

Sealing, order and the counter are the session's; here a record is put together, taken apart and matched with its reply,
which repeats step, layer and operation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from splitinfer.errors import LimitExceededError, ManifestError, ReplayError, TruncatedError

__all__ = ["MAX_RECORD_BYTES", "Channel", "Exchange", "Operation", "Record", "Traffic", "require_reply"]

MAX_RECORD_BYTES = 1 << 28
_HEAD = struct.Struct(">QIBI")
_LENGTH = struct.Struct(">I")


class Operation(IntEnum):
    """What a record asks for; the closed table of both sides. CLOSE is the session's own and reaches no half."""

    CLOSE = 0
    OPEN = 1
    TILE = 2
    PUBLIC_TILE = 3
    SCORES = 4
    OUTPUTS = 5
    QKV = 6
    O = 7  # noqa: E741 - the projection's own name
    GATE_UP = 8
    DOWN = 9
    HEAD = 10


# The order of one layer's operations; what does not come later than the last one begins the next step.
_ORDER = {
    Operation.OPEN: 0,
    Operation.QKV: 1,
    Operation.SCORES: 2,
    Operation.OUTPUTS: 3,
    Operation.TILE: 4,
    Operation.PUBLIC_TILE: 4,
    Operation.O: 5,
    Operation.GATE_UP: 6,
    Operation.DOWN: 7,
    Operation.HEAD: 8,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One message; `blobs` are ciphertexts, masked numbers, public keys or public numbers."""

    step: int
    layer: int
    operation: Operation
    blobs: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def name(self) -> tuple[int, int, int]:
        """Return step, layer and operation, which a reply repeats."""
        return self.step, self.layer, int(self.operation)

    @property
    def size_bytes(self) -> int:
        """Return the length of `to_bytes()`."""
        return _HEAD.size + sum(_LENGTH.size + len(blob) for blob in self.blobs)

    def to_bytes(self) -> bytes:
        """Return the record's bytes."""
        head = _HEAD.pack(self.step, self.layer, self.operation, len(self.blobs))
        return b"".join([head, *(part for blob in self.blobs for part in (_LENGTH.pack(len(blob)), blob))])

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Take a record apart; raises LimitExceededError, TruncatedError, or ManifestError for an unknown operation."""
        if len(data) > MAX_RECORD_BYTES:
            raise LimitExceededError(f"a record of {len(data)} bytes is above the limit of {MAX_RECORD_BYTES}")
        if len(data) < _HEAD.size:
            raise TruncatedError(f"a record of {len(data)} bytes ends inside its head of {_HEAD.size}")
        step, layer, operation, count = _HEAD.unpack_from(data)
        if operation not in Operation.__members__.values():
            raise ManifestError(f"operation {operation} is not in the table; both sides need the same version")
        return cls(step, layer, Operation(operation), _blobs(data, count))

    def reply(self, blobs: tuple[bytes, ...] = ()) -> Record:
        """Return the reply to this record."""
        return Record(self.step, self.layer, self.operation, blobs)


Exchange = Callable[[Record], Record]
"""Sends a record and returns the cloud's reply; raises TransportError where there is none."""


def _blobs(data: bytes, count: int) -> tuple[bytes, ...]:
    blobs: list[bytes] = []
    at = _HEAD.size
    for _ in range(count):
        if at + _LENGTH.size > len(data):
            raise TruncatedError(f"a record ends before blob {len(blobs)} of {count}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise TruncatedError(f"a record ends inside blob {len(blobs)} of {count}")
        blobs.append(data[at : at + length])
        at += length
    if at != len(data):
        raise TruncatedError(f"a record goes on for {len(data) - at} bytes after its last blob")
    return tuple(blobs)


def require_reply(request: Record, reply: Record, *, blobs: int) -> tuple[bytes, ...]:
    """Return the reply's blobs; raises ReplayError for another request's reply, TruncatedError for another count."""
    if reply.name != request.name:
        raise ReplayError(f"the reply is to step, layer, operation {reply.name}, but {request.name} was asked")
    if len(reply.blobs) != blobs:
        raise TruncatedError(f"the reply has {len(reply.blobs)} blobs, expected {blobs}")
    return reply.blobs


# --- the device's end -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was sent and received so far: bytes of records, and rounds."""

    sent_bytes: int = 0
    received_bytes: int = 0
    rounds: int = 0

    def plus(self, request: Record, reply: Record) -> Traffic:
        """Return it with one more round."""
        sent, received = request.size_bytes, reply.size_bytes
        return Traffic(self.sent_bytes + sent, self.received_bytes + received, self.rounds + 1)

    def since(self, earlier: Traffic) -> Traffic:
        """Return what was added since then."""
        sent, received = self.sent_bytes - earlier.sent_bytes, self.received_bytes - earlier.received_bytes
        return Traffic(sent, received, self.rounds - earlier.rounds)


class Channel:
    """Numbers the steps, so that no two requests have one step, layer and operation; counts what crosses."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._last = (-1, -1)
        self.step = 0
        self.traffic = Traffic()

    def starts_step(self, operation: Operation, *, layer: int) -> bool:
        """Tell whether asking this next begins another step."""
        return (layer, _ORDER[operation]) <= self._last

    def ask(
        self, operation: Operation, blobs: tuple[bytes, ...], *, layer: int = 0, expected: int
    ) -> tuple[bytes, ...]:
        """Send one record and return the `expected` blobs of its reply; raises as `require_reply` and the exchange."""
        self.step += self.starts_step(operation, layer=layer)
        self._last = (layer, _ORDER[operation])
        request = Record(self.step, layer, operation, blobs)
        reply = self._exchange(request)
        self.traffic = self.traffic.plus(request, reply)
        return require_reply(request, reply, blobs=expected)
