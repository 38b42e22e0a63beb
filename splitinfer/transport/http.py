"""The device's one HTTP client: ReleasedTransfer -> Reply; device side, no tensor.

One connection per exchange or session, a fixed header template, no redirect, no proxy, no environment variable. Every
body byte that comes back is counted by the transfer's meter.
"""

from __future__ import annotations

import json
import re
import select
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

from splitinfer.errors import RemoteBusyError, RemoteRefusedError, TransportError, TransportTimeoutError
from splitinfer.handoff import Link, Meter, ReleasedTransfer, Reply, Route
from splitinfer.transport.tls import client_context
from trust_models.remote_url import check_url

__all__ = ["HttpTransport"]

_STREAM, _JSON, _PROBLEM = "application/octet-stream", "application/json", "application/problem+json"
_PROBLEM_BYTES = 4096
_CODE = re.compile(r"[a-z_]{1,40}")
_LENGTH = re.compile(r"[0-9]{1,18}")
_REPLICA_ID = re.compile(r"[!-~]{1,128}")
_LOST = "the connection to the cloud was lost"
_NOT_OURS = "the cloud answered with something other than a splitinfer stream; check the address of the remote"


class HttpTransport:
    """Send released transfers to one address, `https://HOST[:PORT]`, or `http://` to this machine.

    Raises TransportError for an address, a CA file or a TLS set-up that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        tls_ca: Path | None = None,
        connect_timeout_seconds: float = 5.0,
        read_timeout_seconds: float = 60.0,
        session_timeout_seconds: float = 600.0,
    ) -> None:
        try:
            parts = urlsplit(check_url(url))
        except ValueError as error:
            raise TransportError(str(error)) from None
        self._host, self._port, self._netloc = parts.hostname or "", parts.port, parts.netloc
        self._tls = client_context(tls_ca) if parts.scheme == "https" else None
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._session_timeout_seconds = session_timeout_seconds

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        """Send the body, then return the reply once its head arrived with status 200.

        Raises TransportError and its kinds; an error raised by `transfer.body` itself passes unchanged.
        """
        connection = self._connection()
        try:
            self._send_head(connection, transfer)
            is_sent = _send_body(connection, transfer)
            with _foreign_errors():
                response = connection.getresponse()
            return _accept(response, connection, transfer, is_sent=is_sent)
        except BaseException:
            connection.close()
            raise

    def connect(self, transfer: ReleasedTransfer) -> Link:
        """Open a session's connection and send its head; raises TransportError and its kinds."""
        connection = self._connection()
        try:
            self._send_head(connection, transfer)
            connection.sock.settimeout(self._session_timeout_seconds)
        except BaseException:
            connection.close()
            raise
        return _HttpLink(connection, transfer)

    def _connection(self) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(self._host, self._port, timeout=self._connect_timeout_seconds)
        return HTTPSConnection(self._host, self._port, timeout=self._connect_timeout_seconds, context=self._tls)

    def _send_head(self, connection: HTTPConnection, transfer: ReleasedTransfer) -> None:
        method, path = transfer.route.value.split(" ")
        with _foreign_errors():
            connection.connect()  # http.client sets TCP_NODELAY
            connection.sock.settimeout(self._read_timeout_seconds)
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._headers(transfer):
                connection.putheader(name, value)
            connection.endheaders()

    def _headers(self, transfer: ReleasedTransfer) -> Iterator[tuple[str, str]]:
        yield "Host", self._netloc
        if transfer.route is Route.SESSION:
            yield "Transfer-Encoding", "chunked"
        else:
            yield "Content-Length", str(transfer.body_bytes)
        yield "Content-Type", _STREAM
        yield "Accept", _reply_type(transfer.route)
        yield "User-Agent", "splitinfer/1"
        if transfer.replica_id:
            if not _REPLICA_ID.fullmatch(transfer.replica_id):
                raise TransportError("the replica id cannot stand in a header; expected printable ASCII without blanks")
            yield "X-Splitinfer-Replica", transfer.replica_id


class _HttpReply:
    """A reply body of declared length, read straight into the caller's memory."""

    def __init__(
        self, response: HTTPResponse, connection: HTTPConnection, meter: Meter, body_bytes: int, *, is_early: bool
    ) -> None:
        self._response, self._connection, self._meter = response, connection, meter
        self._body_bytes = self._left_bytes = body_bytes
        self._is_early = is_early

    @property
    def body_bytes(self) -> int | None:
        """Return the declared Content-Length."""
        return self._body_bytes

    @property
    def is_early(self) -> bool:
        """Tell whether the cloud answered before it had the whole body."""
        return self._is_early

    def readinto(self, buffer: memoryview) -> int:
        """Read what has arrived, up to len(buffer) bytes; 0 at the end. Raise TransportError where bytes lack."""
        view = buffer[: self._left_bytes]
        if not view:
            return 0
        if self._response.isclosed():
            raise TransportError(f"{_LOST}: the reply was closed before its end")
        with _foreign_errors():
            # readinto1 returns what is there; readinto would hold back a frame until the whole buffer is full.
            count = self._response.fp.readinto1(view)
        if count == 0:
            raise TransportError(f"{_LOST}: the reply ended {self._left_bytes} bytes before its declared length")
        self._meter.received(view[:count])
        self._left_bytes -= count
        return count

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._response.close()
        self._connection.close()


