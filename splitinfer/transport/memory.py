"""The in-memory twin of the HTTP transport: ReleasedTransfer -> any Cloud -> Reply; both sides in one process.

It counts, bounds and maps errors as the HTTP pair does, so that what holds over it holds over the network.
"""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer.errors import RemoteBusyError, RemoteRefusedError, SplitInferError, TransportError, TruncatedError
from splitinfer.handoff import Cloud, CloudReply, Link, Meter, ReleasedTransfer, Reply

__all__ = ["MemoryTransport"]

_LOST = "the connection to the cloud was lost"


class MemoryTransport:
    """Hand released transfers to a `Cloud` in this process."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        """Let the cloud pull the body, then return its reply.

        Raises RemoteBusyError or RemoteRefusedError for what the cloud raises, TransportError where it says that the
        body's connection was lost; an error raised by `transfer.body` itself passes unchanged.
        """
        source = _BodySource(transfer)
        try:
            reply = _MemoryReply(self._cloud.handle(transfer.route, source), transfer.meter, source)
            reply.start()
        except (RemoteBusyError, RemoteRefusedError) as error:
            raise source.failure or _refusal(error) from None
        except TransportError:
            raise source.failure or TransportError(_LOST) from None
        except SplitInferError as error:
            raise source.failure or _refusal(error) from None
        return reply

    def connect(self, transfer: ReleasedTransfer) -> Link:
        """Open a session with the cloud, which works when the link is read."""
        return _MemoryLink(self._cloud, transfer)


class _MemoryLink:
    """A session with a `Cloud` in this process: what was sent waits here until the cloud asks for it."""

    def __init__(self, cloud: Cloud, transfer: ReleasedTransfer) -> None:
        self._cloud, self._transfer = cloud, transfer
        self._pieces = iter(transfer.body)
        self._sent = bytearray()
        self._body: Iterator[memoryview | bytes] | None = None
        self._answer = memoryview(b"")
        self._is_closed = False

    def send(self) -> None:
        """Pull one piece and keep it for the cloud."""
        piece = next(self._pieces, None)
        if piece is None:
            raise TransportError("there is nothing more to send in this session")
        self._sent += memoryview(piece).cast("B")

    def readinto(self, buffer: memoryview) -> int:
        """Let the cloud answer and read of it; raises TransportError where it ended the session."""
        while not self._answer:
            self._answer = memoryview(self._next()).cast("B")
        count = min(len(buffer), len(self._answer))
        buffer[:count] = self._answer[:count]
        self._answer = self._answer[count:]
        self._transfer.meter.received(buffer[:count])
        return count

    def close(self) -> None:
        """Close the cloud's generator, so that it can erase; idempotent."""
        self._is_closed = True
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    def _next(self) -> memoryview | bytes:
        if self._is_closed:
            raise TransportError(_LOST)
        try:
            if self._body is None:
                self._body = self._cloud.handle(self._transfer.route, _SentSource(self._sent)).body
            piece = next(self._body, None)
        except TransportError:
            raise TransportError(_LOST) from None
        except SplitInferError as error:
            if self._body is None:
                raise _refusal(error) from None
            raise TransportError(_LOST) from None
        if piece is None:
            raise TransportError(f"{_LOST}: the cloud ended the session")
        return piece


class _SentSource:
    """What a link has sent, as a Source; asking for more than that is the connection's end."""

    def __init__(self, sent: bytearray) -> None:
        self._sent = sent

    def readinto(self, buffer: memoryview) -> int:
        """Take up to len(buffer) of the bytes that were sent."""
        if not self._sent:
            raise TransportError(_LOST)
        count = min(len(buffer), len(self._sent))
        buffer[:count] = self._sent[:count]
        del self._sent[:count]
        return count


class _BodySource:
    """The released body as a Source; remembers the device's own failure, so that it is not taken for a refusal."""

    def __init__(self, transfer: ReleasedTransfer) -> None:
        self.failure: SplitInferError | None = None
        self._pieces = iter(transfer.body)
        self.left_bytes = transfer.body_bytes
        self._piece = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        """Read up to len(buffer) bytes; 0 at the end. Raise TruncatedError where the body misses its length."""
        while not self._piece and buffer and self._next():
            pass
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def _next(self) -> bool:
        try:
            piece = next(self._pieces, None)
        except SplitInferError as error:
            self.failure = error
            raise TruncatedError("the body ended early") from None
        self._piece = memoryview(b"" if piece is None else piece).cast("B")
        self.left_bytes -= len(self._piece)
        if self.left_bytes < 0 or (piece is None and self.left_bytes):
            self.failure = TransportError("the released body differs from its declared length")
            raise TruncatedError("the body differs from its declared length")
        return piece is not None


class _MemoryReply:
    """The cloud's reply body, counted as it is read."""

    def __init__(self, reply: CloudReply, meter: Meter, source: _BodySource) -> None:
        self._source = source
        self._body_bytes = self._left_bytes = reply.body_bytes or 0
        self._body: Iterator[memoryview | bytes] = reply.body
        self._meter = meter
        self._piece = memoryview(b"")
        self._is_closed = False

    @property
    def body_bytes(self) -> int | None:
        """Return the reply's declared length."""
        return self._body_bytes

    @property
    def is_early(self) -> bool:
        """Tell whether the cloud answered before it had the whole body."""
        return self._source.left_bytes > 0

    def start(self) -> None:
        """Pull the first piece: what fails before it is still a refusal."""
        try:
            self._piece = memoryview(next(self._body, b"")).cast("B")
        except BaseException:
            self.close()
            raise

    def readinto(self, buffer: memoryview) -> int:
        """Read up to len(buffer) bytes; 0 at the end. Raise TransportError where bytes are missing."""
        view = buffer[: self._left_bytes]
        if not view:
            return 0
        if self._is_closed:
            raise TransportError("the reply was closed before its end")
        while not self._piece:
            self._next()
        count = min(len(view), len(self._piece))
        view[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        if count == self._left_bytes:
            self._finish()
        self._meter.received(view[:count])
        self._left_bytes -= count
        return count

    def close(self) -> None:
        """Close the cloud's generator, so that it can erase; idempotent."""
        self._is_closed = True
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    def _next(self) -> None:
        piece = self._pull()
        if piece is None:
            raise TransportError(f"the reply ended {self._left_bytes} bytes before its declared length")
        self._piece = memoryview(piece).cast("B")

    def _finish(self) -> None:
        # The HTTP door lets the generator end before it hands over the last bytes, so a late failure shows here too.
        while (piece := self._pull()) is not None or self._piece:
            if piece or self._piece:
                raise TransportError("the reply goes on after its declared length")

    def _pull(self) -> memoryview | bytes | None:
        try:
            return next(self._body, None)
        except SplitInferError:
            raise TransportError(_LOST) from None


def _refusal(error: SplitInferError) -> TransportError:
    if isinstance(error, RemoteBusyError):
        return RemoteBusyError("the cloud is at its limit of concurrent transfers; try again later")
    return RemoteRefusedError(f"the cloud refused the request: {error.code}", remote_code=error.code)
