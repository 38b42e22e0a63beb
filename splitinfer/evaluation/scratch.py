"""A cloud and its devices in scratch folders, paired as operators pair them. Evaluation."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cloud import CloudService
from splitinfer.cloud.halves import make_halves
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.mask_marks import MarkFiles
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Engine
from splitinfer.session import load_artefact

__all__ = ["Scratch"]

S = TypeVar("S", bound=CloudService)
# Nobody listens there: calls go through the transport in memory.
_NOWHERE = "http://127.0.0.1:9"


class Scratch:
    """The state folders of one cloud and of devices that it lets in; made by `open`, gone at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cloud = Home(folder / "cloud")
        self._pin = identity_sha256(self._cloud.key("identity").public_key().public_bytes_raw())

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Scratch]:
        """Make the cloud's folder and its identity."""
        with tempfile.TemporaryDirectory() as folder:
            yield cls(Path(folder))

    def device(self, name: str) -> Home:
        """Make a device whose remote `default` is the cloud."""
        home = Home(self.folder / name)
        allow_device(self._cloud, home.key("device").public_key().public_bytes_raw().hex())
        save_remote(home, "default", Remote(_NOWHERE, self._pin))
        return home

    def service(self, kind: type[S], engine: Engine) -> S:
        """Make the cloud's service, or a kind of it."""
        cloud = self._cloud
        return kind(
            engine,
            make_replica(cloud),
            allowed=lambda: allowed_devices(cloud),
            clock=time.time,
            randomness=secrets.token_bytes,
            halves=make_halves(engine, marks=MarkFiles(cloud)),
            artefact=load_artefact(engine, home=cloud),
        )
