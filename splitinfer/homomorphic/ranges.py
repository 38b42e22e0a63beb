"""Numbers brought into the range that ciphertexts hold, and back; pure numpy, on the device (and for public rows).

A product holds magnitudes below 2^7. Queries and keys get l2 norms of at most 8, probabilities a sum of 8 and values
magnitudes of at most 8: by Cauchy-Schwarz no complex slot passes 64 sqrt(2) < 2^7, whatever the model computes. Keys
and values are centred first, which takes away constant channels (biases of keys), and put back exactly afterwards:
a centre moves all scores of a head by the same amount, and an output by its share of the probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import CryptoParameterError

__all__ = ["NORM", "SLOT_LIMIT", "CentredRows", "centred_keys", "centred_values", "normalised", "require_finite"]

NORM = 8.0
# Above every honest slot, far below what a ciphertext of another key decrypts to.
SLOT_LIMIT = 128.0
# Doubles of which squares still are numbers.
_MAGNITUDE_LIMIT = 1e100
Rows: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class CentredRows:
    """Rows [tokens, kv_heads, head_dim] = `rows` times `scale` [kv_heads] plus `centre` [kv_heads, head_dim]."""

    rows: Rows
    scale: Rows
    centre: Rows


def require_finite(what: str, values: Rows) -> Rows:
    """Return the values as float64; raises CryptoParameterError where one is not finite or too large to square."""
    wide = np.asarray(values, np.float64)
    if not np.all(np.abs(wide) <= _MAGNITUDE_LIMIT):
        raise CryptoParameterError(f"{what} hold numbers that cannot be encoded; the model's activations overflow")
    return wide


def normalised(rows: Rows) -> tuple[Rows, Rows]:
    """Scale every row [..., n] to an l2 norm of 8; returns rows and factors [...]. A zero row stays zero."""
    norms = np.linalg.norm(rows, axis=-1)
    scale = np.where(norms > 0, norms, NORM) / NORM
    return rows / scale[..., None], scale


def centred_keys(keys: Rows) -> CentredRows:
    """Centre keys and scale every head so that its longest row has a norm of 8."""
    centred, centre = _centred(require_finite("keys", keys))
    return _scaled(centred, centre, np.linalg.norm(centred, axis=-1).max(axis=0))


def centred_values(values: Rows) -> CentredRows:
    """Centre values and scale every head so that its largest magnitude is 8."""
    centred, centre = _centred(require_finite("values", values))
    return _scaled(centred, centre, np.abs(centred).max(axis=(0, 2)))


def _centred(rows: Rows) -> tuple[Rows, Rows]:
    centre = rows.mean(axis=0)
    return rows - centre, centre


def _scaled(rows: Rows, centre: Rows, largest: Rows) -> CentredRows:
    scale = np.where(largest > 0, largest, NORM) / NORM
    return CentredRows(rows / scale[:, None], scale, centre)
