"""One request through the door: its limits, its body to the cloud, the cloud's reply or refusal back; cloud side."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.bridge import Ended, Head, Inbound, Outbound, start_call
from server.door import Door, Lane
from server.limits import declared_body_bytes
from server.log import report_broken_reply, report_internal_error
from server.problems import FIXED_HEADERS, Problem, problem_for
from splitinfer.errors import LimitExceededError, SplitInferError, TransportTimeoutError
from splitinfer.handoff import Route
from splitinfer.receive.reading import MAX_HEAD_BYTES

__all__ = ["Exchange"]

# A client that drips bytes would hold a transfer slot for as long as it likes; a modem is faster than this.
_MIN_BYTES_PER_SECOND = 4096
_SESSION_HEADERS = {"Cache-Control": "no-store"}
_PREFIX_BYTES = 4


class Exchange(Response):
    """The answer to one request, as Starlette calls it: it reads the body and sends the reply itself."""

    def __init__(self, door: Door, route: Route) -> None:
        super().__init__()
        self._door, self._route, self._lane = door, route, door.lane(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the limits before any of the body is read, wait for its head, then let the cloud answer."""
        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        begun = _Begun(receive)
        try:
            is_there = self._route is Route.KEYSET or await begun.has_head(self._door.silence_seconds)
        except TransportTimeoutError as error:
            await problem_for(error)(scope, receive, send)
            return
        if not is_there:
            return
        if self._door.is_draining:
            await Problem(503, "draining")(scope, begun.receive, send)
            return
        # Only now: whoever sends half a head, and proves nothing, keeps nobody else out.
        if not self._lane.slots.take():
            await Problem(429, "remote_busy")(scope, begun.receive, send)
            return
        await self._call(scope, begun.receive, send)

    def _refusal(self, headers: Headers) -> Problem | None:
        """Return why nothing of this request is read."""
        if self._door.is_draining:
            return Problem(503, "draining")
        try:
            body_bytes = declared_body_bytes(headers, limit_bytes=self._lane.max_body_bytes)
        except LimitExceededError as error:
            return problem_for(error)
        if body_bytes is None and not self._may_lack_length(headers):
            return Problem(411, "length_required")
        return None

    def _may_lack_length(self, headers: Headers) -> bool:
        if self._lane.is_session:
            return headers.get("transfer-encoding", "").lower() == "chunked"
        return self._route is Route.KEYSET and not {"content-length", "transfer-encoding"} & set(headers)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        inbound, outbound = Inbound(loop), Outbound(loop)
        over = start_call(self._door.cloud, self._route, inbound, outbound, self._lane.executor)
        # The slot is the worker's: a client that left does not make room for another call before its own has ended.
        over.add_done_callback(lambda _: self._lane.slots.give_back())
        feeder = _Feeder(receive, inbound, outbound, self._lane)
        sender = _Sender(outbound, send, self._lane.media_type, self._lane.silence_seconds)
        feeding = asyncio.create_task(feeder.run())
        is_gone = False
        try:
            ended = await sender.run()
            is_gone = ended.is_gone
        finally:
            inbound.abandon(is_lost=is_gone)
            outbound.abandon()
            feeding.cancel()
        await asyncio.wait({feeding})
        if ended.error is not None:
            await self._refuse(ended.error, sender, scope, receive, send, is_body_read=feeder.is_body_read)

    async def _refuse(
        self, error: BaseException, sender: _Sender, scope: Scope, receive: Receive, send: Send, *, is_body_read: bool
    ) -> None:
        if not isinstance(error, SplitInferError):
            report_internal_error(error)
        if sender.is_begun:
            report_broken_reply(error)
            _abort(scope)
        else:
            await problem_for(error, is_body_read=is_body_read)(scope, receive, send)


