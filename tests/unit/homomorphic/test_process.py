"""The cloud half as processes of its own: the same results, and every end is a close."""

from __future__ import annotations

import os
import signal
import socket

import numpy as np
import pytest

from splitinfer.errors import LimitExceededError, TransportError, TruncatedError
from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.framing import receive_frame, send_frame
from splitinfer.homomorphic.linear_plan import LinearShape
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.process import CloudProcess
from splitinfer.rounds import Operation
from tests.support.homomorphic import attention

SHAPE = AttentionShape(1, 64, 2, 32)
WEIGHT = np.random.default_rng(9).normal(size=(40, 24)).astype(np.float32)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_products(processes: int) -> None:
    random = np.random.default_rng(1)
    linears = {(0, Operation.O): LinearShape(*WEIGHT.shape)}
    with (
        CloudProcess(matrices={(0, "o"): WEIGHT}, processes=processes) as cloud,
        DeviceHalf(SHAPE, cloud.exchange, expected_tokens=1, linears=linears) as device,
    ):
        keys, values = random.normal(size=(2, 3, 2, 32))
        device.load(0, keys[:1], values[:1])
        # The first query forks; the tile that follows has to reach the forked processes too.
        for held in range(2, 4):
            query = random.normal(size=(64, 32)) / 10
            found = device.attend(0, query, keys[held - 1], values[held - 1])
            assert np.abs(found - attention(query, keys[:held], values[:held])).max() < 1e-4
            device.seal_tail()
        vector = random.normal(size=24)
        assert np.abs(device.linear(0, "o", vector) - WEIGHT @ vector).max() < 1e-3


def test_a_killed_cloud_is_a_transport_error() -> None:
    with CloudProcess() as cloud, DeviceHalf(SHAPE, cloud.exchange, expected_tokens=1) as device:
        os.kill(cloud.process_id, signal.SIGKILL)
        with pytest.raises(TransportError):
            device.load(0, np.ones((1, 2, 32)), np.ones((1, 2, 32)))


def test_a_refused_record_ends_the_process_without_a_reply(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        CloudProcess() as cloud,
        DeviceHalf(SHAPE, cloud.exchange, expected_tokens=1) as device,
        pytest.raises(TransportError, match="without a reply"),
    ):
        device._channel.ask(Operation.SCORES, (b"",), expected=1)
    assert capfd.readouterr().err.startswith("error[layout_mismatch]")


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    first, second = socket.socketpair()
    yield first, second
    first.close()
    second.close()


def test_a_frame_comes_back(ends: tuple[socket.socket, socket.socket]) -> None:
    send_frame(ends[0], b"hello")
    assert receive_frame(ends[1], limit_bytes=5) == b"hello"
    ends[0].close()
    assert receive_frame(ends[1], limit_bytes=5) is None


def test_a_frame_above_its_limit_is_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    send_frame(ends[0], b"hello")
    with pytest.raises(LimitExceededError, match="5 bytes is above the limit of 4"):
        receive_frame(ends[1], limit_bytes=4)


@pytest.mark.parametrize("length", [1, 7, 8, 12])
def test_a_frame_that_ends_early_is_refused(ends: tuple[socket.socket, socket.socket], length: int) -> None:
    ends[0].sendall(((5).to_bytes(8, "big") + b"hello")[:length])
    ends[0].close()
    with pytest.raises(TruncatedError):
        receive_frame(ends[1], limit_bytes=5)
