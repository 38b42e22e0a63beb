"""Both halves of the homomorphic mode in one process, joined by records as bytes; and the plain reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.rounds import Operation, Record


@dataclass
class Loopback:
    """An exchange with a cloud half; keeps what crossed, and lets a test change a reply or fail."""

    cloud: CloudHalf = field(default_factory=CloudHalf)
    requests: list[Record] = field(default_factory=list)
    replies: list[Record] = field(default_factory=list)
    change: Callable[[Record], Record] | None = None

    def exchange(self, record: Record) -> Record:
        self.requests.append(Record.from_bytes(record.to_bytes()))
        reply = Record.from_bytes(self.cloud.answer(self.requests[-1]).to_bytes())
        self.replies.append(reply)
        return reply if self.change is None else self.change(reply)

    def received_by_cloud(self) -> list[bytes]:
        return [blob for record in self.requests for blob in record.blobs]

    def last(self, operation: Operation) -> Record:
        return next(record for record in reversed(self.replies) if record.operation is operation)


def attention(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Softmax attention in the clear: [heads, head_dim] over [tokens, kv_heads, head_dim]."""
    group = query.shape[0] // keys.shape[1]
    keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)
    scores = np.einsum("hd,nhd->hn", query, keys)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(axis=1, keepdims=True), values)
