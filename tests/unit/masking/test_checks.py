from __future__ import annotations

import os

import numpy as np
import pytest

from splitinfer.errors import AuthenticationError, TruncatedError
from splitinfer.masking.checks import Checks
from splitinfer.masking.ring import masked_product

RANDOM = np.random.default_rng(2)
WEIGHTS = RANDOM.integers(-(2**15), 2**15, size=(60, 40))


def passes(checks: Checks, product: np.ndarray, masked: np.ndarray) -> bool:
    try:
        checks.require(product, masked)
    except AuthenticationError:
        return False
    return True


def passes_one_check_mod_2_48(checks: Checks, product: np.ndarray, masked: np.ndarray) -> bool:
    """The weak check that is not used: one vector, and all of it mod 2^48."""
    left = (checks.vectors[0] * product).sum(dtype=np.uint64)
    right = (checks.products[0] * masked).sum(dtype=np.uint64)
    return (int(left) - int(right)) % 2**48 == 0


def tampered(trial: int, product: np.ndarray) -> np.ndarray:
    """Half of the errors are 2^j on one element, j = 40 to 47; the others change all elements."""
    wrong = product.copy()
    if trial % 2:
        wrong[RANDOM.integers(len(wrong))] += np.uint64(1 << (40 + trial // 2 % 8))
    else:
        wrong += RANDOM.integers(1, 2**48, size=len(wrong), dtype=np.uint64)
    return wrong


def test_every_one_of_a_thousand_tampered_products_is_caught_where_a_weak_check_lets_some_pass() -> None:
    weak = 0
    for trial in range(1000):
        checks = Checks.of(WEIGHTS, randomness=os.urandom)
        masked = RANDOM.integers(0, 2**48, size=40, dtype=np.uint64)
        product = masked_product(WEIGHTS, masked)
        assert passes(checks, product, masked)
        wrong = tampered(trial, product)
        assert not passes(checks, wrong, masked)
        weak += passes_one_check_mod_2_48(checks, wrong, masked)
    # 2^47 passes every second time, 2^46 every fourth: of 500 errors about 62 are expected.
    assert 30 < weak < 100


def test_an_error_above_the_48_bits_that_are_used_does_no_harm_and_is_caught_all_the_same() -> None:
    checks = Checks.of(WEIGHTS, randomness=os.urandom)
    masked = RANDOM.integers(0, 2**48, size=40, dtype=np.uint64)
    product = masked_product(WEIGHTS, masked)
    product[3] += np.uint64(1 << 50)
    assert not passes(checks, product, masked)


def test_checks_come_back_from_their_bytes_and_show_nothing() -> None:
    checks = Checks.of(WEIGHTS, randomness=os.urandom)
    again = Checks.from_bytes(checks.to_bytes(), outputs=60, inputs=40)
    assert np.array_equal(again.vectors, checks.vectors)
    assert np.array_equal(again.products, checks.products)
    assert repr(checks) == "Checks()"
    with pytest.raises(TruncatedError):
        Checks.from_bytes(checks.to_bytes()[:-1], outputs=60, inputs=40)


def test_vectors_are_drawn_anew_every_time() -> None:
    first, second = (Checks.of(WEIGHTS, randomness=os.urandom) for _ in range(2))
    assert not np.any(first.vectors == second.vectors)
