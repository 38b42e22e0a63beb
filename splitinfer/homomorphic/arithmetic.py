"""SEAL's operations with this session's public keys: ciphertexts in, ciphertexts out; runs in the cloud.

Holds no secret key and no way to make one: it is built from the context and from Galois and relinearisation keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import CryptoParameterError, ManifestError
from splitinfer.homomorphic.bindings import sealapi
from splitinfer.homomorphic.linear_plan import LinearPlan
from splitinfer.homomorphic.parameters import Parameters
from splitinfer.homomorphic.seal import Ciphertext, Context

__all__ = ["Arithmetic", "EncodedLinear", "Operand"]


@contextmanager
def _refusals() -> Iterator[None]:
    # SEAL refuses a product that would show its plaintext: of an encryption of zero without noise.
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ManifestError("SEAL refuses to multiply this ciphertext") from error


@dataclass(frozen=True, slots=True)
class Operand:
    """What a query is multiplied by: a ciphertext, or an encoded plaintext; None for a plaintext of zeros."""

    value: Any
    is_encrypted: bool


@dataclass(frozen=True, slots=True)
class EncodedLinear:
    """One matrix: `diagonals` [chunks][tables][diagonals], `scale` [outputs] to multiply the products with."""

    plan: LinearPlan
    diagonals: list[list[list[Operand]]]
    scale: NDArray[np.floating[Any]]


class Arithmetic:
    """Rotations, products and sums under one session's keys."""

    def __init__(
        self, context: Context, parameters: Parameters, *, galois_keys: Any, relinearisation_keys: Any
    ) -> None:
        self.context = context
        self.parameters = parameters
        self.encoder = sealapi.CKKSEncoder(context)
        self._evaluator = sealapi.Evaluator(context)
        self._galois_keys = sealapi.GaloisKeys() if galois_keys is None else galois_keys
        self._relinearisation_keys = relinearisation_keys

    def rotated(self, ciphertext: Ciphertext, steps: Iterable[int]) -> list[Ciphertext]:
        """Return the ciphertext rotated by every step, the first of which may be 0."""
        return [self._rotated(ciphertext, step) if step else ciphertext for step in steps]

    def _rotated(self, ciphertext: Ciphertext, step: int) -> Ciphertext:
        result = sealapi.Ciphertext()
        try:
            self._evaluator.rotate_vector(ciphertext, step, self._galois_keys, result)
        except (ValueError, RuntimeError) as error:
            raise CryptoParameterError(f"the session's keys do not allow a rotation by {step}") from error
        return result

    def rotate(self, ciphertext: Ciphertext, step: int) -> Ciphertext:
        """Return the ciphertext rotated by one step; raises CryptoParameterError where the key for it is missing."""
        return self._rotated(ciphertext, step) if step else ciphertext

    def products(self, ciphertexts: Sequence[Ciphertext], operands: Sequence[Operand]) -> Ciphertext | None:
        """Return the sum of products pair by pair, finished once; None where every operand is zero.

        Finished is relinearised, and rescaled where the parameters have a prime for it: in this order, since rescaling
        rounds the part that the squared key multiplies, which cost two digits.
        """
        encrypted = plain = None
        for ciphertext, operand in zip(ciphertexts, operands, strict=True):
            if operand.value is None:
                continue
            if operand.is_encrypted:
                encrypted = self._add_product(encrypted, self._evaluator.multiply, ciphertext, operand.value)
            else:
                plain = self._add_product(plain, self._evaluator.multiply_plain, ciphertext, operand.value)
        if encrypted is not None:
            self._relinearise(encrypted)
        total = self.sum([encrypted, plain])
        if total is not None and self.parameters.is_rescaled:
            self._evaluator.rescale_to_next_inplace(total)
        return total

    def _add_product(self, total: Ciphertext | None, multiply: Any, left: Ciphertext, right: Any) -> Ciphertext:
        product = sealapi.Ciphertext()
        with _refusals():
            multiply(left, right, product)
        if total is None:
            return product
        self._evaluator.add_inplace(total, product)
        return total

    def _relinearise(self, ciphertext: Ciphertext) -> None:
        if self._relinearisation_keys is None:
            raise CryptoParameterError(
                "the session's keys do not allow products of ciphertexts: no relinearisation keys"
            )
        self._evaluator.relinearize_inplace(ciphertext, self._relinearisation_keys)

    def sum(self, ciphertexts: Iterable[Ciphertext | None]) -> Ciphertext | None:
        """Add in place into the first; None where there is nothing to add."""
        total = None
        for ciphertext in ciphertexts:
            if total is None:
                total = ciphertext
            elif ciphertext is not None:
                self._evaluator.add_inplace(total, ciphertext)
        return total
