"""One blocking cloud call in a worker thread, joined to the event loop by two bounded queues; cloud side.

`Inbound` carries request bytes to the worker, `Outbound` its reply back; each holds the faster side up. Either can be
abandoned by the loop, which ends a worker that waits in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from splitinfer.errors import TransportError, TruncatedError
from splitinfer.handoff import Cloud, CloudReply, Route

__all__ = ["Ended", "Event", "Head", "Inbound", "Outbound", "start_call"]

_QUEUED_PIECES = 8
# A sealed chunk of the largest size, whole: its tag alone would be a piece of its own.
_PIECE_BYTES = (1 << 20) + 16


@dataclass(frozen=True, slots=True)
class Head:
    """The reply begins; its body will be exactly this long, or is a session's, whose length nobody knows (None)."""

    body_bytes: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over: well where `error` is None. `is_gone` says that nobody is left to hear of it."""

    error: BaseException | None
    is_gone: bool = False


Event = Head | bytes | Ended


class AbandonedError(Exception):
    """Nobody waits for this reply; raised inside a worker to end its call, and seen by nobody else."""


class Inbound:
    """The request body: fed by the loop, read by the worker as a `handoff.Source`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_QUEUED_PIECES)
        self._piece = memoryview(b"")
        self._is_ended = False
        self._is_abandoned = False
        self._is_lost = False
        self._is_over = False

    async def feed(self, piece: bytes) -> None:
        """Queue a piece that is not empty, as soon as there is room (loop side)."""
        await self._room.acquire()
        self._pieces.put(piece)

    def end(self) -> None:
        """Say that the whole body was fed (loop side)."""
        self._pieces.put(b"")

    def abandon(self, *, is_lost: bool = False) -> None:
        """Say that no more will come; the worker's next read raises (loop side).

        `is_lost` says that the client left, so that it may come back and go on.
        """
        self._is_lost = is_lost
        self._is_abandoned = True
        self._pieces.put(None)

    def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes and read up to len(buffer) of them; 0 at the end (worker side).

        Raises TransportError where the client left, TruncatedError where the body was given up for another reason.
        """
        # What a client sent before it left is still read: the less has to be sent again.
        if self._is_over or (self._is_abandoned and not self._is_lost):
            raise self._ended_early()
        if not self._piece and not self._is_ended:
            self._wait_for_piece()
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def _wait_for_piece(self) -> None:
        piece = self._pieces.get()
        if piece is None:
            self._is_over = True
            raise self._ended_early()
        self._piece, self._is_ended = memoryview(piece), not piece
        _post(self._loop, self._room.release)

    def _ended_early(self) -> TransportError | TruncatedError:
        if self._is_lost:
            return TransportError("the connection to the device was lost")
        return TruncatedError("the body ended before its declared length")


class Outbound:
    """The reply: put by the worker, taken by the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._room = threading.Semaphore(_QUEUED_PIECES)
        self._is_abandoned = False

    def put(self, event: Head | bytes) -> None:
        """Hand over an event as soon as there is room; raises AbandonedError (worker side)."""
        if not self._is_abandoned:
            self._room.acquire()
        if self._is_abandoned:
            raise AbandonedError
        _post(self._loop, self._events.put_nowait, event)

    def end(self, ended: Ended) -> None:
        """Hand over the end of the call, past any bound (loop side)."""
        self._events.put_nowait(ended)

    async def take(self) -> Event:
        """Wait for the next event (loop side)."""
        event = await self._events.get()
        self._room.release()
        return event

    def abandon(self) -> None:
        """Say that nobody waits for the reply; the worker's next put raises (loop side)."""
        self._is_abandoned = True
        self._room.release()


def start_call(
    cloud: Cloud, route: Route, inbound: Inbound, outbound: Outbound, executor: ThreadPoolExecutor
) -> asyncio.Future[None]:
    """Start `cloud.handle` in a worker; its end comes as an `Ended` event, and as the end of the returned future."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        outbound.end(Ended(error))
        if not over.done():
            over.set_result(None)

    def worker_is_over(future: Future[None]) -> None:
        _post(loop, end, future.exception())

    executor.submit(_work, cloud, route, inbound, outbound).add_done_callback(worker_is_over)
    return over


def _work(cloud: Cloud, route: Route, inbound: Inbound, outbound: Outbound) -> None:
    reply = cloud.handle(route, inbound)
    try:
        _hand_over(reply, outbound)
    finally:
        # Closing says that this connection is over; only this thread may do it.
        close = getattr(reply.body, "close", None)
        if close is not None:
            close()


def _hand_over(reply: CloudReply, outbound: Outbound) -> None:
    """Put the head once the first piece is there, so that what fails before it is still a refusal; then the pieces."""
    left_bytes = reply.body_bytes
    is_begun = False
    for piece in reply.body:
        data = memoryview(piece).cast("B")
        left_bytes = None if left_bytes is None else left_bytes - len(data)
        if left_bytes is not None and left_bytes < 0:
            break
        if not is_begun:
            outbound.put(Head(reply.body_bytes))
            is_begun = True
        for start in range(0, len(data), _PIECE_BYTES):
            outbound.put(bytes(data[start : start + _PIECE_BYTES]))  # the cloud reuses the piece's memory
    if left_bytes:
        raise RuntimeError("the reply differs from its declared length")
    if not is_begun:
        outbound.put(Head(left_bytes))


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    # A closed loop has nobody left who could be told.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
