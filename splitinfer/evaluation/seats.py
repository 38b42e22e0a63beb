"""Adversaries at their seats: the product's own path with somebody watching -> what each of them saw.

Evaluation. `CuriousCloud` is the recipient's own service, which keeps whatever it opens; `WatchedCloud` stands at the
door of any `Cloud` and notes sizes and times, as an observer of the network does, reading nothing. Neither changes what
the device does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService
from splitinfer.cloud.answer import Answer
from splitinfer.cloud.rounds import Half, MakeHalf
from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.traffic import Message, Transcript
from splitinfer.handoff import Cloud, CloudReply, Route, Source
from splitinfer.model.embeddings import Rows
from splitinfer.model.engine import Decoding, Engine
from splitinfer.receive.intake import OpenedRequest
from splitinfer.rounds import Operation, Record

__all__ = ["CuriousCloud", "Handed", "WatchedCloud"]

_WITHOUT_CONTENTS = (Route.KEYSET, Route.STATE, Route.RESUME)
_PROTECTED = {
    "homomorphic": "ciphertexts, which it cannot read",
    "masked": "one-time-masked numbers, which it cannot read",
}
# What is no secret in either mode: nothing of it is private text.
_RECORD_KINDS = {
    Operation.OPEN: "public keys and parameters",
    Operation.PUBLIC_TILE: "public text's cache",
}


@dataclass(slots=True)
class Handed:
    """What a recipient opened in one run: ids or rows to prefill, a cache to decode from, the answer that it decoded.

    `calls` counts the calls that carried contents, `read` those whose contents stand here, `unread` names the others'.
    """

    token_ids: tuple[int, ...] = field(default=(), repr=False)
    rows: Rows | None = field(default=None, repr=False)
    snapshot: CacheSnapshot | None = field(default=None, repr=False)
    last_token: int | None = field(default=None, repr=False)
    decoding: Decoding | None = field(default=None, repr=False)
    calls: int = 0
    read: int = 0
    unread: str = "nothing"
    counted_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def answered(self) -> tuple[int, ...]:
        """Return the ids of the answer, where the recipient decoded it."""
        return () if self.decoding is None else self.decoding.token_ids

    def keep(self, payload: object, *, last_token: int | None) -> None:
        """Keep a copy of what was opened; a kind that this seat cannot read stays unread."""
        if isinstance(payload, CacheSnapshot):
            # The original is wiped when its reply is over.
            layers = tuple({name: tensor.clone() for name, tensor in layer.items()} for layer in payload.layers)
            self.snapshot, self.last_token = replace(payload, layers=layers), last_token
        elif isinstance(payload, np.ndarray):
            self.rows = payload.copy()
        elif isinstance(payload, tuple):
            self.token_ids = payload
        elif payload is not None:
            self.unread = type(payload).__name__
            return
        self.read += 1

    def keep_count(self, kind: str, size_bytes: int) -> None:
        """Count contents that hold no private text, or keep it from the recipient by design, as ciphertexts do.

        `kind` says in words what they are; a seat calls this where it knows that, and never for what it merely does
        not understand.
        """
        self.counted_bytes[kind] = self.counted_bytes.get(kind, 0) + size_bytes

    def require_complete(self) -> None:
        """Refuse to report on calls whose contents were not read: nothing seen would look like nothing leaked.

        Raises UsageError.
        """
        if self.calls != self.read:
            raise UsageError(
                f"{self.calls} calls carried contents to the recipient, whose seat reads {self.read} of them and not "
                f"{self.unread}; what this policy gives away cannot be told here"
            )


class CuriousCloud(CloudService):
    """The recipient's service, run by somebody who keeps what is opened and what is decoded."""

    def __init__(self, engine: Engine, *given: Any, halves: Mapping[str, MakeHalf] | None = None, **asked: Any) -> None:
        watched = {name: self._watching(name, make) for name, make in (halves or {}).items()}
        super().__init__(cast(Engine, _Heard(engine, self)), *given, halves=watched, **asked)
        self._engine = engine
        self.handed = Handed()

    def forget(self) -> None:
        """Begin a new run."""
        self.handed = Handed()

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Answer one call as the service does."""
        self.handed.calls += route not in _WITHOUT_CONTENTS
        return super().handle(route, body)

    def _watching(self, protection: str, make: MakeHalf) -> MakeHalf:
        def watched(sender: bytes) -> Half:
            self.handed.read += 1
            return _WatchedHalf(make(sender), protection, self.handed)

        return watched

    def _transfer(self, opened: OpenedRequest, answer: Answer, route: Route) -> CloudReply:
        return super()._transfer(cast(OpenedRequest, _Read(opened, self.handed, self._engine)), answer, route)


class _Heard:
    """An engine whose answers somebody hears; all else is the engine's own."""

    def __init__(self, engine: Engine, cloud: CuriousCloud) -> None:
        self._engine, self._cloud = engine, cloud

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, snapshot: CacheSnapshot, **asked: Any) -> Decoding:
        decoding = self._cloud.handed.decoding = self._engine.decode(snapshot, **asked)
        return decoding


