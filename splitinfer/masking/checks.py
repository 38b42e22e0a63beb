"""Freivalds checks of the cloud's products mod 2^64: matrix -> Checks; product -> nothing, or AuthenticationError.

For a secret vector s, uniform in Z_2^64, and s W computed beforehand, an honest product y of z has s y = (s W) z mod
2^64. Let e be the error of y. Where e is not zero mod 2^48, some entry is 2^j times an odd number with j <= 47, and
s e mod 2^64 is uniform over multiples of 2^j at least: it is zero with probability at most 2^-(64 - 47) = 2^-17. Three
independent vectors let a wrong product pass with probability at most 2^-51. Errors that are zero mod 2^48 do no harm:
only the low 48 bits are used. One check mod 2^48 would let an error of 2^47 pass every second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from splitinfer.errors import AuthenticationError, TruncatedError
from splitinfer.masking.ring import Integers, Words, from_word_bytes, masked_product, to_word_bytes

__all__ = ["COUNT", "Checks", "Randomness"]

COUNT = 3
Randomness = Callable[[int], bytes]
"""Returns that many random bytes, from the operating system."""


@dataclass(frozen=True, slots=True)
class Checks:
    """Secret vectors [3, outputs] and their products with the matrix [3, inputs], both mod 2^64."""

    vectors: Words = field(repr=False)
    products: Words = field(repr=False)

    @classmethod
    def of(cls, weights: Integers, *, randomness: Randomness) -> Checks:
        """Draw the vectors of a matrix [outputs, inputs]; they never come from the masks' seed."""
        outputs = weights.shape[0]
        vectors = from_word_bytes(randomness(8 * COUNT * outputs), count=COUNT * outputs).reshape(COUNT, outputs)
        return cls(vectors, np.stack([masked_product(weights.T, vector) for vector in vectors]))

    def require(self, product: Words, masked: Words) -> None:
        """Check a product [outputs] of masked numbers [inputs]; raises AuthenticationError."""
        left = (self.vectors * product).sum(axis=1, dtype=np.uint64)
        right = (self.products * masked).sum(axis=1, dtype=np.uint64)
        if not np.array_equal(left, right):
            raise AuthenticationError

    def to_bytes(self) -> bytes:
        """Return vectors, then products."""
        return to_word_bytes(self.vectors) + to_word_bytes(self.products)

    @classmethod
    def from_bytes(cls, data: bytes, *, outputs: int, inputs: int) -> Checks:
        """Read what `to_bytes` wrote; raises TruncatedError for another length."""
        if len(data) != 8 * COUNT * (outputs + inputs):
            raise TruncatedError(f"checks take {len(data)} bytes, expected {8 * COUNT * (outputs + inputs)}")
        words = from_word_bytes(data, count=COUNT * (outputs + inputs))
        return cls(words[: COUNT * outputs].reshape(COUNT, outputs), words[COUNT * outputs :].reshape(COUNT, inputs))
