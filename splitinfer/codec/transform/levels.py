"""The rate levels of `ftc1` and which components get how many bits: deviations -> bits; pure functions.

A component of deviation s that is coded with b bits has the error s^2 E(b), where E is that of the scalar table. Giving
the next bit where s^2 (E(b) - E(b + 1)) is largest is optimal, since that sequence falls for every component.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "MAX_BITS", "allocate", "codec_name", "level_of"]

# Bits an element, by codec id. The ids are those of the closed table.
LEVELS = MappingProxyType(
    {
        "ftc1-2": 2.0,
        "ftc1-1.5": 1.5,
        "ftc1-1": 1.0,
        "ftc1-0.75": 0.75,
        "ftc1-0.5": 0.5,
        "ftc1-0.375": 0.375,
    }
)
MAX_BITS = 7


def codec_name(level: float) -> str:
    """Return the codec id of a level."""
    return f"ftc1-{level:g}"


def level_of(codec: str) -> float | None:
    """Return a codec id's level, or None where it is another codec."""
    return LEVELS.get(codec)


def allocate(deviations: NDArray[np.float64], *, total_bits: int, errors: Sequence[float]) -> NDArray[np.uint8]:
    """Return the bits of every component [n], `total_bits` of them, `MAX_BITS` at most each.

    `errors[b]` is the mean squared error of a unit component at b bits, `errors[0]` is 1.
    """
    bits = np.zeros(len(deviations), dtype=np.uint8)
    variances = np.square(deviations)
    heap = [(-float(variance) * (errors[0] - errors[1]), index) for index, variance in enumerate(variances)]
    heapq.heapify(heap)
    for _ in range(min(total_bits, MAX_BITS * len(bits))):
        _, index = heapq.heappop(heap)
        bits[index] += 1
        held = int(bits[index])
        if held < MAX_BITS:
            heapq.heappush(heap, (-float(variances[index]) * (errors[held] - errors[held + 1]), index))
    return bits
