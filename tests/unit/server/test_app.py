"""The door over real sockets: what it refuses before a body is read, how it maps errors, what it logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from server.app import create_app
from server.settings import ServerSettings
from splitinfer.errors import RemoteBusyError, RemoteRefusedError, TransportError
from splitinfer.handoff import CloudReply, ReleasedTransfer, Route, Source
from splitinfer.transport.http import HttpTransport
from tests.support.echo_cloud import KEYSET, EchoCloud, command
from tests.support.http_exchange import CountingMeter, Served, raw_request, read_all, released, served


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with served(EchoCloud(), max_body_bytes=100_000_000) as opened:
        yield opened


def post(body: bytes, *headers: str, path: str = "/v1/decode") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), headers, body


@pytest.mark.parametrize("size", [0, 1, 511, 1 << 20, 5_000_003])
def test_body_and_reply_pass_unchanged(door: Served, size: int) -> None:
    body = bytes(range(251)) * (size // 251) + b"z" * (size % 251)
    transfer = released(command(f"echo {size}"), body)
    reply = HttpTransport(door.url).exchange(transfer)
    assert reply.body_bytes == size
    assert read_all(reply) == body
    assert transfer.meter.received_bytes == size  # type: ignore[attr-defined]


def test_keyset_is_json_and_no_store(door: Served) -> None:
    assert read_all(HttpTransport(door.url).exchange(released(route=Route.KEYSET))) == KEYSET
    status, headers, body = parts(raw_request(door.port, b"GET /v1/keyset HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (status, body) == (200, KEYSET)
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_health_says_ok_and_nothing_else(door: Served) -> None:
    status, _, body = parts(raw_request(door.port, b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (status, json.loads(body)) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("manifest", 400),
        ("truncated", 400),
        ("usage", 400),
        ("layout_mismatch", 400),
        ("authentication", 401),
        ("egress_denied", 403),
        ("replay", 409),
        ("limit_exceeded", 413),
        ("keyset_stale", 422),
        ("model_mismatch", 422),
        ("remote_busy", 429),
    ],
)
def test_refusal_is_a_problem_with_a_code_only(door: Served, code: str, status: int) -> None:
    got, headers, body = parts(raw_request(door.port, post(command(f"refuse {code}"))))
    assert (got, headers["content-type"]) == (status, "application/problem+json")
    assert set(json.loads(body)) == {"type", "title", "status", "code"}
    assert json.loads(body)["code"] == code
    assert b"canary" not in body
    assert ("retry-after" in headers) == (status == 429)


@pytest.mark.parametrize("text", ["crash word-canary", "refuse state", "refuse audit_log"])
def test_the_servers_own_failure_is_internal(door: Served, text: str) -> None:
    status, _, body = parts(raw_request(door.port, post(command(text))))
    assert (status, json.loads(body)["code"]) == (500, "internal")


@pytest.mark.parametrize("text", ["late replay 1000", "break 1000", "short 1000", "late replay 3000000"])
def test_failure_after_the_reply_began_is_never_a_clean_end(door: Served, text: str) -> None:
    reply = HttpTransport(door.url).exchange(released(command(text)))
    with pytest.raises(TransportError):
        read_all(reply)


def test_refusal_of_a_large_body_is_heard(door: Served) -> None:
    with pytest.raises(RemoteRefusedError) as caught:
        HttpTransport(door.url).exchange(released(command("refuse replay"), *[b"x" * (1 << 20)] * 64))
    assert caught.value.remote_code == "replay"


def test_refused_client_that_sends_on_is_not_reset(door: Served) -> None:
    status, _, body = parts(raw_request(door.port, post(command("refuse replay") + b"x" * 20_000_000)))
    assert (status, json.loads(body)["code"]) == (409, "replay")


def test_length_above_the_limit_is_refused_before_the_body(door: Served) -> None:
    request = b"POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: 100000001\r\n\r\n"
    status, _, body = parts(raw_request(door.port, request))
    assert (status, json.loads(body)["code"]) == (413, "limit_exceeded")


def test_body_for_a_keyset_is_refused(door: Served) -> None:
    status, _, _ = parts(raw_request(door.port, b"GET /v1/keyset HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"))
    assert status == 413


@pytest.mark.parametrize("rest", [b"", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"])
def test_body_without_a_declared_length_is_refused(door: Served, rest: bytes) -> None:
    request = b"POST /v1/decode HTTP/1.1\r\nHost: x\r\n" + rest + b"\r\n"
    status, _, body = parts(raw_request(door.port, request))
    assert (status, json.loads(body)["code"]) == (411, "length_required")


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/redoc", "/v1/keyset/", "/v1/transfers/1"])
def test_there_is_no_other_route(door: Served, path: str) -> None:
    status, headers, body = parts(raw_request(door.port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    assert (status, json.loads(body)["code"]) == (404, "not_found")
    assert "location" not in headers


def test_wrong_method_is_refused_and_no_other_origin_is_allowed(door: Served) -> None:
    request = b"OPTIONS /v1/decode HTTP/1.1\r\nHost: x\r\nOrigin: https://evil\r\n\r\n"
    status, headers, body = parts(raw_request(door.port, request))
    assert (status, json.loads(body)["code"]) == (405, "method_not_allowed")
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize("request_bytes", [b"\x16\x03\x01garbage\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_garbage_is_refused(door: Served, request_bytes: bytes) -> None:
    assert parts(raw_request(door.port, request_bytes))[0] == 400


def test_request_head_without_end_is_cut_off(door: Served) -> None:
    request = b"GET /v1/health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000_000
    with (
        socket.create_connection(("127.0.0.1", door.port)) as connection,
        pytest.raises((BrokenPipeError, ConnectionResetError)),
    ):
        connection.sendall(request)


def test_transfers_above_the_limit_are_refused_at_once_and_keysets_are_not() -> None:
    cloud = EchoCloud()
    with served(cloud, max_transfers=1) as door:
        held = HttpTransport(door.url).exchange(released(command("hold 10")))
        began = time.monotonic()
        with pytest.raises(RemoteBusyError):
            HttpTransport(door.url).exchange(released(command("make 1"), *[b"x" * (1 << 20)] * 40))
        assert time.monotonic() - began < 5
        assert read_all(HttpTransport(door.url).exchange(released(route=Route.KEYSET))) == KEYSET
        cloud.go.set()
        assert len(read_all(held)) == 20
        for _ in range(20):
            assert len(read_all(HttpTransport(door.url).exchange(released(command("make 1"))))) == 1


@pytest.mark.parametrize("start", [b"", b"\0", b"\0\0\x40\0" + b"{" * 16_000])
@pytest.mark.parametrize("path", ["/v1/prefill", "/v1/transfers/state"])
def test_half_a_head_takes_no_slot(start: bytes, path: str) -> None:
    with served(EchoCloud(), max_transfers=1) as door, contextlib.ExitStack() as opened:
        for _ in range(20):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", door.port)))
            declared = 4000 if path.endswith("state") else 100_000
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {declared}\r\n\r\n"
            connection.sendall(head.encode() + start[: declared - 1])
        time.sleep(0.3)
        status, _, _ = parts(raw_request(door.port, post(command("make 1"), path=path)))
        assert status == 200


def test_a_door_that_drains_while_a_head_is_awaited_refuses() -> None:
    app = create_app(EchoCloud(), ServerSettings())

    async def ask() -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            app.state.door.is_draining = True
            return {"type": "http.request", "body": command("make 1"), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", str(len(command("make 1"))).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/prefill", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(ask()) == 503


def test_silence_within_the_head_of_a_body_is_a_timeout() -> None:
    with served(EchoCloud(), read_timeout_seconds=0.3) as door:
        status, _, body = parts(raw_request(door.port, post(b"\0\0\x10\0" + b"x" * 100)[:-50]))
        assert (status, json.loads(body)["code"]) == (408, "transport_timeout")


def test_silence_within_the_body_is_a_timeout() -> None:
    cloud = EchoCloud()
    with served(cloud, read_timeout_seconds=0.3) as door:
        request = post(command("make 1") + b"x" * 100)[:-50]
        status, _, body = parts(raw_request(door.port, request))
        assert (status, json.loads(body)["code"]) == (408, "transport_timeout")
        assert cloud.truncated.wait(5)


def test_connections_above_the_limit_are_cut_off() -> None:
    with served(EchoCloud(), max_connections=1) as door, socket.create_connection(("127.0.0.1", door.port)):
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", door.port), timeout=5) as second:
            assert second.recv(10) == b""


def test_draining_door_refuses_and_says_so() -> None:
    app = create_app(EchoCloud(), ServerSettings())
    app.state.door.is_draining = True
    for method, path, expected in (
        ("POST", "/v1/decode", {"code": "draining"}),
        ("GET", "/v1/keyset", {"code": "draining"}),
        ("GET", "/v1/health", {"status": "draining"}),
    ):
        status, body = asyncio.run(ask_without_socket(app, method, path))
        assert status == 503
        assert expected.items() <= json.loads(body).items()


async def ask_without_socket(app: FastAPI, method: str, path: str) -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


def test_silence_within_the_head_is_cut_off() -> None:
    with served(EchoCloud(), read_timeout_seconds=0.3) as door:
        assert raw_request(door.port, b"GET /v1/health HTTP/1.1\r\n") == b""


def test_client_that_leaves_within_its_body_ends_the_read() -> None:
    cloud = EchoCloud()
    with served(cloud) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as connection:
            connection.sendall(post(command("make 1") + b"x" * 100)[:-50])
            assert cloud.reading.wait(5)
        assert cloud.truncated.wait(5)


def test_client_that_leaves_within_the_reply_closes_the_generator() -> None:
    cloud = EchoCloud()
    with served(cloud, max_transfers=1) as door:
        reply = HttpTransport(door.url).exchange(released(command("make 500000000")))
        reply.readinto(memoryview(bytearray(10)))
        assert not cloud.closed.is_set()
        reply.close()
        assert cloud.closed.wait(5)


def test_client_that_never_reads_is_cut_off() -> None:
    cloud = EchoCloud()
    with served(cloud, read_timeout_seconds=0.3) as door:
        reply = HttpTransport(door.url).exchange(released(command("make 500000000")))
        assert cloud.closed.wait(10)
        with pytest.raises(TransportError):
            read_all(reply)


class SlowCloud:
    """Reads nothing until told to; counts nothing else."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def handle(self, _route: Route, body: Source) -> CloudReply:
        self.go.wait(20)
        view = memoryview(bytearray(1 << 20))
        while body.readinto(view):
            pass
        return CloudReply(1, iter([b"x"]))


def test_slow_cloud_holds_the_client_up() -> None:
    cloud, sent = SlowCloud(), []

    def body() -> Iterator[bytes]:
        for index in range(64):
            sent.append(index)
            yield b"x" * (1 << 20)

    with served(cloud) as door:
        transfer = ReleasedTransfer(Route.DECODE, 64 << 20, body(), "", CountingMeter())
        thread = threading.Thread(target=lambda: read_all(HttpTransport(door.url).exchange(transfer)))
        thread.start()
        time.sleep(0.5)
        assert len(sent) < 40
        cloud.go.set()
        thread.join(20)
        assert len(sent) == 64


def test_log_has_one_line_a_request_and_nothing_that_was_sent(capfd: pytest.CaptureFixture[str]) -> None:
    canary = "canary-7f3a"
    with served(EchoCloud(), max_transfers=1) as door:
        read_all(HttpTransport(door.url).exchange(released(command("echo 11"), canary.encode())))
        raw_request(
            door.port, post(command(f"crash {canary}"), f"Authorization: {canary}", path=f"/v1/decode?{canary}")
        )
        raw_request(door.port, f"GET /{canary} HTTP/1.1\r\nHost: {canary}\r\n\r\n".encode())
        raw_request(door.port, f"{canary} / HTTP/1.1\r\n\r\n".encode())
        raw_request(door.port, post(command("refuse replay"), f"X-Splitinfer-Replica: {canary}"))
        with pytest.raises(TransportError):
            read_all(HttpTransport(door.url).exchange(released(command("late replay 5"), canary.encode())))
    lines = door.log.getvalue().splitlines()
    output = "".join(capfd.readouterr())
    assert "canary" not in door.log.getvalue() + output
    requests = [line for line in lines if "request=" in line]
    assert [line.split('route="')[1].split('"')[0] for line in requests] == [
        "POST /v1/decode",
        "POST /v1/decode",
        "other",
        "POST /v1/decode",
        "POST /v1/decode",
    ]
    assert "status=200 outcome=complete in_bytes=75 out_bytes=11" in requests[0]
    assert "outcome=aborted" in requests[-1]
    assert any("internal error of type RuntimeError" in line for line in lines)
