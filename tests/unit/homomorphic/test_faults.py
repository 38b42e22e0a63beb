"""Everything that can go wrong between the halves ends in a typed error, and ends the session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from tenseal import sealapi

from splitinfer.errors import (
    AuthenticationError,
    CryptoParameterError,
    LayoutMismatchError,
    LimitExceededError,
    ManifestError,
    ReplayError,
    SplitInferError,
    TransportError,
    TruncatedError,
)
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.keys import SessionKeys
from splitinfer.homomorphic.linear_plan import LinearShape
from splitinfer.homomorphic.opening import read_opening
from splitinfer.homomorphic.parameters import parameters_for
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.seal import load, make_context
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import Operation, Record
from tests.support.homomorphic import Loopback

SHAPE = AttentionShape(2, 6, 2, 8)
RANDOM = np.random.default_rng(1)
BALANCED = parameters_for("balanced")
SCORE = {"product_bits": 61}


def rows(*size: int) -> np.ndarray:
    return RANDOM.normal(size=size)


def opened(loopback: Loopback, *, tokens: int = 5) -> DeviceHalf:
    device = DeviceHalf(SHAPE, loopback.exchange, expected_tokens=tokens)
    for layer in range(2):
        device.load(layer, rows(tokens, 2, 8), rows(tokens, 2, 8))
    return device


def attend(device: DeviceHalf, layer: int = 0) -> np.ndarray:
    return device.attend(layer, rows(6, 8), rows(2, 8), rows(2, 8))


@pytest.fixture(scope="module")
def session() -> tuple[Loopback, DeviceHalf]:
    loopback = Loopback()
    device = opened(loopback)
    for layer in (0, 1, 0, 1):
        attend(device, layer)
    return loopback, device


def faulty(change: Callable[[Record], Record]) -> DeviceHalf:
    loopback = Loopback()
    device = opened(loopback)
    loopback.change = change
    return device


def with_blob(change: Callable[[bytes], bytes]) -> Callable[[Record], Record]:
    return lambda reply: replace(reply, blobs=tuple(change(blob) for blob in reply.blobs))


# --- replies ------------------------------------------------------------------------------------------------

OTHER_KEYS = SessionKeys(BALANCED, steps=[8], multiplies_ciphertexts=False)
OTHER_RING = SessionKeys(parameters_for("accurate"), steps=[8], multiplies_ciphertexts=False)
BAD_REPLIES: dict[str, tuple[Callable[[Record], Record], type[SplitInferError]]] = {
    "a truncated ciphertext": (with_blob(lambda blob: blob[:-1]), TruncatedError),
    "a ciphertext that goes on": (with_blob(lambda blob: blob + b"\0"), TruncatedError),
    "an oversized ciphertext": (with_blob(lambda blob: blob + bytes(1 << 20)), LimitExceededError),
    "bytes of no ciphertext": (with_blob(lambda blob: b"x" * len(blob)), ManifestError),
    "a fresh ciphertext": (
        with_blob(lambda _: OTHER_KEYS.encrypt(np.ones(2048, complex), scale_bits=31)),
        LayoutMismatchError,
    ),
    "another ring's ciphertext": (
        with_blob(lambda _: OTHER_RING.encrypt(np.ones(4096, complex), scale_bits=40)),
        ManifestError,
    ),
    "a reply of an earlier step": (lambda reply: replace(reply, step=reply.step - 1), ReplayError),
    "a reply of another layer": (lambda reply: replace(reply, layer=1), ReplayError),
    "a reply to another operation": (lambda reply: replace(reply, operation=Operation.QKV), ReplayError),
    "a reply without ciphertexts": (lambda reply: replace(reply, blobs=()), TruncatedError),
    "a reply with one too many": (lambda reply: replace(reply, blobs=reply.blobs * 2), TruncatedError),
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_a_bad_reply_ends_the_session_with_a_typed_error(name: str) -> None:
    change, error = BAD_REPLIES[name]
    device = faulty(change)
    with pytest.raises(error):
        attend(device)
    with pytest.raises(CryptoParameterError, match="keys are gone"):
        attend(device)


def test_a_cloud_that_computes_with_another_sessions_tiles_is_found() -> None:
    """The same parameters and another key: the reply is a valid ciphertext, and decrypts to what no score can be."""
    first, second = Loopback(), Loopback()
    device, other = opened(first), opened(second)
    attend(other)
    stolen = second.last(Operation.SCORES).blobs
    first.change = lambda reply: replace(reply, blobs=stolen)
    with pytest.raises(AuthenticationError):
        attend(device)


def test_a_repeated_reply_is_found_in_the_next_step() -> None:
    loopback = Loopback()
    device = opened(loopback)
    attend(device)
    earlier = loopback.last(Operation.SCORES)
    loopback.change = lambda _: earlier
    with pytest.raises(ReplayError):
        attend(device)


def test_a_cloud_that_dies_in_the_middle_ends_the_session() -> None:
    def died(_: Record) -> Record:
        raise TransportError("closed")

    device = faulty(died)
    with pytest.raises(TransportError):
        attend(device)
    with pytest.raises(CryptoParameterError, match="open a new session"):
        attend(device)


def test_a_damaged_reply_never_passes_as_other_scores(session: tuple[Loopback, DeviceHalf]) -> None:
    loopback, device = session
    blob = loopback.last(Operation.SCORES).blobs[0]
    true, refused, places = device._keys.decrypt(blob, **SCORE), 0, (20, 60, 100, 5000, len(blob) - 20)
    for place in places:
        damaged = bytearray(blob)
        damaged[place] ^= 0x10
        try:
            # A bit of the compression's own head may be flipped without any effect.
            assert np.array_equal(device._keys.decrypt(bytes(damaged), **SCORE), true)
        except SplitInferError:
            refused += 1
    assert refused >= len(places) - 1


def test_a_ciphertext_that_decompresses_without_end_is_refused() -> None:
    context = make_context(BALANCED)
    body = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    size = 16 + len(body)
    blob = b"\x5e\xa1\x10\x04\x03\x02\x00\x00" + size.to_bytes(8, "little") + body
    assert size < 2000
    with pytest.raises(LimitExceededError, match="when decompressed"):
        load(sealapi.Ciphertext, context, blob, limit_bytes=1 << 18)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_are_not_numbers_are_refused_before_anything_is_sent(value: float, place: int) -> None:
    loopback = Loopback()
    device = opened(loopback)
    sent = len(loopback.requests)
    arguments = [rows(6, 8), rows(2, 8), rows(2, 8)]
    arguments[place][1, 3] = value
    with pytest.raises(CryptoParameterError, match="cannot be encoded"):
        device.attend(0, *arguments)
    assert len(loopback.requests) == sent


def test_values_that_are_not_numbers_are_refused_in_a_prefix() -> None:
    device = DeviceHalf(SHAPE, Loopback().exchange, expected_tokens=5)
    with pytest.raises(CryptoParameterError, match="cannot be encoded"):
        device.load(0, np.full((5, 2, 8), np.nan), rows(5, 2, 8))


@pytest.mark.parametrize("value", [np.nan, np.inf, 129.0, -129.0j])
def test_slots_above_what_a_ciphertext_holds_are_refused(value: complex) -> None:
    slots = np.zeros(2048, np.complex128)
    slots[7] = value
    with pytest.raises(CryptoParameterError, match="not finite or above 128"):
        OTHER_KEYS.encrypt(slots, scale_bits=31)


# --- requests -----------------------------------------------------------------------------------------------


def opening(device: DeviceHalf, loopback: Loopback) -> Record:
    return loopback.requests[0]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Opening, tiles of both layers, scores and outputs of layer 0, as the cloud gets them."""
    loopback = Loopback()
    attend(opened(loopback))
    return loopback.requests


def replayed(records: list[Record], *, upto: int) -> CloudHalf:
    cloud = CloudHalf()
    for record in records[:upto]:
        cloud.answer(record)
    return cloud


def test_anything_before_the_opening_is_refused(records: list[Record]) -> None:
    for record in records[1:]:
        with pytest.raises(ManifestError, match="first record must be the opening"):
            CloudHalf().answer(record)


def test_a_second_opening_is_refused(records: list[Record]) -> None:
    with pytest.raises(ReplayError, match="open already"):
        replayed(records, upto=1).answer(records[0])


@pytest.mark.parametrize("place", [1, 2])
def test_missing_keys_are_refused_by_name(records: list[Record], place: int) -> None:
    blobs = list(records[0].blobs)
    blobs[place] = b""
    cloud = CloudHalf()
    cloud.answer(replace(records[0], blobs=tuple(blobs)))
    cloud.answer(records[1])
    with pytest.raises(CryptoParameterError, match="the session's keys do not allow"):
        cloud.answer(records[3])


def test_another_sessions_keys_give_nothing_that_the_device_takes(records: list[Record]) -> None:
    other = SessionKeys(BALANCED, steps=read_steps(records[0]), multiplies_ciphertexts=True)
    loopback = Loopback()
    device = opened(loopback)
    swapped = Loopback()
    first = loopback.requests[0]
    swapped.exchange(replace(first, blobs=(first.blobs[0], *other.public_blobs())))
    swapped.exchange(loopback.requests[1])
    loopback.cloud = swapped.cloud
    with pytest.raises(AuthenticationError):
        attend(device)


