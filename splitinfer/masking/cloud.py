"""The cloud half: masked numbers in, products mod 2^64 out; records of bytes, no torch, no secret.

It remembers of each pool the highest mask number that it saw, answers none twice, and tells the device at the opening.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from splitinfer.errors import LayoutMismatchError, ManifestError, ModelMismatchError, ReplayError
from splitinfer.masking.fixed_point import FixedMatrix
from splitinfer.masking.layout import MatrixKey
from splitinfer.masking.ring import from_mask_bytes, masked_product, to_word_bytes
from splitinfer.rounds import Operation, Record

__all__ = ["MaskedCloud", "MemoryMarks", "SeenMarks"]

_MAX_OPENING_BYTES = 1024


class SeenMarks(Protocol):
    """How many masks of each pool were seen; kept as durably as the operator likes."""

    def seen(self, pool_id: str) -> int:
        """Return one more than the highest mask number seen; 0 for an unknown pool."""

    def raise_to(self, pool_id: str, mark: int) -> None:
        """Remember that masks below `mark` were seen."""


class MemoryMarks:
    """Marks that live as long as the process."""

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}

    def seen(self, pool_id: str) -> int:
        """Return one more than the highest mask number seen; 0 for an unknown pool."""
        return self._marks.get(pool_id, 0)

    def raise_to(self, pool_id: str, mark: int) -> None:
        """Remember that masks below `mark` were seen."""
        self._marks[pool_id] = max(mark, self.seen(pool_id))


class MaskedCloud:
    """One session's cloud half over the model's matrices in fixed point."""

    def __init__(self, matrices: Mapping[MatrixKey, FixedMatrix], *, weights_sha256: str, marks: SeenMarks) -> None:
        self._matrices = matrices
        self._weights_sha256 = weights_sha256
        self._marks = marks
        self._pool_id: str | None = None
        self._number = -1
        self._answered: set[MatrixKey] = set()

    def answer(self, record: Record) -> Record:
        """Answer one record; raises a VerificationError or ModelMismatchError, after which the session is over."""
        if record.operation is Operation.OPEN:
            return record.reply((self._open(record).to_bytes(8, "big"),))
        if self._pool_id is None:
            raise ManifestError("the session was not opened; its first record must be the opening")
        matrix = self._matrices.get((record.layer, record.operation))
        if matrix is None:
            raise LayoutMismatchError(f"layer {record.layer} has no {record.operation.name.lower()} matrix here")
        if len(record.blobs) != 2 or len(record.blobs[0]) != 8:
            raise LayoutMismatchError("a record has other parts than a mask's number and masked numbers")
        self._require_fresh(record, self._pool_id)
        masked = from_mask_bytes(record.blobs[1], count=matrix.integers.shape[1])
        return record.reply((to_word_bytes(masked_product(matrix.integers, masked)),))

    def _open(self, record: Record) -> int:
        if self._pool_id is not None:
            raise ReplayError("the session is open already")
        stated = _stated(record)
        if stated["weights_sha256"] != self._weights_sha256:
            raise ModelMismatchError("the mask pool was made for other weights; prepare a pool for this model")
        self._pool_id = stated["pool_id"]
        return self._marks.seen(self._pool_id)

    def _require_fresh(self, record: Record, pool_id: str) -> None:
        """Refuse a mask that was seen in another session, or twice with one matrix."""
        number, key = int.from_bytes(record.blobs[0], "big"), (record.layer, record.operation)
        if number != self._number:
            if number < self._marks.seen(pool_id):
                raise ReplayError("a one-time mask was used before")
            self._marks.raise_to(pool_id, number + 1)
            self._number, self._answered = number, set()
        if key in self._answered:
            raise ReplayError("a one-time mask was used twice")
        self._answered.add(key)


def _stated(record: Record) -> dict[str, str]:
    try:
        if len(record.blobs) != 1 or len(record.blobs[0]) > _MAX_OPENING_BYTES:
            raise ValueError
        stated = json.loads(record.blobs[0])
        if set(stated) != {"version", "pool_id", "weights_sha256"} or stated["version"] != 1:
            raise ValueError
        if not all(isinstance(stated[name], str) for name in ("pool_id", "weights_sha256")):
            raise ValueError
    except (ValueError, TypeError):
        raise ManifestError("the session's opening is malformed or of another version") from None
    return {name: stated[name] for name in ("pool_id", "weights_sha256")}
