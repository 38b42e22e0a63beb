"""A device in this process, a cloud elsewhere, an attacker between them; one attack after another, all told apart."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from splitinfer import codec
from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService
from splitinfer.egress.verification import read_records, verify
from splitinfer.errors import SplitInferError
from splitinfer.handoff import CacheLayout, CacheSink, SamplingParams, Segment
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Decoding, Engine
from splitinfer.model.loading import LoadedModel
from splitinfer.session import Session
from tests.support.http_exchange import served
from tests.support.mutations import Mutation
from tests.support.tampering_proxy import TamperingProxy, Transfer
from tests.support.wire import WireBody
from trust_models.policy import Policy, resolve

# Response manifest, receipt and trailer, in chunks of 512 bytes; a cache or an answer has many more.
REFUSAL_CHUNKS = 8 + 4 + 1
# Noise so faint that the answer is that of the sealed modes; how many tokens a policy with [sampling] asks for.
FAINT: dict[str, object] = {"sigma": 1e-6, "epsilon": None, "post": "none", "budget_epsilon": 1e300}
STATED_TOKENS = 8


class WatchedEngine(Engine):
    """An engine that counts how often a decode was begun."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.begun_decodes = 0

    def decode(self, snapshot: CacheSnapshot, *, last_token: int, params: SamplingParams) -> Decoding:
        self.begun_decodes += 1
        return super().decode(snapshot, last_token=last_token, params=params)

    @property
    def work(self) -> tuple[int, int, int]:
        return self.begun_decodes, self.decoded_tokens, self.prefilled_tokens


@dataclass
class WatchedSink:
    """A sink that remembers the memory that it gave out and whether it was finished."""

    inner: CacheSink[CacheSnapshot]
    memory: list[memoryview] = field(default_factory=list)
    is_finished: bool = False
    is_wiped: bool = False

    def slab(self) -> memoryview:
        view = self.inner.slab()
        self.memory.append(view)
        return view

    def sizes(self) -> Iterator[int]:
        return self.inner.sizes()

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    def finish(self) -> object:
        self.is_finished = True
        return self.inner.finish()

    def wipe(self) -> None:
        self.is_wiped = True
        self.inner.wipe()

    @property
    def has_kept(self) -> bool:
        return self.is_finished or not self.is_wiped or any(any(view) for view in self.memory)


@dataclass(frozen=True)
class Result:
    """What an attacked run came to."""

    pieces: list[str]
    error: SplitInferError | None
    outcome: dict[str, Any]
    sinks: list[WatchedSink]


