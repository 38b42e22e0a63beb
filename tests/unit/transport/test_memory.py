"""The in-memory twin counts, bounds and maps errors as the HTTP pair does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import AuditLogError, RemoteBusyError, RemoteRefusedError, TransportError
from splitinfer.handoff import ReleasedTransfer, Route
from splitinfer.transport.memory import MemoryTransport
from tests.support.echo_cloud import KEYSET, EchoCloud, command
from tests.support.http_exchange import CountingMeter, read_all, released


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.binary(max_size=300), max_size=8), buffer_bytes=st.integers(1, 200))
def test_body_and_reply_pass_unchanged_and_counted(pieces: list[bytes], buffer_bytes: int) -> None:
    body = b"".join(pieces)
    transfer = released(command(f"echo {len(body)}"), *pieces)
    reply = MemoryTransport(EchoCloud()).exchange(transfer)
    assert reply.body_bytes == len(body)
    assert read_all(reply, buffer_bytes=buffer_bytes) == body
    assert transfer.meter.received_bytes == len(body)  # type: ignore[attr-defined]


def test_keyset_comes_without_a_body() -> None:
    assert read_all(MemoryTransport(EchoCloud()).exchange(released(route=Route.KEYSET))) == KEYSET


def test_refusal_gives_its_code_and_no_detail() -> None:
    with pytest.raises(RemoteRefusedError) as caught:
        MemoryTransport(EchoCloud()).exchange(released(command("refuse replay")))
    assert caught.value.remote_code == "replay"
    assert "canary" not in str(caught.value)


def test_busy_cloud_is_busy() -> None:
    with pytest.raises(RemoteBusyError):
        MemoryTransport(EchoCloud()).exchange(released(command("refuse remote_busy")))


@pytest.mark.parametrize("text", ["late replay 1000", "break 1000", "short 1000"])
def test_reply_that_fails_is_never_whole(text: str) -> None:
    reply = MemoryTransport(EchoCloud()).exchange(released(command(text)))
    with pytest.raises(TransportError):
        read_all(reply)


def test_body_shorter_or_longer_than_declared_is_refused() -> None:
    for size in (70, 90):
        with pytest.raises(TransportError, match="declared length"):
            MemoryTransport(EchoCloud()).exchange(released(command("make 5"), b"x" * 16, body_bytes=size))


def test_error_of_the_body_itself_passes_unchanged() -> None:
    def body() -> Iterator[bytes]:
        yield command("make 5")
        raise AuditLogError("the disk is full")

    with pytest.raises(AuditLogError, match="disk"):
        MemoryTransport(EchoCloud()).exchange(ReleasedTransfer(Route.DECODE, 100, body(), "", CountingMeter()))


def test_close_closes_the_clouds_generator() -> None:
    cloud = EchoCloud()
    reply = MemoryTransport(cloud).exchange(released(command("make 3000000")))
    reply.readinto(memoryview(bytearray(10)))
    assert not cloud.closed.is_set()
    reply.close()
    reply.close()
    assert cloud.closed.is_set()
    with pytest.raises(TransportError):
        reply.readinto(memoryview(bytearray(10)))
