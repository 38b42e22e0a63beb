"""A session's records, sealed: Record -> parts on one connection, parts -> Record; both sides, one cipher a direction.

    part = counter, 8 bytes || step, 8 || layer, 4 || operation, 1 || number of the part, 4 || final, 1 || length, 4
           || AES-256-GCM of that many bytes, 16 bytes longer                          (all numbers big-endian)

    nonce = base nonce XOR (counter || number of the part)
    AAD   = transfer id || direction || the 30 bytes before the ciphertext

The counter is that of the request and goes up by one; a reply has its request's. A record's bytes fill parts of 1 MiB,
the last of which is shorter and final. Parts are leaves of the stream's ciphertext root.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from splitinfer.errors import AuthenticationError, LimitExceededError, ManifestError, ReplayError
from splitinfer.rounds import MAX_RECORD_BYTES, Record
from splitinfer.sealing.keys import Direction, StreamKeys
from splitinfer.sealing.stream import TAG_BYTES, ChunkRoot

__all__ = ["MAX_RECORDS", "PART_BYTES", "PART_HEAD_BYTES", "PartHead", "RecordOpener", "RecordSealer", "sealed_bytes"]

PART_BYTES = 1 << 20
MAX_RECORDS = 1 << 32
_HEAD = struct.Struct(">QQIBIBI")
PART_HEAD_BYTES = _HEAD.size
PartHead = tuple[int, int, int, int, int, int, int]
"""Counter, step, layer, operation, number of the part, final, length."""


def sealed_bytes(record_bytes: int) -> int:
    """Return the length on the wire of a record of this many bytes."""
    return record_bytes + max(1, -(-record_bytes // PART_BYTES)) * (PART_HEAD_BYTES + TAG_BYTES)


class _RecordCipher:
    """What both verbs share: the key, the nonce and the associated data of a part."""

    def __init__(self, keys: StreamKeys, *, transfer_id: bytes, direction: Direction) -> None:
        self._aead = AESGCM(keys.aead_key)
        self._base = int.from_bytes(keys.base_nonce, "big")
        self._aad = transfer_id + bytes([direction])

    def nonce(self, counter: int, part: int) -> bytes:
        return (self._base ^ (counter << 32 | part)).to_bytes(12, "big")

    def seal(self, head: PartHead, plain: memoryview) -> bytes:
        packed = _HEAD.pack(*head)
        return packed + self._aead.encrypt(self.nonce(head[0], head[4]), plain, self._aad + packed)

    def open(self, head: PartHead, ciphertext: memoryview | bytes) -> bytes:
        try:
            return self._aead.decrypt(self.nonce(head[0], head[4]), ciphertext, self._aad + _HEAD.pack(*head))
        except InvalidTag as error:
            raise AuthenticationError from error


class RecordSealer:
    """Seals records in order under one key; `chunks` is the tree that their parts are added to."""

    def __init__(self, keys: StreamKeys, *, transfer_id: bytes, direction: Direction, chunks: ChunkRoot) -> None:
        self._cipher = _RecordCipher(keys, transfer_id=transfer_id, direction=direction)
        self._chunks = chunks
        self._counter = 0

    def seal(self, record: Record) -> Iterator[bytes]:
        """Yield a record's parts; raises LimitExceededError for one too long, or after 2^32 under one key."""
        if self._counter >= MAX_RECORDS:
            raise LimitExceededError(f"a session has at most {MAX_RECORDS} records; open another one")
        if record.size_bytes > MAX_RECORD_BYTES:
            raise LimitExceededError(f"a record of {record.size_bytes} bytes is above the limit of {MAX_RECORD_BYTES}")
        counter, plain = self._counter, memoryview(record.to_bytes())
        self._counter += 1
        last = (len(plain) - 1) // PART_BYTES
        for part in range(last + 1):
            cut = plain[part * PART_BYTES :][:PART_BYTES]
            sealed = self._cipher.seal((counter, *record.name, part, int(part == last), len(cut)), cut)
            self._chunks.add(memoryview(sealed))
            yield sealed


class RecordOpener:
    """Opens records in order under one key; a part that is not the next one is refused before it is decrypted."""

    def __init__(self, keys: StreamKeys, *, transfer_id: bytes, direction: Direction, chunks: ChunkRoot) -> None:
        self._cipher = _RecordCipher(keys, transfer_id=transfer_id, direction=direction)
        self._chunks = chunks
        self._counter = 0
        self._name: tuple[int, int, int] | None = None
        self._plain = bytearray()
        self._part = 0

    def head(self, data: bytes, *, asked: tuple[int, int, int] | None = None) -> PartHead:
        """Take a part's head apart and check its place; `asked` is what a reply must repeat.

        Raises ReplayError for another counter, part, step, layer or operation than the next one, LimitExceededError for
        a record above its limit, ManifestError for another form.
        """
        head: PartHead = _HEAD.unpack(data)
        counter, part, final, length = head[0], head[4], head[5], head[6]
        if (counter, part) != (self._counter, self._part):
            raise ReplayError(
                f"part {part} of record {counter} came where part {self._part} of {self._counter} is next"
            )
        if head[1:4] != (self._name or asked or head[1:4]):
            raise ReplayError(f"a part is of step, layer, operation {head[1:4]}, another one than was asked for")
        if final > 1 or not 0 < length <= PART_BYTES or (not final and length != PART_BYTES):
            raise ManifestError("a part's head is malformed")
        if len(self._plain) + length > MAX_RECORD_BYTES:
            raise LimitExceededError(f"a record is above the limit of {MAX_RECORD_BYTES} bytes")
        return head

    def add(self, head: PartHead, ciphertext: bytes) -> Record | None:
        """Open a part whose head was checked; returns the record with its final part, None before.

        Raises AuthenticationError, and what `Record.from_bytes` does.
        """
        self._plain += self._cipher.open(head, ciphertext)
        self._chunks.add(memoryview(_HEAD.pack(*head) + ciphertext))
        if not head[5]:
            self._name, self._part = head[1:4], self._part + 1
            return None
        record = Record.from_bytes(bytes(self._plain))
        if record.name != head[1:4]:
            raise ManifestError("a record's parts and its contents name another step, layer or operation")
        self._name, self._part, self._counter = None, 0, self._counter + 1
        self._plain.clear()
        return record
