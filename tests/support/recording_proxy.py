"""A TCP proxy between device and cloud that keeps every byte of both directions, without changing any."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.wire import HEAD_END, Message, WireError

PIECE_BYTES = 1 << 16
PATIENCE_SECONDS = 60.0


class TcpProxy:
    """Accepts loopback connections, each served by `_serve` in a thread of its own until the context ends."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(PATIENCE_SECONDS)
        self.wait()

    def wait(self) -> None:
        """Wait until every connection is closed on both sides."""
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            if thread.is_alive():
                raise WireError("a connection through the proxy did not end")
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve_and_close, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve_and_close(self, client: socket.socket) -> None:
        with client, contextlib.suppress(ConnectionError):
            client.settimeout(PATIENCE_SECONDS)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(client)

    def _connect(self) -> socket.socket:
        upstream = socket.create_connection(self._target, timeout=PATIENCE_SECONDS)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream

    def _serve(self, client: socket.socket) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class Capture:
    """All bytes of one connection: what the device sent and what came back."""

    sent: bytearray = field(default_factory=bytearray, repr=False)
    received: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def request(self) -> Message:
        return whole(Message.parse(bytes(self.sent)))

    @property
    def reply(self) -> Message:
        return whole(Message.parse(bytes(self.received)))

    @property
    def route(self) -> str:
        return self.request.route


class RecordingProxy(TcpProxy):
    """Passes bytes on as they come; `take` returns what was captured since the last call, in order of connection."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self._captures: list[Capture] = []

    def take(self) -> list[Capture]:
        self.wait()
        taken, self._captures = self._captures, []
        return taken

    def _serve(self, client: socket.socket) -> None:
        capture = Capture()
        self._captures.append(capture)
        with self._connect() as upstream:
            down = threading.Thread(target=_pump, args=(upstream, client, capture.received), daemon=True)
            down.start()
            _pump(client, upstream, capture.sent)
            down.join(PATIENCE_SECONDS)


def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    """Move bytes until the source ends, then end the target's direction."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            kept += piece
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def whole(message: Message) -> Message:
    """Check that the body is as long as its head declares."""
    if len(message.body) != message.declared_bytes:
        raise WireError(f"a body of {len(message.body)} bytes was declared as {message.declared_bytes}")
    return message


def read_message(source: socket.socket) -> Message | None:
    """Read one message of declared length from a socket; None where the peer ends before its head is complete.

    A body that ends early is returned as far as it came.
    """
    raw = bytearray()
    while HEAD_END not in raw:
        piece = source.recv(PIECE_BYTES)
        if not piece:
            return None
        raw += piece
    declared = Message.parse(bytes(raw)).declared_bytes
    total = raw.index(HEAD_END) + len(HEAD_END) + declared
    while len(raw) < total and (piece := source.recv(PIECE_BYTES)):
        raw += piece
    return Message.parse(bytes(raw))
