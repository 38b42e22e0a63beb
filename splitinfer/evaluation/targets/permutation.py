"""Permutations as attack targets only: of the rows and columns of hidden states, and of each head's columns.

Evaluation; never a policy. Shuffling hides nothing from who has the weights: `attacks.vocabulary` reads permuted hidden
states, `attacks.chosen_plaintext` finds a head's fixed permutation from a prompt of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["HeadPermutation", "permute_states"]


def permute_states(states: torch.Tensor, *, rows: bool, columns: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states [tokens, hidden] with shuffled rows, columns or both, and the order of the rows."""
    draw = torch.Generator().manual_seed(seed)
    row_order, column_order = (torch.randperm(size, generator=draw) for size in states.shape)
    row_order = row_order if rows else torch.arange(len(states))
    shuffled = states[row_order]
    return (shuffled[:, column_order] if columns else shuffled), row_order


@dataclass(frozen=True, slots=True)
class HeadPermutation:
    """A fixed permutation of the columns of every head, as schemes that fold it into the weights have."""

    orders: torch.Tensor = field(repr=False)

    @classmethod
    def make(cls, *, heads: int, dim: int, seed: int) -> HeadPermutation:
        """Draw one permutation a head."""
        draw = torch.Generator().manual_seed(seed)
        return cls(torch.stack([torch.randperm(dim, generator=draw) for _ in range(heads)]))

    def protect(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [heads, tokens, dim] with every head's columns in its order."""
        return torch.stack([head[:, order] for head, order in zip(rows, self.orders, strict=True)])
