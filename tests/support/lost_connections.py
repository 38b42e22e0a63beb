"""Connections that break at a chosen byte, of a cloud in this process and in front of one that listens."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from splitinfer.errors import TransportError
from splitinfer.handoff import CloudReply, Route, Source
from tests.support.bad_servers import BadServer, bad_server

CONTROL = (Route.KEYSET, Route.STATE)


@dataclass(frozen=True)
class Cut:
    """Where a connection breaks: after so many bytes of the request, or of the reply."""

    up: int | None = None
    down: int | None = None


class CuttingCloud:
    """Hands calls on; the n-th call that is no keyset or state breaks at the n-th cut, later ones do not."""

    def __init__(self, cloud: Any, *cuts: Cut) -> None:
        self.cloud, self._cuts = cloud, iter(cuts)
        self.routes: list[Route] = []
        self.before: Callable[[Route], None] = lambda _: None

    def handle(self, route: Route, body: Source) -> CloudReply:
        self.before(route)
        self.routes.append(route)
        cut = Cut() if route in CONTROL else next(self._cuts, Cut())
        reply: CloudReply = self.cloud.handle(route, body if cut.up is None else _CutSource(body, cut.up))
        return reply if cut.down is None else CloudReply(reply.body_bytes, _CutBody(reply.body, cut.down))


class _CutSource:
    def __init__(self, source: Source, left_bytes: int) -> None:
        self._source, self._left = source, left_bytes

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            raise TransportError("cut")
        count = self._source.readinto(buffer[: self._left])
        self._left -= count
        return count


class _CutBody(Iterator[memoryview | bytes]):
    """Closes the reply where it breaks, as the door does."""

    def __init__(self, body: Iterator[memoryview | bytes], left_bytes: int) -> None:
        self._body, self._left = body, left_bytes

    def __next__(self) -> memoryview | bytes:
        if not self._left:
            self.close()
            raise TransportError("cut")
        piece = memoryview(next(self._body))[: self._left]
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


@contextmanager
def breaking_proxy(port: int, *cuts: Cut) -> Iterator[BadServer]:
    """Stand before a cloud; the n-th connection breaks at the n-th cut, in bytes of the TCP stream."""
    planned, lock = iter(cuts), threading.Lock()

    def relay(connection: socket.socket, stop: threading.Event) -> None:
        with lock:
            cut = next(planned, Cut())
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            _relay(connection, upstream, stop, {connection: cut.up, upstream: cut.down})

    with bad_server(relay) as server:
        yield server


def _relay(
    connection: socket.socket, upstream: socket.socket, stop: threading.Event, left: dict[socket.socket, int | None]
) -> None:
    other = {connection: upstream, upstream: connection}
    while not stop.is_set():
        for ready in select.select(list(left), [], [], 0.05)[0]:
            limit = left[ready]
            data = ready.recv(65536 if limit is None else min(65536, limit))
            other[ready].sendall(data)
            if limit is not None:
                left[ready] = limit - len(data)
            if not data or left[ready] == 0:
                return
