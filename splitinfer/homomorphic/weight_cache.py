"""Encoded matrices on disk, so that a later session need not encode them again; runs in the cloud, its own files.

One file a matrix, named by the weights' digest, profile, layer, operation and plan:

    file = SHA-256 of the rest, 32 || row factors, 8 bytes each || for every diagonal its length, 4, and SEAL's bytes

A length of 0 is a diagonal of zeros. A file that is damaged, or of another plan, is as good as none and is made anew.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from splitinfer.errors import StateError, VerificationError
from splitinfer.homomorphic.arithmetic import Arithmetic, EncodedLinear, Operand
from splitinfer.homomorphic.bindings import sealapi
from splitinfer.homomorphic.linear_plan import LinearPlan
from splitinfer.homomorphic.seal import ciphertext_limit, load, to_bytes
from splitinfer.rounds import Operation

__all__ = ["WeightCache"]

_LENGTH = struct.Struct(">I")
_DIGEST_BYTES = 32


class WeightCache:
    """A folder of encoded matrices of one model."""

    def __init__(self, folder: Path, *, weights_sha256: str) -> None:
        self._folder = folder
        self._weights_sha256 = weights_sha256

    def load(self, arithmetic: Arithmetic, key: tuple[int, Operation], plan: LinearPlan) -> EncodedLinear | None:
        """Return a matrix as it was kept; None where it was not, or the file is damaged or of another plan."""
        try:
            data = self._path(arithmetic, key, plan).read_bytes()
        except OSError:
            return None
        body, outputs = memoryview(data)[_DIGEST_BYTES:], plan.shape.outputs
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            return None
        try:
            operands = list(_operands(arithmetic, body[8 * outputs :]))
        except (VerificationError, struct.error):
            return None
        if len(operands) != plan.chunks * plan.tables * plan.diagonals:
            return None
        return EncodedLinear(plan, _cut(plan, operands), np.frombuffer(body[: 8 * outputs], "<f8"))

    def store(self, arithmetic: Arithmetic, key: tuple[int, Operation], linear: EncodedLinear) -> None:
        """Keep a matrix; raises StateError where the file cannot be written."""
        parts = [linear.scale.astype("<f8").tobytes()]
        for operand in (one for chunk in linear.diagonals for table in chunk for one in table):
            data = b"" if operand.value is None else to_bytes(operand.value)
            parts += [_LENGTH.pack(len(data)), data]
        body = b"".join(parts)
        path = self._path(arithmetic, key, linear.plan)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(body).digest() + body)
            temporary.replace(path)
        except OSError as error:
            raise StateError(f"encoded weights cannot be kept: {error.strerror}; free space or keep none") from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _path(self, arithmetic: Arithmetic, key: tuple[int, Operation], plan: LinearPlan) -> Path:
        (layer, operation), profile = key, arithmetic.parameters.profile
        turns = f"{plan.rows}x{plan.diagonals}x{plan.babies}"
        return self._folder / f"{self._weights_sha256}-{profile}-{layer}-{operation.name.lower()}-{turns}"


def _operands(arithmetic: Arithmetic, body: memoryview) -> Iterator[Operand]:
    limit, at = ciphertext_limit(arithmetic.parameters), 0
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        data = bytes(body[at : at + length])
        value = load(sealapi.Plaintext, arithmetic.context, data, limit_bytes=limit) if length else None
        yield Operand(value, False)
        at += length


def _cut(plan: LinearPlan, operands: list[Operand]) -> list[list[list[Operand]]]:
    tables = [operands[at : at + plan.diagonals] for at in range(0, len(operands), plan.diagonals)]
    return [tables[at : at + plan.tables] for at in range(0, len(tables), plan.tables)]
