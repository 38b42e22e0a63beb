"""The HTTP client against raw sockets that misbehave: one typed error for each, and every byte counted."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from splitinfer.errors import (
    AuditLogError,
    RemoteBusyError,
    RemoteRefusedError,
    TransportError,
    TransportTimeoutError,
)
from splitinfer.handoff import ReleasedTransfer, Route
from splitinfer.transport.http import HttpTransport
from tests.support.http_exchange import CountingMeter, raw_server, read_all, read_request, released

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
OK_HEAD = OK + b"Content-Length: %d\r\n\r\n"


def reply(status: str, content_type: str, body: bytes, *extra: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *extra]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ask(answer: bytes, transfer: ReleasedTransfer | None = None) -> tuple[bytes, ReleasedTransfer]:
    transfer = transfer or released(b"body")

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    with raw_server(serve) as url:
        return read_all(HttpTransport(url, read_timeout_seconds=5).exchange(transfer)), transfer


def test_reply_bytes_are_returned_and_counted() -> None:
    data, transfer = ask(reply("200 OK", "application/octet-stream", b"x" * 200_000))
    assert data == b"x" * 200_000
    assert transfer.meter.received_bytes == 200_000  # type: ignore[attr-defined]


def test_request_head_is_the_fixed_template_and_nothing_else() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK_HEAD % 0)

    with raw_server(serve) as url:
        HttpTransport(url).exchange(released(b"ab", b"cd", replica_id="r-1")).close()
        host = url.removeprefix("http://")
    assert seen[0].decode().split("\r\n") == [
        "POST /v1/decode HTTP/1.1",
        f"Host: {host}",
        "Content-Length: 4",
        "Content-Type: application/octet-stream",
        "Accept: application/octet-stream",
        "User-Agent: splitinfer/1",
        "X-Splitinfer-Replica: r-1",
        "",
        "abcd",
    ]


def test_keyset_is_asked_for_and_accepted_as_json_only() -> None:
    transfer = released(route=Route.KEYSET)
    assert ask(reply("200 OK", "application/json", b"{}"), transfer)[0] == b"{}"
    with pytest.raises(TransportError, match="something other"):
        ask(reply("200 OK", "application/octet-stream", b"{}"), released(route=Route.KEYSET))


def test_replica_id_that_would_forge_a_header_is_refused() -> None:
    with raw_server(lambda _: None) as url, pytest.raises(TransportError, match="replica id"):
        HttpTransport(url).exchange(released(b"x", replica_id="r\r\nX-Evil: 1"))


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x01\x02 garbage\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n",
        reply("200 OK", "text/html", b"<html>login</html>"),
        reply("502 Bad Gateway", "text/html", b"<html>"),
        reply("429 Too Many", "text/html", b"<html>"),
        reply("302 Found", "application/octet-stream", b"", "Location: http://127.0.0.1:1/"),
        reply("200 OK", "application/octet-stream", b"x", "Content-Encoding: gzip"),
        OK + b"\r\nno length",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        OK + b"Content-Length: -1\r\n\r\nxx",
        OK + b"Content-Length: 1_0\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_answer_that_is_no_stream_is_a_transport_error(answer: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        ask(answer)
    assert type(caught.value) is TransportError


def test_redirect_is_not_followed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        location = f"Location: http://127.0.0.1:{other.getsockname()[1]}/"
        with pytest.raises(TransportError, match="HTTP 307"):
            ask(reply("307 Temporary Redirect", "text/plain", b"", location))
        with pytest.raises(TimeoutError):
            other.accept()


def test_refusal_gives_its_code() -> None:
    transfer = released(b"x")
    body = json.dumps({"code": "keyset_stale", "detail": "secret-detail"}).encode()
    with pytest.raises(RemoteRefusedError) as caught:
        ask(reply("422 Unprocessable", "application/problem+json", body), transfer)
    assert caught.value.remote_code == "keyset_stale"
    assert "secret-detail" not in str(caught.value)
    assert transfer.meter.received_bytes == len(body)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff\xff",
        b"{}",
        b'{"code": 7}',
        b'{"code": "UPPER"}',
        b'{"code": "replay\\n"}',
        b'{"code": "' + b"a" * 41 + b'"}',
        b"[" * 4096,
        b'{"code": "' + b"a" * 9000 + b'"}',
    ],
)
def test_refusal_with_an_unusable_code_is_unknown_and_read_to_4_kib_only(body: bytes) -> None:
    transfer = released(b"x")
    with pytest.raises(RemoteRefusedError) as caught:
        ask(reply("400 Bad", "application/problem+json", body), transfer)
    assert caught.value.remote_code == "unknown"
    assert transfer.meter.received_bytes <= 4096  # type: ignore[attr-defined]


def test_too_many_requests_is_busy() -> None:
    with pytest.raises(RemoteBusyError):
        ask(reply("429 Too Many", "application/problem+json", b'{"code":"remote_busy"}'))


def test_body_that_ends_early_raises_after_what_came() -> None:
    transfer = released(b"x")

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK_HEAD % 100 + b"x" * 60)

    with raw_server(serve) as url:
        answer = HttpTransport(url).exchange(transfer)
        view = memoryview(bytearray(60))
        got = 0
        while got < 60:
            got += answer.readinto(view[got:])
        with pytest.raises(TransportError, match="40 bytes before"):
            answer.readinto(view)
        answer.close()
        answer.close()
    assert transfer.meter.received_bytes == 60  # type: ignore[attr-defined]


def test_bytes_after_the_declared_length_are_not_read() -> None:
    assert ask(OK_HEAD % 3 + b"abcdef")[0] == b"abc"


def test_read_after_close_is_a_transport_error() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK_HEAD % 10 + b"abc")

    with raw_server(serve) as url:
        answer = HttpTransport(url).exchange(released(b"x"))
        answer.close()
        with pytest.raises(TransportError):
            answer.readinto(memoryview(bytearray(10)))


def test_frame_is_returned_before_the_buffer_is_full() -> None:
    go = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK_HEAD % 10 + b"abcde")
        go.wait(10)
        connection.sendall(b"fghij")

    with raw_server(serve) as url:
        answer = HttpTransport(url, read_timeout_seconds=5).exchange(released(b"x"))
        assert answer.readinto(memoryview(bytearray(4096))) == 5
        go.set()
        assert read_all(answer) == b"fghij"


def test_silent_cloud_times_out() -> None:
    release = threading.Event()

    def serve(connection: socket.socket) -> None:
        release.wait(10)

    with raw_server(serve) as url:
        with pytest.raises(TransportTimeoutError):
            HttpTransport(url, read_timeout_seconds=0.2).exchange(released(b"x"))
        release.set()


def test_cloud_that_falls_silent_in_its_reply_times_out() -> None:
    release = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK_HEAD % 10 + b"abc")
        release.wait(10)

    with raw_server(serve) as url:
        answer = HttpTransport(url, read_timeout_seconds=0.2).exchange(released(b"x"))
        with pytest.raises(TransportTimeoutError):
            read_all(answer)
        release.set()


def test_nobody_listening_is_a_transport_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError, match="ConnectionRefusedError"):
        HttpTransport(f"http://127.0.0.1:{port}").exchange(released(b"x"))


@pytest.mark.parametrize("mebibytes", [1, 64])
def test_refusal_sent_before_the_body_ends_is_heard_and_stops_the_pull(mebibytes: int) -> None:
    pulled = 0

    def body() -> Iterator[bytes]:
        nonlocal pulled
        for _ in range(mebibytes):
            pulled += 1
            yield b"x" * (1 << 20)
            time.sleep(0.01)

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(reply("413 Large", "application/problem+json", b'{"code":"limit_exceeded"}'))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with raw_server(serve) as url, pytest.raises(RemoteRefusedError) as caught:
        HttpTransport(url).exchange(ReleasedTransfer(Route.DECODE, mebibytes << 20, body(), "", CountingMeter()))
    assert caught.value.remote_code == "limit_exceeded"
    assert pulled < 32


def test_connection_reset_while_sending_is_a_transport_error() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1000)

    with raw_server(serve) as url, pytest.raises(TransportError):
        HttpTransport(url).exchange(released(*[b"x" * (1 << 20)] * 32))


def test_a_reply_before_the_whole_body_is_marked_early_and_nothing_more_is_pulled() -> None:
    pulled: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(OK_HEAD % 0)
        while connection.recv(1000):
            pass

    def body() -> Iterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            pulled.append(piece)
            yield piece
            time.sleep(0.3)

    with raw_server(serve) as url:
        reply = HttpTransport(url).exchange(ReleasedTransfer(Route.DECODE, 3, body(), "", CountingMeter()))
        is_early = reply.is_early
        reply.close()
    assert is_early
    assert len(pulled) < 3


@pytest.mark.parametrize("declared", [1, 7])
def test_body_that_differs_from_its_declared_length_is_refused(declared: int) -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(1000):
            pass

    with raw_server(serve) as url, pytest.raises(TransportError, match="declared length"):
        HttpTransport(url).exchange(released(b"abcd", body_bytes=declared))


def test_error_of_the_body_itself_passes_unchanged() -> None:
    def body() -> Iterator[bytes]:
        yield b"a"
        raise AuditLogError("the disk is full")

    def serve(connection: socket.socket) -> None:
        while connection.recv(1000):
            pass

    with raw_server(serve) as url, pytest.raises(AuditLogError, match="disk"):
        HttpTransport(url).exchange(ReleasedTransfer(Route.DECODE, 2, body(), "", CountingMeter()))


def test_each_piece_is_sent_before_the_next_is_pulled() -> None:
    buffer = bytearray(3 << 20)

    def body() -> Iterator[memoryview]:
        for value in range(4):
            buffer[:] = bytes([value]) * len(buffer)
            yield memoryview(buffer)

    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection).partition(b"\r\n\r\n")[2])
        connection.sendall(OK_HEAD % 0)

    with raw_server(serve) as url:
        transfer = ReleasedTransfer(Route.DECODE, 4 * len(buffer), body(), "", CountingMeter())
        HttpTransport(url).exchange(transfer).close()
    assert seen[0] == b"".join(bytes([value]) * len(buffer) for value in range(4))


@pytest.mark.parametrize(
    "url", ["http://cloud.example", "http://192.0.2.1:80", "ftp://127.0.0.1", "https://user:pw@host", "https://h/x", ""]
)
def test_address_that_is_not_safe_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(TransportError) as caught:
        HttpTransport(url)
    assert "pw" not in str(caught.value)


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(reply("200 OK", "application/octet-stream", b"x"))[0] == b"x"