class _Begun:
    """The start of a body: what of it came while its head was waited for, and then the rest."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._held: deque[Message] = deque()

    async def has_head(self, seconds: float) -> bool:
        """Wait for a body's head, or for so much that it can have none; False where the client left.

        Raises TransportTimeoutError where that takes too long.
        """
        data = b""
        try:
            async with asyncio.timeout(seconds):
                while not _is_head(data):
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        return False
                    self._held.append(message)
                    data += message.get("body", b"")
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise TransportTimeoutError("the head of the body did not arrive in time") from None
        return True

    async def receive(self) -> Message:
        """Return the next message, those that came already first."""
        return self._held.popleft() if self._held else await self._receive()


def _is_head(data: bytes) -> bool:
    """Tell whether these bytes hold a head, or declare one that will be refused."""
    declared = int.from_bytes(data[:_PREFIX_BYTES], "big")
    return len(data) >= _PREFIX_BYTES and (declared > MAX_HEAD_BYTES or len(data) >= _PREFIX_BYTES + declared)


class _Sender:
    """Sends the reply as it comes; its last bytes once the call has ended well, so that a late failure shows."""

    def __init__(self, outbound: Outbound, send: Send, media_type: str, silence_seconds: float) -> None:
        self._outbound, self._send, self._media_type = outbound, send, media_type
        self._silence_seconds = silence_seconds
        self._left_bytes: int | None = 0
        self._last = b""
        self.is_begun = False

    async def run(self) -> Ended:
        """Send what comes and return how it ended; a client that takes nothing for too long ends it."""
        try:
            return await self._run()
        except TimeoutError:
            return Ended(TransportTimeoutError("the client did not take the reply in time"))

    async def _run(self) -> Ended:
        while not isinstance(event := await self._outbound.take(), Ended):
            if isinstance(event, Head):
                self.is_begun = True
                self._left_bytes = event.body_bytes
                await self._send_in_time(self._head(event))
            else:
                await self._body(event)
        if event.error is None and not event.is_gone:
            await self._send_in_time({"type": "http.response.body", "body": self._last, "more_body": False})
        return event

    async def _body(self, piece: bytes) -> None:
        if self._left_bytes is not None:
            self._left_bytes -= len(piece)
        if self._left_bytes == 0:
            self._last += piece
        else:
            await self._send_in_time({"type": "http.response.body", "body": piece, "more_body": True})

    def _head(self, head: Head) -> dict[str, object]:
        # A session's connection is closed by who ends it, so that the device can still speak after the head.
        length = {} if head.body_bytes is None else {"Content-Length": str(head.body_bytes)}
        fixed = _SESSION_HEADERS if head.body_bytes is None else FIXED_HEADERS
        headers = {**fixed, "Content-Type": self._media_type, **length}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": raw}

    async def _send_in_time(self, message: dict[str, object]) -> None:
        async with asyncio.timeout(self._silence_seconds):
            await self._send(message)


class _Feeder:
    """Moves the request body to the worker, and afterwards waits for the client to leave."""

    def __init__(self, receive: Receive, inbound: Inbound, outbound: Outbound, lane: Lane) -> None:
        self._receive, self._inbound, self._outbound = receive, inbound, outbound
        self._lane, self._silence_seconds = lane, lane.silence_seconds
        self._received_bytes = 0
        self.is_body_read = False

    async def run(self) -> None:
        """Feed the body; a client that sends nothing for too long, or leaves, ends the exchange."""
        began = time.monotonic()
        while not self.is_body_read:
            owed_seconds = time.monotonic() - began - self._silence_seconds
            if not self._lane.is_session and self._received_bytes < owed_seconds * _MIN_BYTES_PER_SECOND:
                self._outbound.end(Ended(TransportTimeoutError("the body arrives too slowly")))
                return
            try:
                async with asyncio.timeout(self._silence_seconds):
                    message = await self._receive()
            except TimeoutError:
                self._outbound.end(Ended(TransportTimeoutError("the body did not arrive in time")))
                return
            if message["type"] == "http.disconnect":
                break
            await self._feed(message["body"], is_last=not message["more_body"])
        else:
            await self._receive()
        self._outbound.end(Ended(None, is_gone=True))

    async def _feed(self, piece: bytes, *, is_last: bool) -> None:
        self.is_body_read = is_last
        self._received_bytes += len(piece)
        if self._received_bytes > self._lane.max_body_bytes:
            self._outbound.end(Ended(LimitExceededError(f"a body is above {self._lane.max_body_bytes} bytes")))
        elif piece:
            await self._inbound.feed(piece)
        if is_last:
            self._inbound.end()


def _abort(scope: Scope) -> None:
    # Without a protocol that offers it, a return without the last body message closes the connection early as well.
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()