class _Read:
    """A request whose contents somebody keeps once they are verified; all else is the request's own."""

    def __init__(self, opened: OpenedRequest, handed: Handed, engine: Engine) -> None:
        self._opened, self._handed, self._engine = opened, handed, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def receive(self, sink: Any, sizes: Iterator[int], *, data_bytes: int) -> Any:
        verified = self._opened.receive(sink, sizes, data_bytes=data_bytes)
        manifest, payload = self._opened.manifest(), verified.payload
        contents = self._engine.rows_from(payload) if manifest.kind == "rows" else payload
        self._handed.keep(contents, last_token=manifest.last_token)
        return verified


class _WatchedHalf:
    """A session's half at the cloud; what comes to it is counted, by what it is."""

    def __init__(self, half: Half, protection: str, handed: Handed) -> None:
        self._half, self._protection, self._handed = half, protection, handed

    def answer(self, record: Record) -> Record:
        kind = _RECORD_KINDS.get(record.operation, _PROTECTED[self._protection])
        self._handed.keep_count(kind, record.size_bytes)
        return self._half.answer(record)

    def close(self) -> None:
        self._half.close()


class WatchedCloud:
    """A `Cloud` behind a network on which somebody notes sizes and times; `transcript` is what was noted.

    `cpu_seconds` is the CPU time of the cloud's side alone, so that the device's can be told from it.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.forget()

    @property
    def transcript(self) -> Transcript:
        """Return what was noted since the last `forget`."""
        return Transcript(tuple(self._messages))

    def forget(self) -> None:
        """Begin a new run."""
        self._messages: list[Message] = []
        self._began = time.perf_counter()
        self.cpu_seconds = 0.0

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Hand the call on, noting its body's size and when its end arrived, and every piece of the reply."""
        source = _CountingSource(body)
        began = time.process_time()
        try:
            reply = self._cloud.handle(route, source)
        finally:
            self.cpu_seconds += time.process_time() - began
            self._arrived(source)
        return CloudReply(reply.body_bytes, _Watched(reply.body, source, self))

    def reply_piece(self, source: _CountingSource, size_bytes: int, cpu_seconds: float) -> None:
        """Note a piece of the reply, and before it what came up for it, as it does in a session of rounds."""
        self.cpu_seconds += cpu_seconds
        if source.size_bytes:
            self._arrived(source)
        self._note("down", size_bytes, at=time.perf_counter())

    def _arrived(self, source: _CountingSource) -> None:
        size_bytes, at, device_cpu_seconds = source.take()
        self.cpu_seconds -= device_cpu_seconds
        self._note("up", size_bytes, at=at)

    def _note(self, direction: Any, size_bytes: int, *, at: float) -> None:
        self._messages.append(Message(direction, size_bytes, at - self._began))


class _CountingSource:
    """Counts a body's bytes as they are read; the device makes them meanwhile, on its own time."""

    def __init__(self, body: Source) -> None:
        self._body = body
        self.size_bytes = 0
        self.device_cpu_seconds = self.last_at = 0.0

    def readinto(self, buffer: memoryview) -> int:
        began = time.process_time()
        count = self._body.readinto(buffer)
        self.device_cpu_seconds += time.process_time() - began
        self.size_bytes += count
        if count:
            self.last_at = time.perf_counter()
        return count

    def take(self) -> tuple[int, float, float]:
        """Return bytes, the time of the last one, and the device's CPU seconds, since this was last asked."""
        taken = self.size_bytes, self.last_at or time.perf_counter(), self.device_cpu_seconds
        self.size_bytes, self.device_cpu_seconds = 0, 0.0
        return taken

    @property
    def left_bytes(self) -> int:
        return int(getattr(self._body, "left_bytes", 0))


class _Watched(Iterator[memoryview | bytes]):
    def __init__(self, body: Iterator[memoryview | bytes], source: _CountingSource, watcher: WatchedCloud) -> None:
        self._body, self._source, self._watcher = body, source, watcher

    def __next__(self) -> memoryview | bytes:
        began = time.process_time()
        piece = next(self._body)
        self._watcher.reply_piece(self._source, len(piece), time.process_time() - began)
        return piece

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
