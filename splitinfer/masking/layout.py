"""Which matrices a mask covers, and where in it each lies; MaskLayout <-> JSON values; both sides, pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from splitinfer.errors import CryptoParameterError
from splitinfer.masking.ring import MASK_BYTES
from splitinfer.rounds import Operation

__all__ = ["MaskLayout", "MatrixKey", "MatrixPlace"]

MatrixKey = tuple[int, Operation]
"""Layer and operation."""


@dataclass(frozen=True, slots=True)
class MatrixPlace:
    """One matrix [outputs, inputs]; its part of a mask begins at `input_at`, of the products at `output_at`."""

    outputs: int
    inputs: int
    output_at: int
    input_at: int


@dataclass(frozen=True, slots=True)
class MaskLayout:
    """The matrices of a model in order; one mask covers the inputs of all of them once, which is one token."""

    places: dict[MatrixKey, MatrixPlace]

    @classmethod
    def of(cls, shapes: Iterable[tuple[MatrixKey, tuple[int, int]]]) -> MaskLayout:
        """Lay out matrices by key and (outputs, inputs); raises CryptoParameterError for an empty one."""
        places: dict[MatrixKey, MatrixPlace] = {}
        output_at = input_at = 0
        for key, (outputs, inputs) in sorted(shapes):
            if outputs < 1 or inputs < 1 or key in places:
                raise CryptoParameterError(f"layer {key[0]} has an empty or a second {key[1].name.lower()} matrix")
            places[key] = MatrixPlace(outputs, inputs, output_at, input_at)
            output_at, input_at = output_at + outputs, input_at + inputs
        return cls(places)

    @property
    def inputs(self) -> int:
        """Return how many numbers one mask has."""
        return sum(place.inputs for place in self.places.values())

    @property
    def product_bytes(self) -> int:
        """Return the bytes that one mask's products take."""
        return MASK_BYTES * sum(place.outputs for place in self.places.values())

    def shapes(self) -> list[tuple[int, str, int, int]]:
        """Return layer, name, outputs, inputs of every matrix."""
        return [
            (layer, operation.name.lower(), place.outputs, place.inputs)
            for (layer, operation), place in self.places.items()
        ]
