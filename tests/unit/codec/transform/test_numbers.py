"""Tables, bits, planes and rotations: pure functions, without any artefact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.codec.transform.levels import LEVELS, MAX_BITS, allocate, codec_name, level_of
from splitinfer.codec.transform.planes import pack, plane_count, unpack, widths_of
from splitinfer.codec.transform.rotation import Rotation
from splitinfer.codec.transform.tables import Cells, centroids_of, error_of, thresholds

# Lloyd-Max for the normal distribution (Max 1960, table 1), by bits.
NORMAL_ERRORS = {1: 0.3634, 2: 0.1175, 3: 0.0345}
NORMAL = np.random.default_rng(0).standard_normal(100_000)


@pytest.mark.parametrize(("bits", "error"), NORMAL_ERRORS.items())
def test_tables_of_normal_samples_have_the_published_error(bits: int, error: float) -> None:
    assert error_of(NORMAL, centroids_of(NORMAL, bits=bits)) == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_codes_name_the_nearest_centroid(bits: int) -> None:
    centroids = torch.from_numpy(np.sort(NORMAL[: 2**bits])).float()
    values = torch.from_numpy(NORMAL[:500]).float()
    codes = torch.empty(500, dtype=torch.uint8)
    Cells.of(centroids).codes(values, codes)
    nearest = (values.unsqueeze(1) - centroids).abs().amin(1)
    assert torch.allclose((values - centroids[codes.long()]).abs(), nearest, atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4, 7])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_value_at_a_limit_gets_the_cell_that_a_search_finds(bits: int, shift: float) -> None:
    centroids = torch.from_numpy(centroids_of(NORMAL, bits=bits) + shift).float()
    limits = thresholds(centroids)
    values = torch.cat([limits, limits.nextafter(limits + 1), limits.nextafter(limits - 1), limits + 1e9, limits - 1e9])
    codes = torch.empty(len(values), dtype=torch.uint8)
    Cells.of(centroids).codes(values, codes)
    assert codes.tolist() == torch.bucketize(values, limits).tolist()


def test_limits_too_close_for_a_grid_are_searched() -> None:
    centroids = torch.tensor([*range(14), 14.0, 14.0 + 2e-6])
    values = torch.linspace(-1, 16, 200)
    codes = torch.empty(200, dtype=torch.uint8)
    Cells.of(centroids).codes(values, codes)
    assert codes.tolist() == torch.bucketize(values, thresholds(centroids)).tolist()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.integers(0, 200))
def test_bits_are_all_given_and_a_larger_component_never_has_fewer(deviations: list[float], total: int) -> None:
    errors = [1.0, 0.3634, 0.1175, 0.0345, 0.0095, 0.0025, 0.0008, 0.0003]
    bits = allocate(np.array(deviations), total_bits=total, errors=errors)
    assert int(bits.sum()) == min(total, MAX_BITS * len(deviations))
    order = np.argsort(deviations)
    assert (np.diff(bits[order].astype(int)) >= 0).all() or len(set(deviations)) < len(deviations)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.lists(st.integers(0, MAX_BITS), min_size=1, max_size=12), st.integers(1, 3))
def test_planes_give_codes_back(data: st.DataObject, bits: list[int], blocks: int) -> None:
    widths = widths_of(bits)
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, 2**held, 64 * blocks, dtype=np.uint8) for held in bits])
    packed = np.full((blocks, plane_count(widths), 8), 0xAA, dtype=np.uint8)
    pack(codes, widths, packed)
    again = np.zeros_like(codes)
    unpack(packed, widths, again)
    assert np.array_equal(codes, again)
    assert packed[0].size == 8 * sum(bits)


def test_a_plane_holds_the_bit_of_row_r_in_bit_r_mod_8_of_byte_r_div_8() -> None:
    codes = np.zeros((2, 64), dtype=np.uint8)
    codes[0, 9], codes[1, 63] = 1, 2
    packed = np.zeros((1, 3, 8), dtype=np.uint8)
    pack(codes, widths_of([1, 2]), packed)
    assert packed[0, 0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0]
    assert packed[0, 1].tolist() == [0] * 8
    assert packed[0, 2].tolist() == [0, 0, 0, 0, 0, 0, 0, 128]


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("offset", [0, 1000])
def test_a_rotation_is_undone_at_any_position(style: str, offset: int) -> None:
    rotation = Rotation(style, torch.tensor([1.0, 0.03]), 1.3)  # type: ignore[arg-type]
    rows = torch.randn(2, 5, 6)
    turned = rotation.apply(rows, offset)
    assert torch.allclose(rotation.apply(turned, offset, is_inverse=True), rows, atol=1e-5)
    assert torch.equal(turned[..., 4:], rows[..., 4:]), "channels beyond the turned ones stay"


def test_a_rotation_at_another_position_is_another() -> None:
    rotation = Rotation("half", torch.tensor([1.0, 0.03]))
    rows = torch.randn(1, 3, 4)
    assert not torch.allclose(rotation.apply(rotation.apply(rows, 5), 6, is_inverse=True), rows, atol=1e-2)


def test_codec_ids_are_those_of_the_levels() -> None:
    assert [codec_name(level) for level in LEVELS.values()] == list(LEVELS)
    assert level_of("raw") is None
