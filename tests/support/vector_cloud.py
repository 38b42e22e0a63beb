"""The product's whole cloud around a frozen request: a model that is scripted, and sinks that are watched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from splitinfer import codec
from splitinfer.attestation.keyset import ReplicaKeys
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService, computing
from splitinfer.errors import SplitInferError, TransportError
from splitinfer.handoff import Numerics, Route
from splitinfer.model.embeddings import Rows, rows_from
from splitinfer.receive.reading import read_head
from splitinfer.receive.replies import OpenedReply, SentRequest, open_reply
from splitinfer.receive.tokens import RowSink, TokenSink
from splitinfer.sealing.heads import RequestHead
from splitinfer.sealing.stream import TAG_BYTES
from splitinfer.sealing.transfer import TransferKeys
from tests.support.growing import grown
from tests.support.vectors import (
    BytesSource,
    LostSource,
    Vector,
    VectorRecipient,
    WatchedSink,
    context,
    expectations,
    find_vector,
    receive_request,
    replica_keys,
)

_ROUTES = {"prefill": Route.PREFILL, "decode": Route.DECODE}


class ScriptedEngine:
    """Has what `CloudService` asks of an engine; a refused request must not have reached its calls."""

    def __init__(self, layout: str) -> None:
        expected = expectations(layout)
        self.identity, self.layout = expected.model, expected.layout
        self.max_positions, self.vocabulary = expected.max_positions, expected.vocabulary
        self.numerics = Numerics("2.13.0", "cpu", "float32", "sdpa", 1)
        self.calls: list[str] = []
        self.arguments: list[object] = []
        self.seen_rows = b""
        self.row_bytes = context()["row_bytes"]

    def require_only_embeddings(self) -> None:
        return

    def rows_from(self, data: bytes) -> Rows:
        return rows_from(OnlyEmbedding(self.row_bytes // 4), data)  # type: ignore[arg-type]

    def start_prefill(
        self,
        token_ids: tuple[int, ...],
        *,
        steps: list[tuple[int, int]],
        padded_tokens: int,
        rows: Rows | None = None,
        **_: object,
    ) -> GrowingCache:
        if rows is not None:
            self.seen_rows = rows.astype("<f4").tobytes()
        self._note("start_prefill", tuple(token_ids), list(steps), padded_tokens)
        honest = find_vector("0000-honest-decode-request")
        snapshot = receive_request(honest, VectorRecipient(honest), []).payload
        assert isinstance(snapshot, CacheSnapshot)
        return grown(snapshot)

    def decode(self, snapshot: CacheSnapshot, *, last_token: int, params: object) -> ScriptedDecoding:
        self._note("decode", snapshot.true_tokens, last_token, params)
        return ScriptedDecoding()

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append(name)
        self.arguments.append(arguments)


class OnlyEmbedding:
    """A model of which there is an input embedding and nothing else."""

    def __init__(self, width: int) -> None:
        self.weight = torch.zeros(1, width)

    def get_input_embeddings(self) -> OnlyEmbedding:
        return self


class ScriptedDecoding(Iterator[tuple[int, str]]):
    """Yields the answer of the vectors."""

    finish_reason = "end_of_text"

    def __init__(self) -> None:
        self._rest = iter(context()["answer"])

    def __next__(self) -> tuple[int, str]:
        return next(self._rest), ""

    def close(self) -> None:
        return


class OneReplica:
    """A replica with the keyset of the vectors and no other."""

    def __init__(self) -> None:
        self._keys = replica_keys()

    def find(self, digest_hex: str) -> ReplicaKeys | None:
        return self._keys if digest_hex == self._keys.digest.hex() else None

    def reply(self, nonce: bytes) -> bytes:
        return nonce


class VectorCloud:
    """A `CloudService` that remembers what a vector says it does."""

    def __init__(self, vector: Vector) -> None:
        self.engine = ScriptedEngine(vector.says["layout"])
        self._now, self._random = 0, b""
        keys = [bytes.fromhex(key) for key in context()["allowed_devices"]]
        engine: Any = self.engine
        replica: Any = OneReplica()
        self._service = CloudService(
            engine, replica, allowed=lambda: keys, clock=lambda: self._now, randomness=self._randomness
        )
        for nonce, issued_at in vector.says["nonces"].items():
            self._now, self._random = issued_at, bytes.fromhex(nonce)
            self._service.handle(Route.KEYSET, BytesSource(b""))
        self._now = vector.says["now"]

    def _randomness(self, size: int) -> bytes:
        return self._random.ljust(size, b"\x00")[:size]

    def reply(self, vector: Vector) -> bytes:
        """Return the whole reply, or raise what the cloud raises."""
        routes = {"state.bin": Route.STATE, "resume.bin": Route.RESUME}
        route = routes.get(vector.says["file"]) or _ROUTES[vector.says["route"]]
        answer = self._service.handle(route, BytesSource(vector.data))
        data = b"".join(bytes(piece) for piece in answer.body)
        assert len(data) == answer.body_bytes
        return data

    def lose(self, vector: Vector, *, came: int) -> None:
        """Read a request whose connection is lost once so many of its chunks had come."""
        head = read_head(BytesSource(vector.data))
        chunk_bytes = RequestHead.model_validate_json(head).manifest.chunk_bytes
        data = vector.data[: 4 + len(head) + came * (chunk_bytes + TAG_BYTES)]
        with pytest.raises(TransportError):
            self._service.handle(_ROUTES[vector.says["route"]], LostSource(data))


def open_answer(vector: Vector, data: bytes) -> OpenedReply:
    """Open what the cloud answered to a vector, as its sender."""
    head = RequestHead.model_validate_json(read_head(BytesSource(vector.data)))
    transfer_id, content_key = bytes.fromhex(head.manifest.transfer_id), bytes.fromhex(vector.says["content_key"])
    keys = TransferKeys(transfer_id, content_key, head.manifest.digest)
    sealed = vector.says.get("sealed_manifest_sha256", "0" * 64)
    receipt_key, tokens = bytes.fromhex(context()["receipt_public_key"]), len(context()["token_ids"])
    sent = SentRequest(keys, sealed, receipt_key, tokens, vector.says.get("base_tokens", 0))
    return open_reply(BytesSource(data), sent, expectations(vector.says["layout"]))


def sealed_refusal(vector: Vector, data: bytes) -> SplitInferError:
    """Verify a sealed refusal to its end and return the error that it names."""
    reply = open_answer(vector, data)
    assert reply.manifest.kind == "refusal"
    return reply.refuse()


def watch_sinks(monkeypatch: pytest.MonkeyPatch) -> list[WatchedSink]:
    """Let the cloud make watched sinks, and return the list that they are put into."""
    sinks: list[WatchedSink] = []
    make_tokens, make_rows, make_cache = TokenSink, RowSink, codec.sink

    def tokens(**counts: Any) -> WatchedSink:
        sinks.append(WatchedSink(make_tokens(**counts)))
        return sinks[-1]

    def rows(**counts: Any) -> WatchedSink:
        sinks.append(WatchedSink(make_rows(**counts)))
        return sinks[-1]

    def cache(*layout: Any, **counts: Any) -> WatchedSink:
        sinks.append(WatchedSink(make_cache(*layout, **counts)))
        return sinks[-1]

    monkeypatch.setattr(computing, "TokenSink", tokens)
    monkeypatch.setattr(computing, "RowSink", rows)
    monkeypatch.setattr(codec, "sink", cache)
    return sinks
