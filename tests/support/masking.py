"""A small model's matrices, a pool of masks for them, and both halves joined by records as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from splitinfer.masking.cloud import MaskedCloud, MemoryMarks
from splitinfer.masking.fixed_point import FixedMatrix, fixed_matrix
from splitinfer.masking.layout import MatrixKey
from splitinfer.masking.pool import MaskPool
from splitinfer.masking.prepare import prepare
from splitinfer.rounds import Operation, Record

WEIGHTS_SHA256 = "ab" * 32


def matrices() -> dict[MatrixKey, FixedMatrix]:
    random = np.random.default_rng(5)
    shapes = {(0, Operation.QKV): (20, 12), (0, Operation.O): (12, 8), (1, Operation.QKV): (20, 12)}
    return {key: fixed_matrix(random.normal(size=shape)) for key, shape in shapes.items()}


def pool(folder: Path, *, tokens: int = 5) -> MaskPool:
    made = MaskPool.create(
        folder / "pool", matrices(), anchors=folder / "anchors", weights_sha256=WEIGHTS_SHA256, randomness=os.urandom
    )
    prepare(made, matrices(), tokens=tokens, limit_bytes=1 << 20)
    return made


def reopened(folder: Path) -> MaskPool:
    return MaskPool(folder / "pool", anchors=folder / "anchors")


@dataclass
class MaskedLoopback:
    """An exchange with a masked cloud half; keeps what crossed, and lets a test change a reply."""

    marks: MemoryMarks = field(default_factory=MemoryMarks)
    change: Callable[[Record], Record] | None = None
    requests: list[Record] = field(default_factory=list)
    replies: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cloud = MaskedCloud(matrices(), weights_sha256=WEIGHTS_SHA256, marks=self.marks)

    def exchange(self, record: Record) -> Record:
        self.requests.append(Record.from_bytes(record.to_bytes()))
        reply = Record.from_bytes(self.cloud.answer(self.requests[-1]).to_bytes())
        self.replies.append(reply)
        return reply if self.change is None else self.change(reply)