@dataclass
class AttackScene:
    """Everything that attacks share; `cloud_engine` is there where the cloud runs in this process."""

    proxy: TamperingProxy
    device: Home
    engine: WatchedEngine
    folder: Path
    cloud_engine: WatchedEngine | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, mode: str, segments: Sequence[Segment], **sampling: object) -> Result:
        """Run a prompt against a fresh audit log, which is verified afterwards."""
        policy = self._policy(mode)
        log = Path(policy.audit.path or "")
        pieces: list[str] = []
        failure: SplitInferError | None = None
        with _watched_sinks() as sinks, self._session(policy) as session:
            try:
                pieces.extend(session.stream(segments, **sampling))
            except SplitInferError as error:
                failure = error
        self.proxy.wait()
        verify(log, self.device.key("checkpoint").public_key())
        records = [dict(record) for record in read_records(log)]
        # A noised release is paid for before anything else, whatever becomes of it.
        paid = ["noise"] if policy.noise else []
        assert [record["type"] for record in records] == [*paid, "intent", "outcome"]
        return Result(pieces, failure, records[-1], sinks)

    def honest(self, mode: str, segments: Sequence[Segment], **sampling: object) -> Transfer:
        """Run without an attack, which must succeed, and return the transfer as it passed."""
        self.proxy.arm()
        result = self.run(mode, segments, **sampling)
        assert result.error is None
        assert result.outcome["status"] == "completed"
        assert result.pieces
        return self.proxy.transfers[-1]

    def attack(self, mutation: Mutation, mode: str, segments: Sequence[Segment], **sampling: object) -> Result:
        """Run under attack and check all that holds for every attack; raises AssertionError with the reason."""
        self.proxy.arm(mutation.where, mutation.change)
        before = self.engine.begun_decodes
        cloud_before = self.cloud_engine.work if self.cloud_engine else None
        result = self.run(mode, segments, **sampling)
        error = result.error
        assert self.proxy.deliveries, "nothing was changed"
        assert all(delivery.is_changed for delivery in self.proxy.deliveries), "the change was not delivered"
        assert error is not None, "not refused"
        if mutation.error is not SplitInferError:
            assert type(error) is mutation.error, f"{type(error).__name__}: {error}"
            assert getattr(error, "remote_code", None) == mutation.code, "refused by another code"
        assert self.engine.begun_decodes == before, "a refused cache was decoded"
        assert not any(sink.has_kept for sink in result.sinks), "a refused cache was kept"
        assert result.outcome["status"] != "completed", "logged as completed"
        assert result.outcome["code"] == error.code, f"logged as {result.outcome['code']}"
        if mutation.where == "request":
            self._check_cloud_idle(cloud_before)
        return result

    def _check_cloud_idle(self, before: tuple[int, int, int] | None) -> None:
        """A changed request made the cloud compute nothing: its counters say so, or what it answered."""
        reply = self.proxy.transfers[-1].reply
        if self.cloud_engine is not None:
            assert self.cloud_engine.work == before, "the cloud computed something"
        if reply is not None and reply.status == 200:
            assert len(WireBody.parse(reply.body).chunks) == REFUSAL_CHUNKS, (
                "the cloud answered with more than a refusal"
            )

    def _session(self, policy: Policy) -> Session:
        return Session.open(policy, home=self.device, engine=self.engine, use_store=False)

    def _policy(self, mode: str) -> Policy:
        policy = resolve(mode)
        path = str(self.folder / f"audit-{next(self._numbers)}")
        # An attack is on one exchange; what follows a lost connection has tests of its own.
        transfer = policy.transfer.model_copy(update={"resume_attempts": 0})
        audit = policy.audit.model_copy(update={"path": path})
        changes: dict[str, object] = {"audit": audit, "transfer": transfer}
        if policy.noise is not None:
            changes["noise"] = policy.noise.model_copy(update=FAINT)
        if policy.sampling is not None:
            changes["sampling"] = policy.sampling.model_copy(update={"max_new_tokens": STATED_TOKENS})
        return policy.model_copy(update=changes)


@contextmanager
def _watched_sinks() -> Iterator[list[WatchedSink]]:
    made: list[WatchedSink] = []
    real = codec.sink

    def sink(layout: CacheLayout, **counts: Any) -> WatchedSink:
        made.append(WatchedSink(real(layout, **counts)))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "sink", sink)
        yield made


@contextmanager
def counted_cloud(folder: Path, loaded: LoadedModel) -> Iterator[AttackScene]:
    """A scene whose cloud runs in a thread of this process, so that its counters can be read."""
    cloud_home, device = Home(folder / "cloud"), Home(folder / "device")
    identity = cloud_home.key("identity").public_key().public_bytes_raw()
    allow_device(cloud_home, device.key("device").public_key().public_bytes_raw().hex())
    engine, cloud_engine = WatchedEngine(loaded), WatchedEngine(loaded)
    cloud = CloudService(
        cloud_engine,
        make_replica(cloud_home),
        allowed=lambda: allowed_devices(cloud_home),
        clock=time.time,
        randomness=secrets.token_bytes,
    )
    cloud.close()  # so that it parks nothing, and what a changed request left must be wiped at once
    with served(cloud) as door, TamperingProxy(door.port) as proxy:
        save_remote(device, "default", Remote(proxy.url, identity_sha256(identity)))
        yield AttackScene(proxy, device, engine, folder, cloud_engine)
