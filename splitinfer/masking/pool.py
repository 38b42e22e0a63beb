"""A folder of one-time masks and their products with the model's matrices; on the device.

    pool.json   pool id, digest of the weights, layout        key        the masks' key
    secrets     row factors and Freivalds checks              products   W r mod 2^48, one row a mask
    mark        how many masks are gone (`marks`)

A mask is one token's. It is reserved durably before it is used and never again, also after a crash in between.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import StateError, TruncatedError
from splitinfer.masking.checks import COUNT, Checks, Randomness
from splitinfer.masking.files import append, make_folder, write_small
from splitinfer.masking.fixed_point import FixedMatrix
from splitinfer.masking.layout import MaskLayout, MatrixKey
from splitinfer.masking.marks import Marks
from splitinfer.masking.ring import Words, from_mask_bytes
from splitinfer.masking.stream import mask
from splitinfer.rounds import Operation

__all__ = ["Mask", "MaskPool", "MatrixSecrets"]

_VERSION = 1
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class MatrixSecrets:
    """What the device keeps of a matrix: the factors of its rows, and its checks."""

    scale: NDArray[np.float64]
    checks: Checks = field(repr=False)


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask: its number, its elements [inputs of all matrices], its products [outputs of all matrices]."""

    number: int
    words: Words = field(repr=False)
    products: Words = field(repr=False)


class MaskPool:
    """One pool; `anchors` is a folder outside it, which stays on this machine."""

    def __init__(self, folder: Path, *, anchors: Path) -> None:
        """Open a pool; raises StateError for a damaged one, MasksExhaustedError for one that must not be used."""
        self._folder = folder
        stated = _stated(folder)
        self.pool_id: str = stated["pool_id"]
        self.weights_sha256: str = stated["weights_sha256"]
        self.layout = MaskLayout.of(
            ((layer, Operation[name.upper()]), (outputs, inputs)) for layer, name, outputs, inputs in stated["layout"]
        )
        self._key = _read(folder / "key", _KEY_BYTES)
        self._marks = Marks(folder, anchors, pool_id=self.pool_id)
        self._reserved: set[int] = set()
        self._marks.read()

    @classmethod
    def create(
        cls,
        folder: Path,
        matrices: Mapping[MatrixKey, FixedMatrix],
        *,
        anchors: Path,
        weights_sha256: str,
        randomness: Randomness,
    ) -> MaskPool:
        """Make an empty pool for a model's matrices; raises StateError where there is a pool or no room."""
        layout = MaskLayout.of((key, matrix.integers.shape) for key, matrix in matrices.items())
        pool_id = randomness(16).hex()
        stated = {
            "version": _VERSION,
            "pool_id": pool_id,
            "weights_sha256": weights_sha256,
            "layout": layout.shapes(),
        }
        try:
            if (folder / "pool.json").exists():
                raise StateError("there is a mask pool in this folder already")
            make_folder(folder)
            write_small(folder / "key", randomness(_KEY_BYTES))
            write_small(folder / "secrets", _secrets(layout, matrices, randomness))
            Marks(folder, anchors, pool_id=pool_id).create()
            # Last, so that a folder with it is whole.
            write_small(folder / "pool.json", json.dumps(stated).encode())
        except OSError as error:
            raise StateError(f"the mask pool cannot be made: {error.strerror}") from error
        return cls(folder, anchors=anchors)

    def __repr__(self) -> str:
        return f"MaskPool({self.pool_id})"

    @property
    def prepared(self) -> int:
        """Return how many masks were ever prepared."""
        path = self._folder / "products"
        return path.stat().st_size // self.layout.product_bytes if path.exists() else 0

    @property
    def used(self) -> int:
        """Return how many masks are gone; raises MasksExhaustedError for a pool that must not be used."""
        return self._marks.read()

    @property
    def left(self) -> int:
        """Return how many masks can still be used."""
        return max(0, self.prepared - self.used)

    def secrets(self) -> dict[MatrixKey, MatrixSecrets]:
        """Return every matrix's row factors and checks; raises StateError where they are damaged."""
        places = self.layout.places.items()
        total = sum(8 * (place.outputs + COUNT * (place.outputs + place.inputs)) for _, place in places)
        data, at, found = _read(self._folder / "secrets", total), 0, {}
        for key, place in places:
            split = at + 8 * place.outputs
            stop = split + 8 * COUNT * (place.outputs + place.inputs)
            checks = Checks.from_bytes(data[split:stop], outputs=place.outputs, inputs=place.inputs)
            found[key] = MatrixSecrets(np.frombuffer(data[at:split], "<f8"), checks)
            at = stop
        return found

    def words(self, number: int) -> Words:
        """Return the elements of a mask, for preparing its products."""
        return mask(self._key, number, count=self.layout.inputs)

    def append(self, rows: bytes, *, first: int) -> None:
        """Append whole rows of products for the masks from `first` on; durable on return. Raises StateError."""
        if first != self.prepared or len(rows) % self.layout.product_bytes:
            raise StateError("products are appended in order and in whole rows")
        try:
            append(self._folder / "products", rows, at=first * self.layout.product_bytes)
        except OSError as error:
            raise StateError(f"the mask pool cannot be written: {error.strerror}; free some space") from error

    def reserve(self, count: int) -> range:
        """Reserve up to `count` masks durably; raises MasksExhaustedError where none is left."""
        taken = self._marks.raise_by(count, limit=self.prepared)
        self._reserved.update(taken)
        return taken

    def take(self, number: int) -> Mask:
        """Return a mask that this process reserved, once; raises StateError for another, or a second time."""
        if number not in self._reserved:
            raise StateError("a mask was asked for that is not reserved, or for a second time")
        self._reserved.discard(number)
        size = self.layout.product_bytes
        row = _read_at(self._folder / "products", number * size, size)
        return Mask(number, self.words(number), from_mask_bytes(row, count=size // 6))

    def discard(self) -> None:
        """Destroy the pool and refuse its copies: after a wrong result its secrets may be known."""
        self._marks.discard()
        self._reserved.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def _secrets(layout: MaskLayout, matrices: Mapping[MatrixKey, FixedMatrix], randomness: Randomness) -> bytes:
    parts = []
    for key in layout.places:
        matrix = matrices[key]
        parts.append(matrix.scale.astype("<f8").tobytes())
        parts.append(Checks.of(matrix.integers, randomness=randomness).to_bytes())
    return b"".join(parts)


def _stated(folder: Path) -> dict[str, Any]:
    try:
        stated = json.loads((folder / "pool.json").read_bytes())
    except FileNotFoundError:
        raise StateError("there is no mask pool in this folder; run `splitinfer masks prepare`") from None
    except (OSError, ValueError) as error:
        raise StateError("the mask pool's pool.json cannot be read; prepare a new pool") from error
    if not isinstance(stated, dict) or stated.get("version") != _VERSION:
        raise StateError("the mask pool is of another version; prepare a new pool")
    return stated


def _read(path: Path, size: int) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StateError(f"the mask pool's {path.name} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise StateError(f"the mask pool's {path.name} has {len(data)} bytes, expected {size}")
    return data


def _read_at(path: Path, at: int, size: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(handle, size, at)
        finally:
            os.close(handle)
    except OSError as error:
        raise StateError(f"the mask pool's products cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise TruncatedError("the mask pool's products end inside a row")
    return data
