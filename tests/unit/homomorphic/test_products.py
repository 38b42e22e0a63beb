"""What the two halves compute together, against numpy, at each profile's stated error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from splitinfer.errors import LayoutMismatchError
from splitinfer.homomorphic.arithmetic import Arithmetic
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.linear_plan import LinearShape
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import Operation
from tests.support.homomorphic import Loopback, attention

# Largest error of an output, for inputs of unit variance.
ATTENTION_ERROR = {"balanced": 1e-4, "accurate": 1e-6, "fast": 3e-2}
LINEAR_ERROR = {"balanced": 2e-4, "accurate": 2e-6, "fast": 5e-3}
# heads, KV heads, head_dim, private tokens, public tokens before them.
SCENES = {
    "one padded tile": ("balanced", 6, 2, 32, 100, 0),
    "several tiles, public ones among them": ("balanced", 6, 2, 32, 300, 200),
    "public tokens only": ("balanced", 6, 2, 32, 0, 100),
    "nine heads of 64": ("balanced", 9, 3, 64, 60, 0),
    "heads of 128": ("balanced", 4, 2, 128, 40, 10),
    "a prefix of 4,096 tokens": ("balanced", 6, 2, 32, 4096, 0),
    "28 heads of 128": ("balanced", 28, 4, 128, 70, 0),
    "no grouped queries": ("balanced", 5, 5, 32, 40, 0),
    "accurate": ("accurate", 6, 2, 32, 50, 20),
    "fast": ("fast", 6, 2, 32, 100, 100),
}


def drawn(seed: int, *size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("name", SCENES)
def test_attention_over_a_cache_at_the_cloud_is_attention(name: str) -> None:
    profile, heads, kv_heads, head_dim, private, public = SCENES[name]
    keys, values = (
        drawn(1, private + public + 2, kv_heads, head_dim) + 2,
        drawn(2, private + public + 2, kv_heads, head_dim),
    )
    shape, loopback = AttentionShape(1, heads, kv_heads, head_dim), Loopback()
    total = private + public
    with DeviceHalf(shape, loopback.exchange, expected_tokens=total, profile=profile, is_public=not private) as device:
        device.load(0, keys[:public], values[:public], is_public=True)
        device.load(0, keys[public:total], values[public:total])
        for step in range(2):
            query, held = 2 * drawn(3 + step, heads, head_dim) / head_dim**0.5, total + step + 1
            found = device.attend(0, query, keys[held - 1], values[held - 1])
            expected = attention(query, keys[:held], values[:held])
            assert np.abs(found - expected).max() < ATTENTION_ERROR[profile]


def test_only_the_few_baby_steps_rotate_what_was_not_rescaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """At two primes a rotation takes twice as long as at one. Counted, since times say little on a busy machine."""
    rotated, primes = Arithmetic._rotated, []

    def counted(self: Arithmetic, ciphertext: Any, step: int) -> Any:
        primes.append(ciphertext.coeff_modulus_size())
        return rotated(self, ciphertext, step)

    monkeypatch.setattr(Arithmetic, "_rotated", counted)
    with DeviceHalf(AttentionShape(1, 6, 2, 32), Loopback().exchange, expected_tokens=256, is_public=True) as device:
        device.load(0, drawn(1, 256, 2, 32), drawn(2, 256, 2, 32), is_public=True)
        device.attend(0, drawn(3, 6, 32), drawn(4, 2, 32), drawn(5, 2, 32))
        plan = device.plan
    assert plan.tile_tokens == 256
    babies = (plan.key_babies, plan.value_babies)
    assert primes.count(2) == sum(babies) - 2 <= 4
    assert primes.count(1) == sum(plan.dims // one for one in babies) - 2 <= 14


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e4, 1e30])
def test_values_of_any_size_are_scaled_and_never_wrap(size: float) -> None:
    keys, values = drawn(1, 21, 2, 32) / size, drawn(2, 21, 2, 32) * size
    query = drawn(3, 6, 32) * size / 6
    with DeviceHalf(AttentionShape(1, 6, 2, 32), Loopback().exchange, expected_tokens=20) as device:
        device.load(0, keys[:20], values[:20])
        found = device.attend(0, query, keys[20], values[20])
    assert np.abs(found - attention(query, keys, values)).max() < 1e-4 * size


def test_a_channel_that_outweighs_all_others_does_not_cost_precision() -> None:
    keys, values = drawn(1, 41, 2, 32), drawn(2, 41, 2, 32)
    keys[..., 5] += 300
    values[..., 7] -= 500
    query = drawn(3, 6, 32) / 6
    query[:, 5] *= 0.01
    with DeviceHalf(AttentionShape(1, 6, 2, 32), Loopback().exchange, expected_tokens=40) as device:
        device.load(0, keys[:40], values[:40])
        found = device.attend(0, query, keys[40], values[40])
    assert np.abs(found - attention(query, keys, values)).max() < 2e-4


def test_a_full_tail_becomes_a_tile_and_goes_on_giving_attention() -> None:
    shape, loopback = AttentionShape(1, 64, 2, 32), Loopback()
    with DeviceHalf(shape, loopback.exchange, expected_tokens=1) as device:
        capacity = device.plan.tile_tokens
        total = capacity + 3
        keys, values, queries = drawn(1, total, 2, 32), drawn(2, total, 2, 32), drawn(3, total, 64, 32) / 5
        for at in range(total):
            found = device.attend(0, queries[at], keys[at], values[at])
            if at in (capacity - 1, capacity, total - 1):
                expected = attention(queries[at], keys[: at + 1], values[: at + 1])
                assert np.abs(found - expected).max() < 1e-4
            uploaded = [record for record in loopback.requests if record.operation is Operation.TILE]
            assert len(uploaded) == (at >= capacity - 1)


def test_rows_that_are_kept_begin_the_tail_and_leave_in_the_tile_that_it_fills() -> None:
    """Public rows at the cloud, a private rest here: one softmax, and one ciphertext tile once the tail is full."""
    shape, loopback = AttentionShape(1, 64, 2, 32), Loopback()
    with DeviceHalf(shape, loopback.exchange, expected_tokens=20, is_public=True) as device:
        capacity = device.plan.tile_tokens
        total = 20 + capacity + 1
        keys, values, queries = drawn(1, total, 2, 32), drawn(2, total, 2, 32), drawn(3, total, 64, 32) / 5
        device.load(0, keys[:20], values[:20], is_public=True)
        device.keep(0, keys[20 : total - 3], values[20 : total - 3])
        for at in range(total - 3, total):
            found = device.attend(0, queries[at], keys[at], values[at])
            assert np.abs(found - attention(queries[at], keys[: at + 1], values[: at + 1])).max() < 1e-4
            uploaded = [record for record in loopback.requests if record.operation is Operation.TILE]
            assert len(uploaded) == (at >= total - 2)


def test_a_tail_of_a_whole_tile_is_not_kept() -> None:
    with DeviceHalf(AttentionShape(1, 6, 2, 32), Loopback().exchange, expected_tokens=1) as device:
        rows = drawn(1, device.plan.tile_tokens, 2, 32)
        with pytest.raises(LayoutMismatchError, match="load whole tiles"):
            device.keep(0, rows, rows)


def test_sealing_the_tail_leaves_the_output_as_it_was() -> None:
    keys, values, queries = drawn(1, 7, 2, 32), drawn(2, 7, 2, 32), drawn(3, 7, 6, 32) / 3
    loopback = Loopback()
    with DeviceHalf(AttentionShape(1, 6, 2, 32), loopback.exchange, expected_tokens=6) as device:
        for at in range(6):
            device.attend(0, queries[at], keys[at], values[at])
        assert {record.operation for record in loopback.requests} == {Operation.OPEN}
        device.seal_tail()
        found = device.attend(0, queries[6], keys[6], values[6])
    assert loopback.requests[-1].operation is Operation.OUTPUTS
    assert np.abs(found - attention(queries[6], keys, values)).max() < 1e-4


@pytest.mark.parametrize("profile", ["balanced", "accurate", "fast"])
def test_linear_layers_at_the_cloud_give_the_product(profile: str) -> None:
    weights = {(0, Operation.QKV): drawn(1, 90, 70) / 8, (1, Operation.HEAD): drawn(2, 2100, 30) / 5}
    shapes = {key: LinearShape(*weight.shape) for key, weight in weights.items()}
    loopback = Loopback(CloudHalf(linears=LinearStore(weights)))
    shape = AttentionShape(1, 6, 2, 32)
    with DeviceHalf(shape, loopback.exchange, expected_tokens=1, profile=profile, linears=shapes) as device:
        for (layer, operation), weight in weights.items():
            vector = drawn(5, weight.shape[1])
            found = device.linear(layer, operation.name.lower(), vector)
            assert np.abs(found - weight @ vector).max() < LINEAR_ERROR[profile]


def test_inputs_that_fill_two_ciphertexts_give_the_product() -> None:
    weight, vector = drawn(1, 40, 5000) / 70, drawn(2, 5000)
    loopback = Loopback(CloudHalf(linears=LinearStore({(0, Operation.DOWN): weight})))
    shapes = {(0, Operation.DOWN): LinearShape(*weight.shape)}
    with DeviceHalf(AttentionShape(1, 6, 2, 32), loopback.exchange, expected_tokens=1, linears=shapes) as device:
        found = device.linear(0, "down", vector)
    assert len(loopback.requests[-1].blobs) == 2
    # The error is relative to the norm of the input, here of 5,000 numbers.
    assert np.abs(found - weight @ vector).max() < 2 * LINEAR_ERROR["balanced"]


def test_uploads_have_one_length_whatever_they_hold() -> None:
    loopback = Loopback()
    with DeviceHalf(AttentionShape(1, 6, 2, 32), loopback.exchange, expected_tokens=20) as device:
        device.load(0, drawn(1, 20, 2, 32), drawn(2, 20, 2, 32))
        for size in (0.0, 1.0, 1e6):
            device.attend(0, np.full((6, 32), size), drawn(3, 2, 32), drawn(4, 2, 32))
    sizes = [len(blob) for record in loopback.requests if record.operation is Operation.SCORES for blob in record.blobs]
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) < 0.01 * max(sizes)


def test_traffic_is_what_crossed() -> None:
    loopback = Loopback()
    with DeviceHalf(AttentionShape(1, 6, 2, 32), loopback.exchange, expected_tokens=20) as device:
        device.load(0, drawn(1, 20, 2, 32), drawn(2, 20, 2, 32))
        before = device.traffic
        device.attend(0, drawn(5, 6, 32), drawn(3, 2, 32), drawn(4, 2, 32))
        step, total = device.traffic.since(before), device.traffic
    assert step.rounds == 2
    assert step.sent_bytes + step.received_bytes < 190_000
    assert total.sent_bytes == sum(len(record.to_bytes()) for record in loopback.requests)
    assert total.received_bytes == sum(len(record.to_bytes()) for record in loopback.replies)


def test_a_cache_of_another_shape_is_refused() -> None:
    with (
        DeviceHalf(AttentionShape(1, 6, 2, 32), Loopback().exchange, expected_tokens=9) as device,
        pytest.raises(LayoutMismatchError, match="expected"),
    ):
        device.load(0, np.zeros((9, 3, 32)), np.zeros((9, 3, 32)))
