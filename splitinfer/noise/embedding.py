"""Noise on embeddings, before prefill: rows of the private tokens to noised rows; on the device, numpy only.

Mechanism: y = e(x) + N(0, sigma^2 I) for every private token x, independent. For neighbours that differ in k tokens the
l2 sensitivity is D sqrt(k), so the release is mu-Gaussian private with mu = D sqrt(k) / sigma. The cache, and all that
is computed from y and public values, is post-processing: nothing composes over layers, heads, keys and values.

Post-processing of y itself costs nothing either. "none" prefills y. "nearest" takes the row next to y, "posterior" the
mean of the rows under prior(v) exp(-|y - e(v)|^2 / 2 sigma^2); which serves best is chosen on public text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from splitinfer.errors import UsageError
from splitinfer.noise.stream import Float64, NoiseStream, add_noise

__all__ = ["NoisedEmbeddings", "PostProcessing", "TextRows", "noise_embeddings"]

PostProcessing = Literal["none", "nearest", "posterior"]
_BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TextRows:
    """The public table of rows that private text can have, [rows, dim]; `prior` is their chance in public text.

    A prior of None counts every row alike. Raises UsageError where the prior is not a chance for every row.
    """

    rows: Float64 = field(repr=False)
    prior: Float64 | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the prior."""
        if self.prior is None:
            return
        is_chance = self.prior.shape == (len(self.rows),) and np.isfinite(self.prior).all() and (self.prior >= 0).all()
        if not is_chance or self.prior.sum() <= 0:
            raise UsageError("a prior has one chance for each row of the table, 0 or more, and not all 0")


@dataclass(frozen=True, slots=True)
class NoisedEmbeddings:
    """Rows that may be shown to the other side at the price of `sigma`; made by `noise_embeddings` only.

    `key_digest` names the key that the noise came from.
    """

    rows: Float64 = field(repr=False)
    sigma: float
    key_digest: str


def noise_embeddings(
    exact: npt.NDArray[np.floating],
    *,
    sigma: float,
    stream: NoiseStream,
    post: PostProcessing = "none",
    table: TextRows | None = None,
) -> NoisedEmbeddings:
    """Noise the rows [tokens, dim] of the private tokens, then post-process them.

    Raises UsageError where sigma is not positive, where rows are not finite, or where "nearest" and "posterior" have no
    table.
    """
    if exact.ndim != 2:
        raise UsageError("embeddings are rows of numbers, one for each private token")
    noised = add_noise(exact, sigma=sigma, stream=stream)
    if post != "none":
        noised = _post_processed(noised, post=post, table=table, sigma=sigma)
    return NoisedEmbeddings(noised, sigma, stream.key_digest)


def _post_processed(noised: Float64, *, post: PostProcessing, table: TextRows | None, sigma: float) -> Float64:
    if table is None or table.rows.shape[1:] != noised.shape[1:]:
        raise UsageError(
            f'post-processing "{post}" needs the table of rows that text can have, as wide as the embedding'
        )
    log_prior = _log_prior(table) if post == "posterior" else np.zeros(len(table.rows))
    half_squares = (table.rows * table.rows).sum(axis=1) / 2
    out = np.empty_like(noised)
    for start in range(0, len(noised), _BLOCK_TOKENS):
        block = noised[start : start + _BLOCK_TOKENS]
        # |y - e|^2 / 2 without |y|^2, which is the same for every row.
        scores = log_prior[None, :] - (half_squares[None, :] - block @ table.rows.T) / sigma**2
        out[start : start + _BLOCK_TOKENS] = (
            _means(scores, table.rows) if post == "posterior" else _nearest(scores, table)
        )
    return out


def _log_prior(table: TextRows) -> Float64:
    if table.prior is None:
        return np.zeros(len(table.rows))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(table.prior / table.prior.sum()), dtype=np.float64)


def _nearest(scores: Float64, table: TextRows) -> Float64:
    return np.asarray(table.rows[scores.argmax(axis=1)], dtype=np.float64)


def _means(scores: Float64, rows: Float64) -> Float64:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray((weights / weights.sum(axis=1, keepdims=True)) @ rows, dtype=np.float64)
