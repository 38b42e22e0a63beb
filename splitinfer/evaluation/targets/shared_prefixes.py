"""The cloud with one prefix cache for all its devices: what the names under each device's secret are there to prevent.

Evaluation; a target and a control, never a product. It is the product's own cloud and cache but for the one thing: a
text has the same name whoever sends it, so that a tenant's request is answered from what another one sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService
from splitinfer.cloud.prefixes import Prefixes, PrefixLimits
from splitinfer.model.engine import Engine

__all__ = ["SharedCloud", "SharedPrefixes"]

_ANYBODY = bytes(32)


class SharedPrefixes(Prefixes):
    """The prefix cache, for one sender that is everybody."""

    def find(self, sender: bytes, token_ids: Sequence[int], steps: Sequence[tuple[int, int]]) -> CacheSnapshot | None:  # noqa: ARG002
        """Return what anybody's earlier text left."""
        return super().find(_ANYBODY, token_ids, steps)

    def put(
        self,
        sender: bytes,  # noqa: ARG002
        token_ids: Sequence[int],
        steps: Sequence[tuple[int, int]],
        snapshot: CacheSnapshot,
    ) -> bool:
        """Keep it for everybody."""
        return super().put(_ANYBODY, token_ids, steps, snapshot)


class SharedCloud(CloudService):
    """The recipient's service over a `SharedPrefixes`."""

    def __init__(self, engine: Engine, *given: Any, **asked: Any) -> None:
        super().__init__(engine, *given, **asked)
        self._computing.prefixes = SharedPrefixes(
            PrefixLimits(), model=engine.identity, numerics=engine.numerics, randomness=secrets.token_bytes
        )
