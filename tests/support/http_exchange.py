"""The two ends of an HTTP exchange for tests: released transfers, served clouds, raw sockets on either side."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.run import serve
from server.settings import make_settings
from splitinfer.handoff import Cloud, ReleasedTransfer, Reply, Route


@dataclass
class CountingMeter:
    """Implements `handoff.Meter`."""

    received_bytes: int = 0

    def received(self, data: memoryview | bytes) -> None:
        self.received_bytes += len(data)


def released(
    *pieces: bytes, route: Route = Route.DECODE, replica_id: str = "", body_bytes: int | None = None
) -> ReleasedTransfer:
    """Return a transfer as the gate would; its meter is a CountingMeter."""
    size = sum(map(len, pieces)) if body_bytes is None else body_bytes
    return ReleasedTransfer(route, size, iter(pieces), replica_id, CountingMeter())


def read_all(reply: Reply, *, buffer_bytes: int = 1 << 16) -> bytes:
    """Read a reply to its end and close it."""
    data, view = bytearray(), memoryview(bytearray(buffer_bytes))
    try:
        while count := reply.readinto(view):
            data += view[:count]
    finally:
        reply.close()
    return bytes(data)


@dataclass
class Served:
    """A door that is open in a thread of this process."""

    port: int
    log: io.StringIO
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(cloud: Cloud, **settings: object) -> Iterator[Served]:
    """Serve a cloud on a free loopback port."""
    log, stop, ports, bound = io.StringIO(), threading.Event(), [], threading.Event()

    def ready(_host: str, port: int) -> None:
        ports.append(port)
        bound.set()

    checked = make_settings({"port": 0, "drain_seconds": 0.2, **settings})
    thread = threading.Thread(
        target=serve, args=(cloud, checked), kwargs={"ready": ready, "log_stream": log, "stop": stop}
    )
    thread.start()
    try:
        assert bound.wait(20)
        yield Served(ports[0], log, stop)
    finally:
        stop.set()
        thread.join(20)


@contextmanager
def served_by_process(log: Path, **settings: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve an EchoCloud from a process of its own; yields it and its port."""
    pairs = [f"{name}={value}" for name, value in {"port": 0, "log": log, **settings}.items()]
    command = [sys.executable, "-m", "tests.support.echo_cloud", *pairs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield process, int(line.split()[1])
        finally:
            process.kill()


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept one connection on a free loopback port and hand it to `answer` in a thread; yields the url."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(20)


def read_request(connection: socket.socket) -> bytes:
    """Read one whole request, head and declared body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    while len(body) < lengths[0]:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def raw_request(port: int, request: bytes, *, timeout_seconds: float = 20) -> bytes:
    """Send raw bytes and return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer
