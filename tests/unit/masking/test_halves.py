from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitinfer.errors import (
    AuthenticationError,
    CryptoParameterError,
    LayoutMismatchError,
    ManifestError,
    MasksExhaustedError,
    ModelMismatchError,
    ReplayError,
    SplitInferError,
    StateError,
    TransportError,
    TruncatedError,
)
from splitinfer.masking.cloud import MaskedCloud, MemoryMarks
from splitinfer.masking.device import MaskedDevice
from splitinfer.masking.fixed_point import fixed_vector
from splitinfer.masking.ring import from_mask_bytes
from splitinfer.rounds import Operation, Record
from tests.support.masking import WEIGHTS_SHA256, MaskedLoopback, matrices, pool, reopened

VECTOR = np.random.default_rng(3).normal(size=12)


def test_a_product_is_bit_exact_that_of_the_integers(tmp_path: Path) -> None:
    with MaskedDevice(pool(tmp_path), MaskedLoopback().exchange) as device:
        for scale in (1.0, 1e-9, 1e9):
            found = device.linear(0, "qkv", VECTOR * scale)
            matrix = matrices()[0, Operation.QKV]
            integers, step = fixed_vector(VECTOR * scale)
            assert np.array_equal(found, (matrix.integers @ integers) * matrix.scale * step)


def test_a_product_is_close_to_that_of_the_numbers(tmp_path: Path) -> None:
    with MaskedDevice(pool(tmp_path), MaskedLoopback().exchange) as device:
        matrix = matrices()[1, Operation.QKV]
        exact = (matrix.integers * matrix.scale[:, None]) @ VECTOR
        assert np.abs(device.linear(1, "qkv", VECTOR) - exact).max() < 1e-3


def test_the_cloud_sees_numbers_that_do_not_depend_on_the_vector_alone(tmp_path: Path) -> None:
    loopback = MaskedLoopback()
    with MaskedDevice(pool(tmp_path), loopback.exchange) as device:
        device.linear(0, "qkv", VECTOR)
        device.linear(0, "qkv", VECTOR)
    first, second = (from_mask_bytes(record.blobs[1], count=12) for record in loopback.requests[1:])
    assert not np.any(first == second)
    integers = fixed_vector(VECTOR)[0]
    assert not np.any(first == integers.view(np.uint64) % 2**48)


def test_one_token_takes_one_mask_and_the_next_another(tmp_path: Path) -> None:
    loopback, made = MaskedLoopback(), pool(tmp_path)
    with MaskedDevice(made, loopback.exchange, block=1) as device:
        for _ in range(2):
            device.linear(0, "qkv", VECTOR)
            device.linear(0, "o", VECTOR[:8])
            device.linear(1, "qkv", VECTOR)
    numbers = [int.from_bytes(record.blobs[0], "big") for record in loopback.requests[1:]]
    assert numbers == [0, 0, 0, 1, 1, 1]
    assert made.used == 2


def test_masks_that_end_in_the_middle_of_an_answer_stop_it_and_say_what_to_do(tmp_path: Path) -> None:
    made = pool(tmp_path, tokens=2)
    with MaskedDevice(made, MaskedLoopback().exchange) as device:
        device.linear(0, "qkv", VECTOR)
        device.linear(0, "qkv", VECTOR)
        with pytest.raises(MasksExhaustedError, match="masks prepare"):
            device.linear(0, "qkv", VECTOR)
        with pytest.raises(CryptoParameterError, match="open a new session"):
            device.linear(0, "qkv", VECTOR)


def wrong_by(change: int) -> Callable[[Record], Record]:
    def changed(reply: Record) -> Record:
        value = (int.from_bytes(reply.blobs[0][:8], "little") + change) % 2**64
        return replace(reply, blobs=(value.to_bytes(8, "little") + reply.blobs[0][8:],))

    return changed


@pytest.mark.parametrize("change", [1, -1, 1 << 40, 1 << 47])
def test_a_wrong_product_ends_the_session_and_destroys_the_pool(tmp_path: Path, change: int) -> None:
    loopback = MaskedLoopback()
    device = MaskedDevice(pool(tmp_path), loopback.exchange)
    loopback.change = wrong_by(change)
    with pytest.raises(AuthenticationError):
        device.linear(0, "qkv", VECTOR)
    with pytest.raises(StateError, match="no mask pool"):
        reopened(tmp_path)


BAD_REPLIES: dict[str, tuple[Callable[[Record], Record], type[SplitInferError]]] = {
    "truncated": (lambda reply: replace(reply, blobs=(reply.blobs[0][:-1],)), TruncatedError),
    "too long": (lambda reply: replace(reply, blobs=(reply.blobs[0] + b"\0",)), TruncatedError),
    "of another layer": (lambda reply: replace(reply, layer=1), ReplayError),
    "of another step": (lambda reply: replace(reply, step=9), ReplayError),
    "empty": (lambda reply: replace(reply, blobs=()), TruncatedError),
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_a_bad_reply_ends_the_session_and_leaves_the_pool(tmp_path: Path, name: str) -> None:
    change, error = BAD_REPLIES[name]
    loopback = MaskedLoopback()
    device = MaskedDevice(pool(tmp_path), loopback.exchange, block=1)
    loopback.change = change
    with pytest.raises(error):
        device.linear(0, "qkv", VECTOR)
    assert reopened(tmp_path).used == 1


def test_a_cloud_that_dies_costs_the_masks_that_were_reserved_and_no_more(tmp_path: Path) -> None:
    loopback = MaskedLoopback()

    def died(_: Record) -> Record:
        raise TransportError("closed")

    device = MaskedDevice(pool(tmp_path), loopback.exchange, block=2)
    loopback.change = died
    with pytest.raises(TransportError):
        device.linear(0, "qkv", VECTOR)
    assert reopened(tmp_path).left == 3


def test_values_that_are_not_numbers_use_no_mask(tmp_path: Path) -> None:
    made = pool(tmp_path)
    device = MaskedDevice(made, MaskedLoopback().exchange)
    with pytest.raises(CryptoParameterError, match="cannot be encoded"):
        device.linear(0, "qkv", np.full(12, np.nan))
    assert made.used == 0


@pytest.mark.parametrize(("layer", "name", "size"), [(0, "down", 12), (7, "qkv", 12), (0, "qkv", 11), (0, "hat", 12)])
def test_a_matrix_or_vector_that_is_not_the_pools_is_refused(tmp_path: Path, layer: int, name: str, size: int) -> None:
    device = MaskedDevice(pool(tmp_path), MaskedLoopback().exchange)
    with pytest.raises(CryptoParameterError):
        device.linear(layer, name, np.ones(size))


def test_a_machine_that_was_put_back_is_found_by_what_the_cloud_remembers(tmp_path: Path) -> None:
    made, marks = pool(tmp_path), MemoryMarks()
    marks.raise_to(made.pool_id, 3)
    with pytest.raises(MasksExhaustedError, match="was put back"):
        MaskedDevice(made, MaskedLoopback(marks=marks).exchange)


def test_a_later_session_goes_on_where_the_earlier_one_ended(tmp_path: Path) -> None:
    made, marks = pool(tmp_path), MemoryMarks()
    for number in range(2):
        loopback = MaskedLoopback(marks=marks)
        with MaskedDevice(made, loopback.exchange, block=1) as device:
            device.linear(0, "qkv", VECTOR)
        assert int.from_bytes(loopback.requests[1].blobs[0], "big") == number
    assert marks.seen(made.pool_id) == 2


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    loopback = MaskedLoopback()
    with MaskedDevice(pool(tmp_path), loopback.exchange) as device:
        device.linear(0, "qkv", VECTOR)
    return loopback.requests


def test_the_cloud_answers_no_mask_twice(records: list[Record]) -> None:
    loopback = MaskedLoopback()
    for record in records:
        loopback.exchange(record)
    with pytest.raises(ReplayError, match="used twice"):
        loopback.exchange(records[1])
    again = MaskedLoopback(marks=loopback.marks)
    again.exchange(records[0])
    with pytest.raises(ReplayError, match="used before"):
        again.exchange(records[1])


def test_the_cloud_refuses_records_out_of_order_or_malformed(records: list[Record]) -> None:
    with pytest.raises(ManifestError, match="opening"):
        MaskedLoopback().exchange(records[1])
    loopback = MaskedLoopback()
    loopback.exchange(records[0])
    with pytest.raises(ReplayError, match="open already"):
        loopback.exchange(records[0])
    with pytest.raises(LayoutMismatchError, match="no down matrix"):
        loopback.exchange(replace(records[1], operation=Operation.DOWN))
    with pytest.raises(LayoutMismatchError, match="other parts"):
        loopback.exchange(replace(records[1], blobs=records[1].blobs[1:]))
    with pytest.raises(TruncatedError):
        loopback.exchange(replace(records[1], blobs=(records[1].blobs[0], b"short")))


@pytest.mark.parametrize("opening", [b"", b"[]", b'{"version":2}', b"x" * 2000, b'{"version":1,"pool_id":1}'])
def test_the_cloud_refuses_a_malformed_opening(opening: bytes) -> None:
    with pytest.raises(ManifestError, match="malformed"):
        MaskedLoopback().exchange(Record(0, 0, Operation.OPEN, (opening,)))


def test_the_cloud_refuses_a_pool_for_other_weights(records: list[Record]) -> None:
    cloud = MaskedCloud(matrices(), weights_sha256="cd" * 32, marks=MemoryMarks())
    assert WEIGHTS_SHA256 != "cd" * 32
    with pytest.raises(ModelMismatchError, match="other weights"):
        cloud.answer(records[0])
