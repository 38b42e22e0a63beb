"""Clouds in this process that compute in rounds: honest ones, and ones whose half is watched or lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from splitinfer.cloud import CloudService
from splitinfer.cloud.rounds import Half
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.masking.cloud import MaskedCloud, MemoryMarks
from splitinfer.masking.fixed_point import fixed_matrix
from splitinfer.model.engine import Engine
from splitinfer.rounds import Record
from tests.support.memory_clouds import Paired, policy_of
from trust_models.policy import Policy

Change = Callable[["Watched", Record], Record]
"""(the half, a true reply) -> what is returned instead."""


@dataclass
class Watched:
    """A half that keeps what came and went; `change` lies about replies."""

    half: Any
    change: Change | None = None
    requests: list[Record] = field(default_factory=list)
    replies: list[Record] = field(default_factory=list)
    closed: int = 0

    def answer(self, record: Record) -> Record:
        self.requests.append(record)
        reply = self.half.answer(record)
        self.replies.append(reply)
        return reply if self.change is None else self.change(self, reply)

    def close(self) -> None:
        self.closed += 1

    def received(self) -> list[bytes]:
        return [blob for record in self.requests for blob in record.blobs]


@dataclass
class RoundsCloud:
    """A cloud of a pair that offers both halves, without a process of their own; `halves` are those that it made."""

    pair: Paired
    engine: Engine
    change: Change | None = None
    marks: MemoryMarks = field(default_factory=MemoryMarks)
    halves: list[Watched] = field(default_factory=list)

    def service(self) -> CloudService:
        return self.pair.service(self.engine, halves={"homomorphic": self._homomorphic, "masked": self._masked})

    @property
    def last(self) -> Watched:
        return self.halves[-1]

    def _homomorphic(self, _sender: bytes) -> Half:
        return self._watched(CloudHalf())

    def _masked(self, _sender: bytes) -> Half:
        fixed = {key: fixed_matrix(matrix) for key, matrix in self.engine.operations().items()}
        return self._watched(MaskedCloud(fixed, weights_sha256=self.engine.identity.weights_sha256, marks=self.marks))

    def _watched(self, half: Any) -> Half:
        self.halves.append(Watched(half, self.change))
        return self.halves[-1]


def homomorphic(**rules: object) -> Policy:
    return policy_of("homomorphic", homomorphic=rules)


MASKED = policy_of("masked")
