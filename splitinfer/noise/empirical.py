"""Relative noise per layer, EMPIRICAL ONLY: slabs to noised slabs, with no guarantee; on the device, numpy only.

Each slab gets N(0, (r m)^2) where m is the root mean square of its own numbers. The scale depends on the private text
and one token changes every later row, so no epsilon exists for this and none is ever printed: the ledger counts it as
infinite. It is here because others ship it, so that attacks can be set against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from splitinfer.errors import UsageError
from splitinfer.noise.clipping import Slabs
from splitinfer.noise.stream import Float64, NoiseStream, add_noise

__all__ = ["LABEL", "EmpiricalSlabs", "noise_relative"]

LABEL = "empirical only"


@dataclass(frozen=True, slots=True)
class EmpiricalSlabs:
    """Slabs with relative noise; no price is known for showing them."""

    slabs: Mapping[str, Float64] = field(repr=False)
    relative_noise: float
    key_digest: str
    label: str = LABEL


def noise_relative(slabs: Slabs, *, relative_noise: float, stream: NoiseStream) -> EmpiricalSlabs:
    """Noise every slab in proportion to its own size; a slab of zeros stays as it is.

    Raises UsageError where `relative_noise` is not a positive number.
    """
    if not 0 < relative_noise < math.inf:
        raise UsageError("relative noise is a positive number: the noise over the root mean square of what it hides")
    noised = {name: _noised(rows.astype(np.float64), relative_noise, stream) for name, rows in slabs.items()}
    return EmpiricalSlabs(noised, relative_noise, stream.key_digest)


def _noised(rows: Float64, relative_noise: float, stream: NoiseStream) -> Float64:
    size = float(np.sqrt(np.mean(rows * rows))) if rows.size else 0.0
    return add_noise(rows, sigma=relative_noise * size, stream=stream) if size > 0 else rows
