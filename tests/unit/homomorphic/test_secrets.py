"""The cloud half holds no secret key: what it received cannot be one, and its memory cannot make one."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest
from tenseal import sealapi

from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.linear_plan import LinearShape
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import Operation
from tests.support.homomorphic import Loopback
from tests.support.secret_keys import planted, secret_keys

SECRET_KINDS = (sealapi.SecretKey, sealapi.KeyGenerator, sealapi.Decryptor, sealapi.Encryptor)


@pytest.fixture(scope="module")
def whole_session() -> Loopback:
    """A session with every operation in it."""
    weights = {(0, Operation.QKV): np.eye(8), (0, Operation.DOWN): np.eye(8)}
    loopback = Loopback(CloudHalf(linears=LinearStore(weights)))
    random, shape = np.random.default_rng(1), AttentionShape(1, 6, 2, 32)
    shapes = {key: LinearShape(8, 8) for key in weights}
    device = DeviceHalf(shape, loopback.exchange, expected_tokens=20, linears=shapes)
    device.load(0, *random.normal(size=(2, 20, 2, 32)), is_public=True)
    device.load(0, *random.normal(size=(2, 20, 2, 32)))
    device.linear(0, "qkv", random.normal(size=8))
    device.attend(0, random.normal(size=(6, 32)), *random.normal(size=(2, 2, 32)))
    device.linear(0, "down", random.normal(size=8))
    device.close()
    return loopback


def test_no_object_that_the_cloud_received_loads_as_a_secret_key(whole_session: Loopback) -> None:
    received = whole_session.received_by_cloud()
    assert len(received) > 30
    assert secret_keys(received) == []


def test_a_planted_secret_key_is_found(whole_session: Loopback) -> None:
    received = [*whole_session.received_by_cloud()[:5], planted()]
    assert secret_keys(received) == [5]


def test_the_cloud_half_holds_nothing_that_can_decrypt(whole_session: Loopback) -> None:
    seen: set[int] = set()
    waiting: list[object] = [whole_session.cloud]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or type(one).__name__ in {"module", "function", "method"}:
            continue
        seen.add(id(one))
        assert not isinstance(one, SECRET_KINDS)
        waiting.extend(gc.get_referents(one))
    assert len(seen) > 100


def test_nothing_decrypted_goes_back(whole_session: Loopback) -> None:
    kinds = {Operation.OPEN, Operation.PUBLIC_TILE}
    uploads = [blob for record in whole_session.requests if record.operation not in kinds for blob in record.blobs]
    assert all(blob[:2] == b"\x5e\xa1" for blob in uploads), "an upload is no object of SEAL"


def test_the_cloud_half_imports_no_torch() -> None:
    code = "import sys, splitinfer.homomorphic.worker; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["False", "False"]