def read_steps(record: Record) -> tuple[int, ...]:
    return read_opening(record.blobs[0]).agreed()[1].steps


def test_keys_of_another_class_are_refused(records: list[Record]) -> None:
    blobs = (records[0].blobs[0], records[1].blobs[0], records[0].blobs[2])
    with pytest.raises(SplitInferError):
        CloudHalf().answer(replace(records[0], blobs=blobs))


BAD_OPENINGS = {
    "no JSON": b"{",
    "an unknown field": b'{"version":1,"secret_key":"x"}',
    "above its limit": b" " * 5000,
}


@pytest.mark.parametrize("name", BAD_OPENINGS)
def test_a_malformed_opening_is_refused(name: str) -> None:
    with pytest.raises(ManifestError):
        read_opening(BAD_OPENINGS[name])


@pytest.mark.parametrize(
    "change",
    [{"profile": "weak"}, {"rows": 3}, {"rows": 4096}, {"key_babies": 64}, {"replication": 2}, {"kv_heads": 4}],
    ids=str,
)
def test_an_opening_that_contradicts_itself_is_refused(records: list[Record], change: dict[str, object]) -> None:
    stated = read_opening(records[0].blobs[0])
    with pytest.raises(ManifestError):
        stated.model_copy(update=change).agreed()


def test_an_opening_that_wants_linear_layers_where_none_are_is_refused(records: list[Record]) -> None:
    wanted = read_opening(records[0].blobs[0]).model_copy(update={"uses_linears": True})
    with pytest.raises(ManifestError, match="does not offer"):
        CloudHalf().answer(replace(records[0], blobs=(wanted.to_bytes(), *records[0].blobs[1:])))


def test_a_query_on_a_layer_without_cache_is_refused(records: list[Record]) -> None:
    with pytest.raises(LayoutMismatchError, match="layer 0 has no cache"):
        replayed(records, upto=1).answer(records[3])


def test_a_tile_of_a_layer_that_is_not_there_is_refused(records: list[Record]) -> None:
    with pytest.raises(LayoutMismatchError, match="above the session's 2 layers"):
        replayed(records, upto=1).answer(replace(records[1], layer=2))


def test_a_tile_with_a_ciphertext_missing_is_refused(records: list[Record]) -> None:
    with pytest.raises(LayoutMismatchError, match="a tile has"):
        replayed(records, upto=1).answer(replace(records[1], blobs=records[1].blobs[1:]))


def test_a_public_tile_of_another_size_is_refused(records: list[Record]) -> None:
    bad = Record(0, 0, Operation.PUBLIC_TILE, (bytes(4), bytes(4)))
    with pytest.raises(LayoutMismatchError, match="a public tile is not"):
        replayed(records, upto=1).answer(bad)


def test_more_tokens_than_the_limit_are_refused(records: list[Record]) -> None:
    cloud = CloudHalf(max_cache_tokens=300)
    cloud.answer(records[0])
    cloud.answer(records[1])
    with pytest.raises(LimitExceededError, match="above the limit of 300 tokens"):
        cloud.answer(records[1])


def test_a_matrix_that_was_not_announced_is_refused() -> None:
    store = LinearStore({(0, Operation.QKV): np.eye(4)})
    loopback = Loopback(CloudHalf(linears=store))
    shapes = {(0, Operation.QKV): LinearShape(4, 4)}
    device = DeviceHalf(SHAPE, loopback.exchange, expected_tokens=1, linears=shapes)
    request = Record(9, 0, Operation.DOWN, (b"",))
    with pytest.raises(LayoutMismatchError, match="no down matrix"):
        loopback.cloud.answer(request)
    with pytest.raises(CryptoParameterError, match="without matrix 'down' of layer 0"):
        device.linear(0, "down", np.ones(4))


def test_a_cloud_with_a_matrix_of_another_shape_is_refused() -> None:
    loopback = Loopback(CloudHalf(linears=LinearStore({(0, Operation.QKV): np.eye(4)})))
    with pytest.raises(LayoutMismatchError, match="another shape"):
        DeviceHalf(SHAPE, loopback.exchange, expected_tokens=1, linears={(0, Operation.QKV): LinearShape(5, 4)})


def test_nothing_shows_keys_or_values() -> None:
    device = DeviceHalf(SHAPE, Loopback().exchange, expected_tokens=1)
    assert repr(device) == "DeviceHalf(balanced)"
    assert repr(device._keys) == "SessionKeys(balanced)"
