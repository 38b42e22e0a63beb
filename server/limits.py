"""What the door takes at one time: slots, declared lengths, request heads; cloud side."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from splitinfer.errors import LimitExceededError

__all__ = ["Slots", "declared_body_bytes", "limited_protocol"]

_HEAD_BYTES = 64 * 1024
_LENGTH = re.compile(r"[0-9]{1,18}")


class Slots:
    """Count what runs at one time; used in the event loop only, so it needs no lock."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    def take(self) -> bool:
        """Take a slot and return True, or return False where all are taken."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        """Free a slot."""
        self._free += 1


def declared_body_bytes(headers: Headers, *, limit_bytes: int) -> int | None:
    """Return the declared length of a body, None where there is none; raises LimitExceededError above the limit."""
    lengths = headers.getlist("content-length")
    if "transfer-encoding" in headers or len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        return None
    body_bytes = int(lengths[0])
    if body_bytes > limit_bytes:
        raise LimitExceededError(f"a body of {body_bytes} bytes is above the limit of {limit_bytes}")
    return body_bytes


def limited_protocol(*, head_timeout_seconds: float, max_connections: int) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with bounds on open connections and on the size and the time of a request head.

    The connection is aborted where one is passed; `scope["state"]["abort"]` lets a reply be cut off unclean.
    """

    class LimitedProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows the transport's type
            self.head_bytes = 0
            self.is_head_done = False
            if len(self.connections) > max_connections:
                self.transport.abort()
            self.head_timer = self.loop.call_later(head_timeout_seconds, transport.abort)  # type: ignore[attr-defined]

        def connection_lost(self, exc: Exception | None) -> None:
            self.head_timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.is_head_done:
                self.head_bytes += len(data)
                if self.head_bytes > _HEAD_BYTES:
                    self.transport.abort()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            state: dict[str, Any] = self.scope["state"]
            state["abort"] = self.transport.abort

        def on_headers_complete(self) -> None:
            self.is_head_done = True
            self.head_timer.cancel()
            super().on_headers_complete()

    return LimitedProtocol