class _HttpLink:
    """A session's connection: request and reply body grow at the same time, both in chunked transfer coding."""

    def __init__(self, connection: HTTPConnection, transfer: ReleasedTransfer) -> None:
        self._connection, self._transfer = connection, transfer
        self._pieces = iter(transfer.body)
        self._response: HTTPResponse | None = None
        self._is_cut_off = False

    def send(self) -> None:
        """Pull one piece and send it; where the cloud hung up, nothing is pulled, and what it said is read next."""
        if self._is_cut_off:
            return
        piece = next(self._pieces, None)
        if piece is None:
            raise TransportError("there is nothing more to send in this session")
        view = memoryview(piece).cast("B")
        framed = b"".join((f"{len(view):x}\r\n".encode(), view, b"\r\n"))
        self._is_cut_off = not _send_piece(self._connection, memoryview(framed))

    def readinto(self, buffer: memoryview) -> int:
        """Read what has arrived, up to len(buffer) bytes; raises TransportError where the cloud ended the session."""
        if self._response is None:
            self._response = self._accepted()
        with _foreign_errors():
            data = self._response.read1(len(buffer))
        if not data:
            raise TransportError(f"{_LOST}: the cloud ended the session")
        buffer[: len(data)] = data
        self._transfer.meter.received(data)
        return len(data)

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _accepted(self) -> HTTPResponse:
        with _foreign_errors():
            response = self._connection.getresponse()
        content_type = response.headers.get("Content-Type", "").lower()
        if response.status != 200 and content_type == _PROBLEM:
            raise _refusal(response, self._transfer.meter)
        if response.status != 200 or content_type != _STREAM or "Content-Encoding" in response.headers:
            raise TransportError(f"{_NOT_OURS} (HTTP {response.status})")
        return response


def _send_body(connection: HTTPConnection, transfer: ReleasedTransfer) -> bool:
    """Send every piece before the next is pulled; return False where the cloud answered or hung up before the end.

    A piece is pulled, and so counted, only when it is about to be sent.
    """
    left_bytes, pieces = transfer.body_bytes, iter(transfer.body)
    while not (left_bytes and _has_answered(connection)):
        piece = next(pieces, None)
        if piece is None:
            break
        view = memoryview(piece).cast("B")
        left_bytes -= len(view)
        if left_bytes < 0:
            raise TransportError("the released body is longer than its declared length; nothing more was sent")
        if not _send_piece(connection, view):
            return False
    else:
        return False
    if left_bytes:
        raise TransportError(f"the released body ended {left_bytes} bytes before its declared length")
    return True


def _send_piece(connection: HTTPConnection, view: memoryview) -> bool:
    with _foreign_errors():
        try:
            connection.sock.sendall(view)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            return False
    return True


def _has_answered(connection: HTTPConnection) -> bool:
    # Under TLS 1.3 a readable socket may hold session tickets only, so there the broken pipe has to tell.
    if isinstance(connection.sock, ssl.SSLSocket):
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _accept(response: HTTPResponse, connection: HTTPConnection, transfer: ReleasedTransfer, *, is_sent: bool) -> Reply:
    try:
        content_type = response.headers.get("Content-Type", "").lower()
        if response.status != 200 and content_type == _PROBLEM:
            raise _refusal(response, transfer.meter)
        length = _declared_length(response)
        is_encoded = "Content-Encoding" in response.headers
        if response.status != 200 or content_type != _reply_type(transfer.route) or length is None or is_encoded:
            raise TransportError(f"{_NOT_OURS} (HTTP {response.status})")
    except TransportError:
        response.close()
        raise
    return _HttpReply(response, connection, transfer.meter, length, is_early=not is_sent)


def _declared_length(response: HTTPResponse) -> int | None:
    lengths = response.headers.get_all("Content-Length", [])
    if "Transfer-Encoding" in response.headers or len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        return None
    return int(lengths[0])


def _refusal(response: HTTPResponse, meter: Meter) -> TransportError:
    with _foreign_errors():
        body = response.read(_PROBLEM_BYTES)
    meter.received(body)
    code = _problem_code(body)
    if response.status == 429:
        return RemoteBusyError("the cloud is at its limit of concurrent transfers; try again later")
    return RemoteRefusedError(f"the cloud refused the request: {code} (HTTP {response.status})", remote_code=code)


def _problem_code(body: bytes) -> str:
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return "unknown"
    code = problem.get("code") if isinstance(problem, dict) else None
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "unknown"


def _reply_type(route: Route) -> str:
    return _JSON if route in {Route.KEYSET, Route.STATE} else _STREAM


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Turn every error of sockets, TLS and http.client into a TransportError; their texts may hold wire bytes."""
    try:
        yield
    except TimeoutError:
        raise TransportTimeoutError("the cloud did not answer in time") from None
    except ssl.SSLCertVerificationError:
        raise TransportError("the cloud's TLS certificate is not trusted; name its CA file as tls_ca") from None
    except ssl.SSLError:
        raise TransportError("TLS with the cloud failed; it must speak TLS 1.3") from None
    except (ConnectionError, OSError) as error:
        raise TransportError(f"{_LOST} or could not be made ({type(error).__name__})") from None
    except IncompleteRead:
        # A body in chunks that ends without its last chunk: the cloud closed inside a session.
        raise TransportError(f"{_LOST}: the reply was closed before its end") from None
    except (HTTPException, ValueError):
        raise TransportError(_NOT_OURS) from None
