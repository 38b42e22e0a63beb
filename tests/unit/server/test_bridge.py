"""The bridge between a blocking cloud and the loop: both queues hold the faster side up; either can be abandoned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.bridge import Ended, Event, Head, Inbound, Outbound, start_call
from splitinfer.errors import TruncatedError
from splitinfer.handoff import CloudReply, Route, Source


class FixedCloud:
    """Replies with given pieces of one reused buffer, whatever it is asked; tells which thread ended its generator."""

    def __init__(self, pieces: list[bytes], *, body_bytes: int | None = None) -> None:
        self.pieces = pieces
        self.body_bytes = sum(map(len, pieces)) if body_bytes is None else body_bytes
        self.pulled = 0
        self.threads: list[str] = []

    def handle(self, _route: Route, _body: Source) -> CloudReply:
        return CloudReply(self.body_bytes, self._body())

    def _body(self) -> Iterator[memoryview]:
        buffer = bytearray(max(map(len, self.pieces), default=0))
        try:
            for piece in self.pieces:
                self.pulled += 1
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
        finally:
            self.threads.append(threading.current_thread().name)


def call(cloud: FixedCloud, *, takes: int | None = None) -> list[Event]:
    """Return the events of one call; after `takes` of them the reply is abandoned."""

    async def run() -> list[Event]:
        loop = asyncio.get_running_loop()
        inbound, outbound = Inbound(loop), Outbound(loop)
        with ThreadPoolExecutor(1, thread_name_prefix="worker") as executor:
            over = start_call(cloud, Route.DECODE, inbound, outbound, executor)
            events: list[Event] = []
            while (takes is None or len(events) < takes) and not (events and isinstance(events[-1], Ended)):
                events.append(await outbound.take())
            await asyncio.sleep(0.05)
            inbound.abandon()
            outbound.abandon()
            await over
        return events

    return asyncio.run(run())


@settings(deadline=None, max_examples=25)
@given(pieces=st.lists(st.binary(max_size=50), max_size=20))
def test_reply_arrives_whole_though_its_memory_is_reused(pieces: list[bytes]) -> None:
    events = call(FixedCloud(pieces))
    assert events[0] == Head(sum(map(len, pieces)))
    assert events[-1] == Ended(None)
    assert b"".join(event for event in events if isinstance(event, bytes)) == b"".join(pieces)


@pytest.mark.parametrize("body_bytes", [9, 11])
def test_reply_of_another_length_than_declared_ends_in_an_error(body_bytes: int) -> None:
    *events, ended = call(FixedCloud([b"12345", b"67890"], body_bytes=body_bytes))
    assert sum(len(event) for event in events if isinstance(event, bytes)) <= body_bytes
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, RuntimeError)


def test_abandoned_reply_closes_its_generator_in_the_worker_and_pulls_no_further() -> None:
    cloud = FixedCloud([b"x"] * 1000)
    call(cloud, takes=3)
    assert cloud.threads == ["worker_0"]
    assert cloud.pulled < 20


def test_abandoned_body_ends_a_waiting_read() -> None:
    async def run() -> None:
        inbound = Inbound(asyncio.get_running_loop())
        reading = asyncio.create_task(asyncio.to_thread(inbound.readinto, memoryview(bytearray(10))))
        await asyncio.sleep(0.05)
        assert not reading.done()
        inbound.abandon()
        with pytest.raises(TruncatedError):
            await reading
        with pytest.raises(TruncatedError):
            inbound.readinto(memoryview(bytearray(10)))

    asyncio.run(run())


def test_feeder_waits_while_nobody_reads() -> None:
    async def run() -> None:
        inbound = Inbound(asyncio.get_running_loop())

        async def feed_on() -> None:
            for _ in range(100):
                await inbound.feed(b"x")

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(feed_on(), 0.2)
        view = memoryview(bytearray(1))
        assert await asyncio.to_thread(inbound.readinto, view) == 1
        await asyncio.wait_for(inbound.feed(b"y"), 5)

    asyncio.run(run())
