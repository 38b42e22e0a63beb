"""A running server: listens, says where, drains on a signal; cloud side.

The first SIGTERM or SIGINT lets running transfers finish for `drain_seconds`; what is left then, or at the second
signal, is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

import uvicorn

from server.app import create_app
from server.door import Door
from server.limits import limited_protocol
from server.log import logging_to
from server.settings import ServerSettings, require_safe_address
from server.tls import server_context
from splitinfer.errors import UsageError
from splitinfer.handoff import Cloud

__all__ = ["serve"]

# uvicorn logs tracebacks, whose texts may hold what a client sent.
_SILENT = logging.CRITICAL + 1
_BACKLOG = 128


def serve(
    cloud: Cloud,
    settings: ServerSettings,
    *,
    ready: Callable[[str, int], None] | None = None,
    log_stream: TextIO | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve until a signal, or `stop`; calls `ready(host, port)` once bound. Returns after the drain.

    Signal handlers are installed in the main thread only. Raises UsageError for an address or TLS file that cannot
    be used. `log_stream` is stderr by default.
    """
    require_safe_address(settings)
    app = create_app(cloud, settings)
    config = _config(app, settings)
    with contextlib.closing(app.state.door), _listen(settings) as listener, logging_to(log_stream or sys.stderr):
        _Server(config, settings, app.state.door, ready=ready, stop=stop).run(sockets=[listener])


def _config(app: object, settings: ServerSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="uvloop",
        http=limited_protocol(
            head_timeout_seconds=settings.read_timeout_seconds, max_connections=settings.max_connections
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=_SILENT,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        workers=1,
        # Only a last resort: connections are cut at drain_seconds, and their tasks end with them.
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + 5,
    )
    if settings.tls_certificate is not None and settings.tls_private_key is not None:
        context = server_context(settings.tls_certificate, settings.tls_private_key)
        config.ssl_context_factory = lambda _config, _default: context
    return config


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError:
        raise UsageError("host is not an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen at port {settings.port} ({error.strerror}); choose another port") from None
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server with our own signals: it drains, then cuts off, and leaves by returning."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: ServerSettings,
        door: Door,
        *,
        ready: Callable[[str, int], None] | None,
        stop: threading.Event | None,
    ) -> None:
        super().__init__(config)
        self._settings, self._door, self._ready, self._stop = settings, door, ready, stop
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install the handlers in the main thread; unlike uvicorn's, a drained server does not die by its signal."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain at the first signal, cut off at the second."""
        if self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut_off)
        self._drain()

    async def on_tick(self, counter: int) -> bool:
        """Look at `stop` with every tick."""
        if self._stop is not None and self._stop.is_set():
            self._drain()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell where."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._ready is not None and sockets:
            self._ready(self._settings.host, sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running transfers finish until the drain is over, cut off the rest and wait for the workers."""
        timer = asyncio.get_running_loop().call_later(self._settings.drain_seconds, self._cut_off)
        await super().shutdown(sockets)
        timer.cancel()
        await asyncio.to_thread(self._door.close)

    def _drain(self) -> None:
        self.should_exit = True
        self._door.is_draining = True

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
