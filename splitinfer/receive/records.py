"""Records from an untrusted source: Source -> Record, each verified before it is used; both sides."""

from __future__ import annotations

from splitinfer.handoff import Source
from splitinfer.receive.reading import read_exact
from splitinfer.rounds import Record
from splitinfer.sealing.records import PART_HEAD_BYTES, RecordOpener
from splitinfer.sealing.stream import TAG_BYTES

__all__ = ["read_record"]


def read_record(source: Source, opener: RecordOpener, *, asked: Record | None = None) -> Record:
    """Read one record; `asked` is the request that it must answer.

    Raises TruncatedError where the source ends first, and what `RecordOpener` raises; the session is over then.
    """
    name = asked.name if asked is not None else None
    while True:
        data = bytearray(PART_HEAD_BYTES)
        read_exact(source, memoryview(data))
        head = opener.head(bytes(data), asked=name)
        ciphertext = bytearray(head[6] + TAG_BYTES)
        read_exact(source, memoryview(ciphertext))
        record = opener.add(head, bytes(ciphertext))
        if record is not None:
            return record
