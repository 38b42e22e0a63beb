"""Adversaries at their seats: the product's own path with somebody watching -> what each of them saw.

Evaluation. `CuriousCloud` is the recipient's own service over an engine that keeps what it is handed; `WatchedCloud`
stands at the door of any `Cloud` and notes sizes and times, as an observer of the network does, reading nothing.
Neither changes what the device does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService
from splitinfer.evaluation.attacks.traffic import Message, Transcript
from splitinfer.handoff import Cloud, CloudReply, Route, Source
from splitinfer.model.engine import Decoding, Engine

__all__ = ["CuriousCloud", "CuriousEngine", "Handed", "WatchedCloud"]


@dataclass(slots=True)
class Handed:
    """What a recipient's engine was handed in one run: ids to prefill, and a cache to decode from."""

    token_ids: tuple[int, ...] = field(default=(), repr=False)
    snapshot: CacheSnapshot | None = field(default=None, repr=False)
    last_token: int | None = field(default=None, repr=False)
    answered: list[int] = field(default_factory=list, repr=False)
    inputs: Any = field(default=None, repr=False)


class CuriousEngine:
    """The recipient's engine, which keeps a copy of what it is handed; all else is the engine's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.handed = Handed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forget(self) -> None:
        """Begin a new run."""
        self.handed = Handed()

    def prefill(self, token_ids: Sequence[int], **asked: Any) -> CacheSnapshot:
        """Keep the ids, and the inputs where a mode hands in embeddings instead, then prefill."""
        self.handed.token_ids = tuple(token_ids)
        self.handed.inputs = asked.get("embeddings")
        return self._engine.prefill(token_ids, **asked)

    def decode(self, snapshot: CacheSnapshot, *, last_token: int, **asked: Any) -> Decoding:
        """Keep a copy of the cache, which is wiped later, then decode."""
        layers = tuple({name: tensor.clone() for name, tensor in layer.items()} for layer in snapshot.layers)
        self.handed.snapshot = replace(snapshot, layers=layers)
        self.handed.last_token = last_token
        return self._engine.decode(snapshot, last_token=last_token, **asked)


class CuriousCloud(CloudService):
    """The recipient's service, run by somebody who keeps what is opened."""

    def __init__(self, engine: Engine, *given: Any, **asked: Any) -> None:
        self.curious = CuriousEngine(engine)
        super().__init__(cast(Engine, self.curious), *given, **asked)


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
        """Hand the call on, noting its body's size when it has arrived, and every piece of the reply."""
        source = _CountingSource(body)
        began = time.process_time()
        try:
            reply = self._cloud.handle(route, source)
        finally:
            self.cpu_seconds += time.process_time() - began - source.device_cpu_seconds
            self._note("up", source.size_bytes)
        return CloudReply(reply.body_bytes, _Watched(reply.body, self))

    def reply_piece(self, size_bytes: int, cpu_seconds: float) -> None:
        """Note a piece of the reply."""
        self.cpu_seconds += cpu_seconds
        self._note("down", size_bytes)

    def _note(self, direction: Any, size_bytes: int) -> None:
        self._messages.append(Message(direction, size_bytes, time.perf_counter() - self._began))


class _CountingSource:
    """Counts a body's bytes as they are read; the device makes them meanwhile, on its own time."""

    def __init__(self, body: Source) -> None:
        self._body = body
        self.size_bytes = 0
        self.device_cpu_seconds = 0.0

    def readinto(self, buffer: memoryview) -> int:
        began = time.process_time()
        count = self._body.readinto(buffer)
        self.device_cpu_seconds += time.process_time() - began
        self.size_bytes += count
        return count

    @property
    def left_bytes(self) -> int:
        return int(getattr(self._body, "left_bytes", 0))


class _Watched(Iterator[memoryview | bytes]):
    def __init__(self, body: Iterator[memoryview | bytes], watcher: WatchedCloud) -> None:
        self._body, self._watcher = body, watcher

    def __next__(self) -> memoryview | bytes:
        began = time.process_time()
        piece = next(self._body)
        self._watcher.reply_piece(len(piece), time.process_time() - began)
        return piece

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
