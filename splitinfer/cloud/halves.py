"""Which halves this cloud offers to sessions of rounds: a loaded model -> protection word -> maker of halves.

`homomorphic` runs in a process of its own a session, which gets weights only where the opening asks for linear layers.
`masked` is a few integer products and runs in the thread that serves the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from splitinfer.cloud.rounds import Half, MakeHalf
from splitinfer.errors import ManifestError
from splitinfer.homomorphic.opening import read_opening
from splitinfer.homomorphic.process import CloudProcess
from splitinfer.masking.cloud import MaskedCloud, SeenMarks
from splitinfer.masking.fixed_point import FixedMatrix, fixed_matrix
from splitinfer.masking.layout import MatrixKey
from splitinfer.model.engine import Engine
from splitinfer.rounds import Operation, Record

__all__ = ["MarksOf", "make_halves"]


class MarksOf(Protocol):
    """Keeps, for every device by its public key, how many masks of its pools were seen."""

    def __call__(self, sender: bytes) -> SeenMarks:
        """Return the marks of one device."""


def make_halves(
    engine: Engine, *, marks: MarksOf, processes: int = 2, cache_folder: Path | None = None
) -> Mapping[str, MakeHalf]:
    """Return what this cloud offers; `homomorphic` only where TenSEAL is installed.

    `processes` share each product on ciphertexts; `cache_folder` keeps encoded weights between sessions.
    """
    fixed: dict[MatrixKey, FixedMatrix] = {}

    def homomorphic(_sender: bytes) -> Half:
        return _HomomorphicHalf(engine, processes=processes, cache_folder=cache_folder)

    def masked(sender: bytes) -> Half:
        if not fixed:
            fixed.update({key: fixed_matrix(matrix) for key, matrix in engine.operations().items()})
        return _MaskedHalf(fixed, weights_sha256=engine.identity.weights_sha256, marks=marks(sender))

    offered: dict[str, MakeHalf] = {"masked": masked}
    return {**offered, "homomorphic": homomorphic} if find_spec("tenseal") else offered


class _HomomorphicHalf:
    """Starts its process with the first record, which says whether weights are wanted."""

    def __init__(self, engine: Engine, *, processes: int, cache_folder: Path | None) -> None:
        self._engine, self._processes, self._cache_folder = engine, processes, cache_folder
        self._process: CloudProcess | None = None

    def answer(self, record: Record) -> Record:
        if self._process is None:
            self._process = self._start(record)
        return self._process.exchange(record)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def _start(self, record: Record) -> CloudProcess:
        if record.operation is not Operation.OPEN or not record.blobs:
            raise ManifestError("a session's first record must be the opening")
        uses_linears = read_opening(record.blobs[0]).uses_linears
        cache = (self._cache_folder, self._engine.identity.weights_sha256) if self._cache_folder else None
        return CloudProcess(
            matrices=self._engine.matrices() if uses_linears else None,
            processes=self._processes,
            cache=cache if uses_linears else None,
        )


class _MaskedHalf(MaskedCloud):
    """The masked half holds nothing that has to be dropped."""

    def close(self) -> None:
        """Do nothing."""
