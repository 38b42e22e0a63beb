"""Servers that are down, slow, cut off, or no splitinfer cloud at all; each counts the connections that it saw."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[socket.socket, threading.Event], None]


@dataclass
class BadServer:
    """A listener on a free loopback port; `connections` is how many it accepted."""

    port: int
    connections: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def bad_server(answer: Answer) -> Iterator[BadServer]:
    """Accept connections and hand each to `answer` in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = BadServer(listener.getsockname()[1])
        workers: list[threading.Thread] = []

        def accept() -> None:
            while not server.stop.is_set():
                if not select.select([listener], [], [], 0.05)[0]:
                    continue
                connection, _ = listener.accept()
                server.connections += 1
                worker = threading.Thread(target=_served, args=(connection, answer, server.stop))
                workers.append(worker)
                worker.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server
        finally:
            server.stop.set()
            for thread in [accepting, *workers]:
                thread.join(10)


def _served(connection: socket.socket, answer: Answer, stop: threading.Event) -> None:
    with connection, suppress(OSError):
        answer(connection, stop)


def unused_url() -> str:
    """Return an address of this machine where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def silence(connection: socket.socket, stop: threading.Event) -> None:
    """Take the request and never answer."""
    connection.recv(65536)
    stop.wait(30)


def hang_up(connection: socket.socket, stop: threading.Event) -> None:
    """Take the request and close."""
    connection.recv(65536)


def garbage(connection: socket.socket, stop: threading.Event) -> None:
    """Answer 200 with a keyset's content type and random bytes."""
    _answer(connection, "application/json", os.urandom(500))


def html(connection: socket.socket, stop: threading.Event) -> None:
    """Answer as a web server's welcome page does."""
    _answer(connection, "text/html", b"<html><body>It works!</body></html>")


def other_json(connection: socket.socket, stop: threading.Event) -> None:
    """Answer 200 with JSON that is no keyset."""
    _answer(connection, "application/json", b'{"status": "ok", "data": [1, 2, 3]}')


def short(connection: socket.socket, stop: threading.Event) -> None:
    """Declare more bytes than come."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{}")


def _answer(connection: socket.socket, content_type: str, body: bytes) -> None:
    connection.recv(65536)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


@contextmanager
def cutting_proxy(port: int, *, down_bytes: tuple[int | None, ...], up_bytes: int | None = None) -> Iterator[BadServer]:
    """Stand before a cloud; connection n is cut after `down_bytes[n]` reply bytes (None: never, so for later ones).

    With `up_bytes`, every connection is cut once so many request bytes have passed.
    """
    number = iter(range(1_000_000))

    def relay(connection: socket.socket, stop: threading.Event) -> None:
        index = next(number)
        limit = down_bytes[index] if index < len(down_bytes) else None
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            _relay(connection, upstream, stop, down_limit=limit, up_limit=up_bytes)

    with bad_server(relay) as server:
        yield server


def _relay(
    connection: socket.socket,
    upstream: socket.socket,
    stop: threading.Event,
    *,
    down_limit: int | None,
    up_limit: int | None,
) -> None:
    moved = {connection: 0, upstream: 0}
    limits = {connection: up_limit, upstream: down_limit}
    other = {connection: upstream, upstream: connection}
    while not stop.is_set():
        for ready in select.select(list(moved), [], [], 0.05)[0]:
            limit = limits[ready]
            room = 65536 if limit is None else min(65536, limit - moved[ready])
            data = ready.recv(room) if room else b""
            other[ready].sendall(data)
            moved[ready] += len(data)
            if not data or moved[ready] == limit:
                return


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait for something that another thread or process does; fail where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
