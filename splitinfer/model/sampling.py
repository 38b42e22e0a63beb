"""Sampling: logits -> token id; the same logits and seed give the same token in any process.

All arithmetic is float64 in numpy, in one order: temperature, top-k, top-p, inverse CDF with one uniform a step.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from splitinfer.errors import ModelError, UsageError
from splitinfer.handoff import SamplingParams

__all__ = ["MAX_STOP_STRINGS", "Sampler", "require_sampling_params"]

MAX_STOP_STRINGS = 16
_MAX_SEED = 2**63 - 1
_Floats = npt.NDArray[np.float64]


class Sampler:
    """Chooses one token a step; greedy at temperature 0, else seeded. Holds the place in the random stream."""

    def __init__(self, params: SamplingParams) -> None:
        require_sampling_params(params)
        self._params = params
        self._uniforms = np.random.Generator(np.random.Philox(params.seed))

    def choose(self, logits: torch.Tensor) -> int:
        """Return the token id chosen from logits of shape [vocabulary]; of equal logits the lowest id.

        Raises ModelError where the logits are not numbers, as after an overflow.
        """
        values = logits.detach().to(device="cpu", dtype=torch.float64).numpy()
        if np.isnan(values).any() or not np.isfinite(values.max()):
            raise ModelError("the model's logits are not finite; try a dtype with a larger range, such as float32")
        if self._params.temperature == 0:
            return int(values.argmax())
        return self._draw(values)

    def _draw(self, logits: _Floats) -> int:
        order = np.argsort(-logits, kind="stable")
        if self._params.top_k:
            order = order[: self._params.top_k]
        mass = np.cumsum(_softmax(logits[order], self._params.temperature))
        if self._params.top_p < 1:
            mass = mass[: _smallest_set(mass, self._params.top_p)]
        position = int(np.searchsorted(mass, self._uniforms.random() * mass[-1], side="right"))
        return int(order[min(position, len(mass) - 1)])


def require_sampling_params(params: SamplingParams) -> None:
    """Raise UsageError for a value out of range, naming the field and the range."""
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise UsageError("temperature must be 0 (greedy) or a positive number")
    if not 0 < params.top_p <= 1:
        raise UsageError("top_p must be above 0 and at most 1 (1 switches it off)")
    if params.top_k < 0:
        raise UsageError("top_k must be 0 (off) or a positive number")
    if params.max_new_tokens < 1:
        raise UsageError("max_new_tokens must be at least 1")
    if not 0 <= params.seed <= _MAX_SEED:
        raise UsageError("seed must be between 0 and 2^63 - 1")
    if len(params.stop) > MAX_STOP_STRINGS or "" in params.stop:
        raise UsageError(f"stop must be at most {MAX_STOP_STRINGS} strings, none of them empty")


def _softmax(logits: _Floats, temperature: float) -> _Floats:
    # Dividing by a tiny temperature may reach -inf, of which the exponential is the right 0.
    with np.errstate(over="ignore"):
        weights: _Floats = np.exp((logits - logits.max()) / temperature)
    normalised: _Floats = weights / weights.sum()
    return normalised


def _smallest_set(mass: _Floats, top_p: float) -> int:
    """Return how many of the most likely tokens are needed for a mass of `top_p`; at least one."""
    return int(np.searchsorted(mass, top_p * mass[-1], side="left")) + 1
