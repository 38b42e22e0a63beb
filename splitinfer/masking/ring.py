"""Exact integers: fixed-point numbers and masked numbers <-> bytes and products mod 2^64; pure numpy, both sides.

Masked numbers live in Z_2^48; products are computed mod 2^64, of which 2^48 is a divisor, so that the low 48 bits of a
product are those of the exact one. An int64 or uint64 product of numpy wraps mod 2^64, whatever the order of its sums.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import CryptoParameterError, TruncatedError

__all__ = [
    "MASK_BITS",
    "MASK_BYTES",
    "Integers",
    "Words",
    "centred",
    "from_mask_bytes",
    "from_word_bytes",
    "masked_product",
    "products",
    "to_mask_bytes",
    "to_word_bytes",
]

MASK_BITS = 48
MASK_BYTES = 6
_MASK = np.uint64((1 << MASK_BITS) - 1)
_LIMB_BITS = 24
_LIMB = np.uint64((1 << _LIMB_BITS) - 1)
# float64 sums of products of a 16-bit weight (15 bits and sign) and a limb of 24 bits are exact up to 2^53.
_EXACT_COLUMNS = 1 << 13

Words: TypeAlias = NDArray[np.uint64]
"""Elements of Z_2^64, or of Z_2^48 in the low bits."""
Integers: TypeAlias = NDArray[np.int64]


def to_mask_bytes(words: Words) -> bytes:
    """Write elements of Z_2^48, six bytes each, little-endian."""
    return np.ascontiguousarray(words, "<u8").reshape(-1, 1).view(np.uint8)[:, :MASK_BYTES].tobytes()


def from_mask_bytes(data: bytes, *, count: int) -> Words:
    """Read `count` elements of Z_2^48; raises TruncatedError for another length."""
    if len(data) != MASK_BYTES * count:
        raise TruncatedError(f"masked numbers take {len(data)} bytes, expected {MASK_BYTES * count}")
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :MASK_BYTES] = np.frombuffer(data, np.uint8).reshape(count, MASK_BYTES)
    return wide.view("<u8").reshape(count).astype(np.uint64)


def to_word_bytes(words: Words) -> bytes:
    """Write elements of Z_2^64, eight bytes each, little-endian."""
    return np.ascontiguousarray(words, "<u8").tobytes()


def from_word_bytes(data: bytes, *, count: int) -> Words:
    """Read `count` elements of Z_2^64; raises TruncatedError for another length."""
    if len(data) != 8 * count:
        raise TruncatedError(f"a product takes {len(data)} bytes, expected {8 * count}")
    return np.frombuffer(data, "<u8").astype(np.uint64)


def masked_product(weights: Integers, words: Words) -> Words:
    """Return weights [outputs, inputs] times masked numbers [inputs] mod 2^64."""
    product: Words = (weights @ words.view(np.int64)).view(np.uint64)
    return product


def products(weights: NDArray[np.float64], words: Words) -> Words:
    """Return weights [outputs, inputs], integers of 16 bits as float64, times [inputs, n] of Z_2^48, mod 2^48.

    Computed in two limbs by float64 matrix products, which are exact here and several times faster than integers.
    """
    total = np.zeros((weights.shape[0], words.shape[1]), np.uint64)
    for at in range(0, weights.shape[1], _EXACT_COLUMNS):
        part, held = weights[:, at : at + _EXACT_COLUMNS], words[at : at + _EXACT_COLUMNS]
        low = (part @ (held & _LIMB).astype(np.float64)).astype(np.int64).view(np.uint64)
        high = (part @ (held >> np.uint64(_LIMB_BITS)).astype(np.float64)).astype(np.int64).view(np.uint64)
        total += low + (high << np.uint64(_LIMB_BITS))
    return total & _MASK


def centred(words: Words) -> Integers:
    """Return the representatives of Z_2^48 from -2^47 to 2^47 - 1."""
    shift = np.uint64(64 - MASK_BITS)
    result: Integers = (words << shift).view(np.int64) >> np.int64(64 - MASK_BITS)
    return result


def require_finite(what: str, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the values as float64; raises CryptoParameterError where one is not a finite number."""
    wide = np.asarray(values, np.float64)
    if not np.all(np.isfinite(wide)):
        raise CryptoParameterError(f"{what} hold numbers that cannot be encoded; the model's activations overflow")
    return wide
