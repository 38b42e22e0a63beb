"""One log line a request: id, route, outcome, bytes and seconds; cloud side.

A path, query, header, body or error text never reaches the log: what was asked for is named by the closed table of
routes, a failure by its type or by its code in the closed table of errors.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitinfer.errors import SplitInferError
from splitinfer.handoff import Route

__all__ = ["LOGGER_NAME", "RequestLog", "logging_to", "report_broken_reply", "report_internal_error"]

LOGGER_NAME = "splitinfer.server"
_LOGGER = logging.getLogger(LOGGER_NAME)
_ROUTES = frozenset({*(route.value for route in Route), "GET /v1/health"})


class RequestLog:
    """ASGI middleware that counts what passes and logs one line at the end of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request and log it, however it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        count = _Count(scope, receive, send)
        try:
            await self._app(scope, count.receive, count.send)
        finally:
            _LOGGER.info("%s", count.line())


class _Count:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = f"{scope['method']} {scope['path']}"
        self._route = named if named in _ROUTES else "other"
        self._receive, self._send = receive, send
        self._in_bytes = self._out_bytes = self._status = 0
        self._is_complete = False
        self._began = time.monotonic()

    async def receive(self) -> Message:
        message = await self._receive()
        self._in_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        self._status = message.get("status", self._status)
        self._out_bytes += len(message.get("body", b""))
        if message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)

    def line(self) -> str:
        seconds = time.monotonic() - self._began
        outcome = "complete" if self._is_complete else "aborted"
        return (
            f'request={secrets.token_hex(8)} route="{self._route}" status={self._status or "-"} outcome={outcome} '
            f"in_bytes={self._in_bytes} out_bytes={self._out_bytes} seconds={seconds:.3f}"
        )


def report_internal_error(error: BaseException) -> None:
    """Log a failure that is no refusal by its type only; its text may hold what the client sent."""
    _LOGGER.error("internal error of type %s", type(error).__name__)


def report_broken_reply(error: BaseException) -> None:
    """Log that a reply which had begun was broken off, by the error's code only."""
    _LOGGER.error("reply broken off, code %s", error.code if isinstance(error, SplitInferError) else "internal")


@contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Write the server's log to a stream, and nowhere else, while the context is open."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagate
