"""A client that leaves is a lost source to the cloud, one that dawdles is not; the two calls have their own doors."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from server.bridge import Inbound
from splitinfer.errors import RemoteRefusedError, TransportError, TruncatedError
from splitinfer.handoff import CloudReply, Route, Source
from splitinfer.transport.http import HttpTransport
from tests.support.http_exchange import read_all, released, served

STARTED = b"POST /v1/decode HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 100


class Reading:
    """Reads every body to its end and notes what ended it."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.seen: list[Route] = []

    def handle(self, route: Route, body: Source) -> CloudReply:
        self.seen.append(route)
        self.begun.set()
        view = memoryview(bytearray(1 << 16))
        try:
            while body.readinto(view):
                pass
        except (TransportError, TruncatedError) as error:
            self.error = error
            self.ended.set()
            raise
        return CloudReply(2, iter([b"{}"]))


def test_client_that_leaves_within_its_body_is_a_lost_source_and_its_slot_is_free_again() -> None:
    cloud = Reading()
    with served(cloud, max_transfers=1) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as connection:
            connection.sendall(STARTED)
            assert cloud.begun.wait(20)
        assert cloud.ended.wait(20)
        assert isinstance(cloud.error, TransportError)
        assert read_all(HttpTransport(door.url).exchange(released(b"x", route=Route.RESUME))) == b"{}"


def test_client_that_is_too_slow_is_no_lost_source() -> None:
    cloud = Reading()
    with (
        served(cloud, read_timeout_seconds=0.3) as door,
        socket.create_connection(("127.0.0.1", door.port)) as connection,
    ):
        connection.sendall(STARTED)
        assert cloud.ended.wait(20)
    assert isinstance(cloud.error, TruncatedError)


def test_a_state_is_asked_for_beside_the_transfers_and_within_its_own_limit() -> None:
    cloud = Reading()
    with served(cloud, max_transfers=1) as door, socket.create_connection(("127.0.0.1", door.port)) as connection:
        connection.sendall(STARTED)
        assert cloud.begun.wait(20)
        transport = HttpTransport(door.url)
        assert read_all(transport.exchange(released(b"x" * 4096, route=Route.STATE))) == b"{}"
        with pytest.raises(RemoteRefusedError) as caught:
            transport.exchange(released(b"x" * 4097, route=Route.STATE))
        assert caught.value.remote_code == "limit_exceeded"
    assert cloud.seen == [Route.DECODE, Route.STATE]


def test_the_log_names_the_two_calls() -> None:
    with served(Reading()) as door:
        for route in (Route.STATE, Route.RESUME):
            read_all(HttpTransport(door.url).exchange(released(b"x", route=route)))
    log = door.log.getvalue()
    assert 'route="POST /v1/transfers/state"' in log
    assert 'route="POST /v1/transfers/resume"' in log


@pytest.mark.parametrize(("is_lost", "first"), [(True, b"abc"), (False, None)])
def test_what_a_client_sent_before_it_left_is_still_read(*, is_lost: bool, first: bytes | None) -> None:
    async def run() -> list[bytes | None]:
        inbound = Inbound(asyncio.get_running_loop())
        await inbound.feed(b"abc")
        inbound.abandon(is_lost=is_lost)
        return [read(inbound, TransportError if is_lost else TruncatedError) for _ in range(3)]

    assert asyncio.run(run()) == [first, None, None]


def read(inbound: Inbound, expected: type[Exception]) -> bytes | None:
    buffer = bytearray(10)
    try:
        return bytes(buffer[: inbound.readinto(memoryview(buffer))])
    except expected:
        return None
