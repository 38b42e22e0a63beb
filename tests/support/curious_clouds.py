"""A cloud that follows the protocol and keeps all that it can read, and noise that is the same in every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from splitinfer import noised, noised_cache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService
from splitinfer.handoff import CloudReply
from splitinfer.noise.stream import NoiseKey


class CuriousCloud(CloudService):
    """Keeps every cache that it decodes and all rows that it prefills, each beside the sealed manifest it came with."""

    def __init__(self, engine: Any, *given: Any, **named: Any) -> None:
        super().__init__(_Watched(engine, self), *given, **named)
        self.manifest: dict[str, Any] = {}
        self.caches: list[tuple[dict[str, Any], CacheSnapshot]] = []
        self.rows: list[tuple[dict[str, Any], bytes]] = []

    def _in_turn(self, opened: Any, manifest: Any, answer: Any) -> CloudReply:
        self.manifest = json.loads(manifest.to_bytes())
        return super()._in_turn(opened, manifest, answer)


class _Watched:
    """An engine that notes what it is given to decode, and the rows that it is given to prefill."""

    def __init__(self, engine: Any, cloud: CuriousCloud) -> None:
        self._engine, self._cloud = engine, cloud

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, snapshot: CacheSnapshot, **named: Any) -> Any:
        layers = tuple({name: x.clone() for name, x in layer.items()} for layer in snapshot.layers)
        kept = CacheSnapshot(snapshot.layout, snapshot.true_tokens, layers)
        self._cloud.caches.append((self._cloud.manifest, kept))
        return self._engine.decode(snapshot, **named)

    def rows_from(self, data: bytes) -> Any:
        self._cloud.rows.append((self._cloud.manifest, data))
        return self._engine.rows_from(data)


def tensor_bytes(cache: CacheSnapshot) -> list[bytes]:
    """Return a cache as bytes, tensor by tensor."""
    return [layer[name].numpy().tobytes() for layer in cache.layers for name in sorted(layer)]


def without_chance(manifest: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is random in every transfer: the session's id and the salted commitment to the log."""
    session = {name: value for name, value in manifest["session"].items() if name != "session_id"}
    return {**manifest, "log_checkpoint": "", "session": session}


def inject_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inject the same noise key in every run, and let the ledger believe that each is new."""

    class SameKey(NoiseKey):
        count = 0

        def __init__(self, randomness: Callable[[int], bytes]) -> None:  # noqa: ARG002
            super().__init__(bytes)
            SameKey.count += 1
            self.digest = hashlib.sha256(bytes([SameKey.count])).hexdigest()

    for module in (noised, noised_cache):
        monkeypatch.setattr(module, "NoiseKey", SameKey)
