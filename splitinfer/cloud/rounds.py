"""A session of rounds on the recipient: opened request -> beginning, then a record down for each record up.

What computes is a *half*, `homomorphic` or `masking`, built for this session alone. Any fault, the half's too, ends the
session without another word: the door closes the connection, as at every end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from splitinfer.cloud.answer import Answer, Pieces
from splitinfer.handoff import Source
from splitinfer.receive.intake import OpenedRequest
from splitinfer.receive.records import read_record
from splitinfer.rounds import Operation, Record
from splitinfer.sealing.keys import Direction, StreamKeys, derive_record_keys
from splitinfer.sealing.manifest import ResponseManifest
from splitinfer.sealing.records import RecordOpener, RecordSealer

__all__ = ["Half", "MakeHalf", "Rounds"]


class Half(Protocol):
    """The cloud's half of one session."""

    def answer(self, record: Record) -> Record:
        """Answer one record; raises SplitInferError kinds, after which the session is over."""

    def close(self) -> None:
        """Drop what the session left; idempotent."""


MakeHalf = Callable[[bytes], Half]
"""Makes the half of a session with the device of this public key."""


class Rounds(Iterator[memoryview | bytes]):
    """A session's reply: its bytes come as records arrive; closing it ends the half."""

    def __init__(
        self, source: Source, opened: OpenedRequest, answer: Answer, half: Half, *, response: ResponseManifest
    ) -> None:
        self._half = half
        self._pieces = self._talk(source, opened, answer, response)

    def __next__(self) -> memoryview | bytes:
        """Return the next bytes; raises what ends the session."""
        try:
            return next(self._pieces)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session's half; idempotent."""
        self._half.close()

    def _talk(self, source: Source, opened: OpenedRequest, answer: Answer, response: ResponseManifest) -> Pieces:
        beginning = answer.beginning(response)
        nonces = bytes.fromhex(opened.head.stream_nonce), beginning.nonce
        transfer_id = answer.keys.transfer_id
        requests, replies = (_keys(answer, direction, nonces) for direction in Direction)
        opener = RecordOpener(
            requests, transfer_id=transfer_id, direction=Direction.REQUEST, chunks=opened.reader.chunks
        )
        sealer = RecordSealer(
            replies, transfer_id=transfer_id, direction=Direction.REPLY, chunks=beginning.stream.chunks
        )
        yield from beginning
        while (record := read_record(source, opener)).operation is not Operation.CLOSE:
            yield from sealer.seal(self._half.answer(record))
        self._half.close()
        answer.recount("received", opened.reader.chunks.count)
        answer.log("erased", 1)
        yield from sealer.seal(record.reply((answer.receipt(),)))


def _keys(answer: Answer, direction: Direction, nonces: tuple[bytes, bytes]) -> StreamKeys:
    keys = answer.keys
    return derive_record_keys(
        keys.content_key, direction=direction, manifest_digest=keys.manifest_digest, nonces=nonces
    )
