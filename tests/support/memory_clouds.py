"""Clouds in this process, paired with a device's state folder: honest ones, and ones that lie in what they compute."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.answer import Answer
from splitinfer.attestation.keyset import Replica, certify, identity_sha256
from splitinfer.cache.growing import GrowingCache
from splitinfer.cloud import CloudService
from splitinfer.egress.verification import read_records
from splitinfer.handoff import CloudReply, ReleasedTransfer, Reply, Route, Segment, Source, TensorName, Transport
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Engine
from splitinfer.session import Session
from splitinfer.transport.memory import MemoryTransport
from tests.support.growing import grown
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

# What computes in rounds has its own tests.
REMOTE_MODES = tuple(row.mode.value for row in MODES.values() if row.protection == "sealed")
ALL_MODES = (TrustMode.LOCAL.value, *REMOTE_MODES)
NOISED_MODES = tuple(mode.value for mode in TrustMode if MODES[mode].is_noised)
# The modes that give the tokens of `local`; noise gives others.
EXACT_MODES = tuple(mode for mode in ALL_MODES if mode not in NOISED_MODES)
EXACT_REMOTE_MODES = tuple(mode for mode in REMOTE_MODES if mode not in NOISED_MODES)
# The modes whose sampling the policy says, and no caller.
STATED_MODES = tuple(mode for mode in NOISED_MODES if MODES[TrustMode(mode)].decode == "cloud")
NOISE = {"adjacency": 2, "sigma": 0.01, "subject": "test", "budget_epsilon": 1e12}
Service = TypeVar("Service", bound=CloudService)
NOWHERE = "http://127.0.0.1:9"


def policy_of(
    mode: str,
    *,
    verify_rows: int = 0,
    on_remote_failure: str = "refuse",
    sampling: dict[str, object] | None = None,
    **sections: object,
) -> Policy:
    """Make a policy of this mode whose recipient is the remote named `default`; it keeps no cache unless told to.

    `sampling` is what a run will ask for: it is written into the policy where the mode takes it from there.
    """
    values: dict[str, object] = {"mode": mode, **sections}
    if mode != "local":
        values.setdefault("remote", {"name": "default"})
        values["fallback"] = {"on_remote_failure": on_remote_failure}
    if mode in NOISED_MODES:
        values.setdefault("noise", NOISE)
    if mode in STATED_MODES and sampling:
        values["sampling"] = sampling
    if mode == "public-prefix":
        values.setdefault("store", {"enabled": False})
    if verify_rows:
        values["transfer"] = {"verify_rows": verify_rows}
    return Policy.model_validate(values)


@dataclass
class Paired:
    """A device's and a cloud's state folder that know each other, and clouds made from them."""

    device: Home
    cloud: Home

    @classmethod
    def at(cls, base: Path) -> Paired:
        """Make both folders and pair them; the remote's address is nobody's."""
        base.mkdir(parents=True, exist_ok=True)
        pair = cls(Home(base / "device"), Home(base / "cloud"))
        allow_device(pair.cloud, pair.device.key("device").public_key().public_bytes_raw().hex())
        pair.point_at(NOWHERE)
        return pair

    @property
    def identity(self) -> Ed25519PrivateKey:
        return self.cloud.key("identity")

    @property
    def pin(self) -> str:
        return identity_sha256(self.identity.public_key().public_bytes_raw())

    def point_at(self, url: str) -> None:
        """Let the device look for the cloud at this address."""
        save_remote(self.device, "default", Remote(url, self.pin))

    def service(
        self,
        engine: Any,
        *,
        clock: Callable[[], float] = time.time,
        replica: Replica | None = None,
        made: type[Service] = CloudService,
        **limits: Any,
    ) -> Service:
        """Make a cloud, of this class, with the identity of the cloud folder, or with the replica given."""
        return made(
            engine,
            replica or make_replica(self.cloud, clock=clock),
            allowed=lambda: allowed_devices(self.cloud),
            clock=clock,
            randomness=secrets.token_bytes,
            **limits,
        )

    def replica(
        self,
        key: Ed25519PrivateKey,
        *,
        identity: Ed25519PrivateKey | None = None,
        generation: int = 1,
        epoch: int | None = None,
        certified_at: float | None = None,
    ) -> Replica:
        """Make a replica with a chosen certificate and epoch."""
        now = int(time.time())
        public = key.public_key().public_bytes_raw()
        certificate = certify(
            identity or self.identity,
            replica_id=public[:16].hex(),
            replica_public_key=public,
            generation=generation,
            now=int(certified_at or now),
        )
        return Replica(key, lambda: certificate, next_epoch=lambda at: epoch or at, clock=time.time)

    @contextmanager
    def session(
        self, mode: str | Policy, engine: Engine, cloud: Any = None, *, transport: Transport | None = None
    ) -> Iterator[Session]:
        """Open a session whose other side is this cloud, in memory."""
        policy = policy_of(mode) if isinstance(mode, str) else mode
        other = transport or (MemoryTransport(cloud) if cloud is not None else None)
        with Session.open(policy, home=self.device, engine=engine, transport=other) as session:
            yield session

    def run(
        self, mode: str | Policy, segments: Sequence[Segment], engine: Engine, cloud: Any = None, **sampling: object
    ) -> Answer:
        """Run one prompt in a session of its own."""
        policy = policy_of(mode, sampling=sampling) if isinstance(mode, str) else mode
        with self.session(policy, engine, cloud) as session:
            return session.run(segments, **sampling)

    def records(self) -> list[dict[str, Any]]:
        """Return the device's log."""
        return [dict(record) for record in read_records(self.device.audit)]

    @property
    def last(self) -> dict[str, Any]:
        """Return the log's last record."""
        return self.records()[-1]


class LyingEngine:
    """An engine whose prefill changes one row of one layer in what it gives back; the rest is the honest engine's."""

    def __init__(self, engine: Engine, *, layer: int, row: int, part: TensorName = "keys") -> None:
        self._engine, self._layer, self._row, self._part = engine, layer, row, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def start_prefill(self, token_ids: Sequence[int], *, steps: Sequence[tuple[int, int]], **_: Any) -> GrowingCache:
        snapshot = self._engine.prefill(token_ids, steps=steps)
        layers = list(snapshot.layers)
        tensor = layers[self._layer][self._part].clone()
        tensor[:, :, self._row] += 0.5
        layers[self._layer] = {**layers[self._layer], self._part: tensor}
        return grown(replace(snapshot, layers=tuple(layers)))


class SwitchingTransport:
    """Gives every exchange to the next of several clouds in turn, the keyset call and its transfer to the same."""

    def __init__(self, *clouds: Any) -> None:
        self._transports = [MemoryTransport(cloud) for cloud in clouds]
        self._runs = -1

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        self._runs += transfer.route is Route.KEYSET
        return self._transports[self._runs % len(self._transports)].exchange(transfer)


class CountingCloud:
    """Hands every call on, and notes its route."""

    def __init__(self, cloud: Any) -> None:
        self._cloud = cloud
        self.routes: list[Route] = []

    def handle(self, route: Route, body: Source) -> CloudReply:
        self.routes.append(route)
        reply: CloudReply = self._cloud.handle(route, body)
        return reply
