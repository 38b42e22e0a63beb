from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitinfer.errors import StateError
from splitinfer.homomorphic import weights
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.linear_plan import LinearShape, plan_linear
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.weight_cache import WeightCache
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import Operation
from tests.support.homomorphic import Loopback

KEY = (3, Operation.O)
MATRIX = np.random.default_rng(1).normal(size=(40, 24))
# Rows that are zero leave whole diagonals zero, which have no plaintext.
MATRIX[8:] = 0
VECTOR = np.random.default_rng(2).normal(size=24)


def product(
    folder: Path, *, digest: str = "ab", matrix: np.ndarray = MATRIX, vector: np.ndarray = VECTOR
) -> np.ndarray:
    store = LinearStore({KEY: matrix}, cache=WeightCache(folder, weights_sha256=digest))
    shape, shapes = AttentionShape(1, 6, 2, 32), {KEY: LinearShape(*matrix.shape)}
    loopback = Loopback(CloudHalf(linears=store))
    with DeviceHalf(shape, loopback.exchange, expected_tokens=1, linears=shapes) as device:
        return device.linear(3, "o", vector)


def is_right(found: np.ndarray) -> bool:
    return bool(np.abs(found - MATRIX @ VECTOR).max() < 1e-3)


def test_a_kept_matrix_gives_the_product_without_being_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_right(product(tmp_path / "cache"))
    monkeypatch.delattr(weights, "weight_diagonals")
    assert is_right(product(tmp_path / "cache"))


def test_a_file_is_of_one_model_profile_layer_operation_and_plan(tmp_path: Path) -> None:
    product(tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    plan = plan_linear(LinearShape(*MATRIX.shape), slots=2048)
    assert path.name == f"ab-balanced-3-o-{plan.rows}x{plan.diagonals}x{plan.babies}"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_other_weights_are_encoded_anew(tmp_path: Path) -> None:
    product(tmp_path)
    assert np.abs(product(tmp_path, digest="cd", matrix=2 * MATRIX) - 2 * MATRIX @ VECTOR).max() < 1e-3
    assert {path.name[:15] for path in tmp_path.iterdir()} == {"ab-balanced-3-o", "cd-balanced-3-o"}


def test_a_matrix_that_lies_by_another_plan_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many diagonals, turned otherwise: read as this plan's they would give another product."""
    random = np.random.default_rng(3)
    matrix, vector = random.normal(size=(256, 256)), random.normal(size=256)
    plan = plan_linear(LinearShape(256, 256), slots=2048)
    for other in (plan, replace(plan, babies=2 * plan.babies)):
        for module in ("weights", "device"):
            monkeypatch.setattr(f"splitinfer.homomorphic.{module}.plan_linear", lambda *_, chosen=other, **__: chosen)
        assert np.abs(product(tmp_path, matrix=matrix, vector=vector) - matrix @ vector).max() < 1e-2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("place", [0, 40, 5000, -1])
def test_a_damaged_file_is_made_anew(tmp_path: Path, place: int) -> None:
    product(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(bytes(whole))
    assert is_right(product(tmp_path))
    assert path.read_bytes() != bytes(whole)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="encoded weights cannot be kept"):
        product(tmp_path / "file")
