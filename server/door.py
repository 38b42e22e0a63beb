"""What all requests to a cloud share: the lanes of workers, who may wait, whether it drains; cloud side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from server.limits import Slots
from splitinfer.handoff import Cloud, Route

__all__ = ["Door", "Lane"]

_KEYSET_WORKERS = 2
_KEYSET_WAITING = 64
_STATE_WORKERS = 2
_STATE_WAITING = 16
_MAX_STATE_BYTES = 4096
_STREAM, _JSON = "application/octet-stream", "application/json"


@dataclass(frozen=True, slots=True)
class Lane:
    """The workers of one kind of request, how many may wait for them, and how large a body may be.

    `is_session` tells that a body comes and goes piece by piece, with pauses, and without a declared length.
    """

    executor: ThreadPoolExecutor
    slots: Slots
    max_body_bytes: int
    media_type: str
    silence_seconds: float
    is_session: bool = False


class Door:
    """What all requests share: the cloud, the lanes and whether the server drains.

    Keysets have a lane of their own, so that long transfers do not make the recipient unknown, and so have queries for
    the state of a transfer, which may wait a moment, and sessions of rounds, which last.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        max_transfers: int,
        max_body_bytes: int,
        silence_seconds: float,
        max_rounds: int = 2,
        rounds_idle_seconds: float = 600.0,
    ) -> None:
        self.cloud = cloud
        self.silence_seconds = silence_seconds
        self.is_draining = False
        workers = ThreadPoolExecutor(max_transfers, thread_name_prefix="transfer")
        keyset_workers = ThreadPoolExecutor(_KEYSET_WORKERS, thread_name_prefix="keyset")
        self._transfers = Lane(workers, Slots(max_transfers), max_body_bytes, _STREAM, silence_seconds)
        state_workers = ThreadPoolExecutor(_STATE_WORKERS, thread_name_prefix="state")
        self._keysets = Lane(keyset_workers, Slots(_KEYSET_WAITING), 0, _JSON, silence_seconds)
        self._states = Lane(state_workers, Slots(_STATE_WAITING), _MAX_STATE_BYTES, _JSON, silence_seconds)
        rounds_workers = ThreadPoolExecutor(max(max_rounds, 1), thread_name_prefix="rounds")
        self._rounds = Lane(
            rounds_workers, Slots(max_rounds), max_body_bytes, _STREAM, rounds_idle_seconds, is_session=True
        )

    def lane(self, route: Route) -> Lane:
        """Return the lane of a route."""
        own = {Route.KEYSET: self._keysets, Route.STATE: self._states, Route.SESSION: self._rounds}
        return own.get(route, self._transfers)

    def close(self) -> None:
        """Wait for the workers, which end at their next read or piece, and refuse new calls; idempotent."""
        self._transfers.executor.shutdown()
        self._keysets.executor.shutdown()
        self._states.executor.shutdown()
        self._rounds.executor.shutdown()
