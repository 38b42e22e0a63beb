"""Muon on matrices: momentum made orthogonal by Newton-Schulz steps, in float32, shared out over the processes.

torch's own Muon works in bfloat16, which is seven times slower than float32 on a CPU without bfloat16 arithmetic.
Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices [count, rows, columns] with their singular values brought near one."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x.size(-2) > x.size(-1)
    x = x.mT if is_tall else x
    first, second, third = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon:
    """Momentum .95 with Nesterov's look ahead, weight decay .05; every process works on its share of the matrices."""

    def __init__(
        self, weights: Sequence[Tensor], *, rank: int = 0, processes: int = 1, gather: Callable[[Tensor], None]
    ) -> None:
        self._weights = list(weights)
        self._rank, self._processes, self._gather = rank, processes, gather
        self.momenta = [torch.zeros_like(weight) for weight in self._weights]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the weights against their gradients."""
        total = sum(weight.numel() for weight in self._weights)
        updates, shapes = torch.zeros(total), {}
        offset = 0
        for index, (weight, momentum) in enumerate(zip(self._weights, self.momenta, strict=True)):
            gradient = weight.grad
            assert gradient is not None  # noqa: S101
            momentum.mul_(0.95).add_(gradient)
            place = updates[offset : offset + weight.numel()].view_as(weight)
            offset += weight.numel()
            if index % self._processes == self._rank:
                shapes.setdefault(weight.shape, []).append((place, gradient + 0.95 * momentum))
        for pairs in shapes.values():
            for (place, _), update in zip(pairs, orthogonalised(torch.stack([u for _, u in pairs])), strict=True):
                place.copy_(update)
        self._gather(updates)
        offset = 0
        for weight in self._weights:
            update = updates[offset : offset + weight.numel()].view_as(weight)
            offset += weight.numel()
            scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
            weight.mul_(1 - rate * 0.05).add_(update, alpha=-rate * scale)
