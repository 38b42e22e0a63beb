from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import CryptoParameterError, TruncatedError
from splitinfer.masking.fixed_point import fixed_matrix, fixed_vector
from splitinfer.masking.ring import (
    centred,
    from_mask_bytes,
    from_word_bytes,
    masked_product,
    products,
    to_mask_bytes,
    to_word_bytes,
)
from splitinfer.masking.stream import mask

RANDOM = np.random.default_rng(1)


def words(*size: int) -> np.ndarray:
    return RANDOM.integers(0, 1 << 48, size=size, dtype=np.uint64)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**48 - 1), max_size=20))
def test_masked_numbers_come_back_from_their_bytes(numbers: list[int]) -> None:
    data = to_mask_bytes(np.array(numbers, np.uint64))
    assert len(data) == 6 * len(numbers)
    assert from_mask_bytes(data, count=len(numbers)).tolist() == numbers


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_products_come_back_from_their_bytes(numbers: list[int]) -> None:
    data = to_word_bytes(np.array(numbers, np.uint64))
    assert from_word_bytes(data, count=len(numbers)).tolist() == numbers


@pytest.mark.parametrize("read", [from_mask_bytes, from_word_bytes])
def test_another_length_is_refused(read) -> None:
    with pytest.raises(TruncatedError, match="expected"):
        read(bytes(13), count=2)


@settings(deadline=None, max_examples=50)
@given(st.integers(-(2**47), 2**47 - 1))
def test_every_signed_number_of_48_bits_is_its_own_representative(number: int) -> None:
    assert centred(np.array([number % 2**48], np.uint64)).tolist() == [number]
    assert centred(np.array([number % 2**64], np.uint64)).tolist() == [number]


def test_the_clouds_product_is_exact_mod_2_64() -> None:
    weights, vector = RANDOM.integers(-(2**15), 2**15, size=(7, 300)), words(300)
    exact = [sum(int(w) * int(v) for w, v in zip(row, vector, strict=True)) % 2**64 for row in weights]
    assert masked_product(weights, vector).tolist() == exact


@pytest.mark.parametrize("inputs", [1, 300, 8192, 8193])
def test_the_prepared_product_is_the_clouds_mod_2_48(inputs: int) -> None:
    weights = RANDOM.integers(-(2**15) + 1, 2**15, size=(3, inputs))
    weights[0] = 2**15 - 1
    masks = words(inputs, 2)
    masks[:, 0] = 2**48 - 1
    expected = [(masked_product(weights, np.ascontiguousarray(one)) % 2**48).tolist() for one in masks.T]
    assert products(weights.astype(np.float64), masks).T.tolist() == expected


def test_a_matrix_is_rounded_row_by_row_to_16_bits() -> None:
    matrix = RANDOM.normal(size=(5, 40)) * np.array([1e-6, 1, 100, 1e6, 0])[:, None]
    fixed = fixed_matrix(matrix)
    assert np.abs(fixed.integers).max(axis=1).tolist() == [32767] * 4 + [0]
    restored = fixed.integers * fixed.scale[:, None]
    assert np.all(np.abs(restored - matrix) <= fixed.scale[:, None] * 0.5000001)


def test_a_vector_of_zeros_or_of_tiny_numbers_is_zeros() -> None:
    for vector in (np.zeros(4), np.full(4, 5e-324)):
        assert fixed_vector(vector)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(value: float) -> None:
    with pytest.raises(CryptoParameterError, match="cannot be encoded"):
        fixed_vector(np.array([1.0, value]))
    with pytest.raises(CryptoParameterError, match="cannot be encoded"):
        fixed_matrix(np.array([[1.0, value]]))


def test_more_columns_than_a_product_has_room_for_are_refused() -> None:
    with pytest.raises(CryptoParameterError, match="above the limit of 65536"):
        fixed_matrix(np.zeros((1, (1 << 16) + 1)))


def test_masks_differ_by_number_and_key_and_come_back() -> None:
    first = mask(b"k" * 32, 1, count=1000)
    assert np.array_equal(first, mask(b"k" * 32, 1, count=1000))
    for other in (mask(b"k" * 32, 2, count=1000), mask(b"l" * 32, 1, count=1000)):
        assert not np.any(first == other)
    assert first.max() < 2**48
    assert abs(first.astype(np.float64).mean() / 2**47 - 1) < 0.1
