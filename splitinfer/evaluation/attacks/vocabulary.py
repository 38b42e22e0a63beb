"""Vocabulary matching: hidden states, also with permuted rows, columns or both -> token ids.

Threat: an honest-but-curious server with the weights that is handed hidden states. Source: "Hidden No More" (arXiv
2505.18332), section on permutations. Tokens are found from the first on: of the candidates' states after the prefix
found so far, the one nearest to any row that is still unmatched wins. A causal model makes this work with shuffled
rows: exactly one of them depends on the first token alone. Shuffled columns are compared as sorted values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from splitinfer.evaluation.attacks.posterior import Recovered
from splitinfer.evaluation.attacks.prefixes import Prefixes

__all__ = ["Matching", "match_vocabulary"]

_WIDENINGS = (16, 256)
# Another forward of the same tokens differs by rounding; another token, also in another row, by far more.
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class Matching:
    """What the attacker assumes of the states: at which layer they were taken, and what may be permuted."""

    layer: int
    rows_permuted: bool = False
    columns_permuted: bool = False


def match_vocabulary(model: PreTrainedModel, states: torch.Tensor, matching: Matching) -> Recovered:
    """Return the token ids of `states` [tokens, hidden] of one layer, in the order of the prompt."""
    targets = states.float().sort(dim=1).values if matching.columns_permuted else states.float()
    prefixes = Prefixes(model, positions=len(states))
    vocabulary = model.get_input_embeddings().num_embeddings
    left = list(range(len(states)))
    prior = torch.zeros(1, vocabulary)
    found: list[int] = []
    tried = 0
    while left:
        rows = left if matching.rows_permuted else left[:1]
        token, row, count = _nearest(prefixes, targets[rows], prior[0], matching)
        left.remove(rows[row])
        found.append(token)
        tried += count
        prior = prefixes.advance(torch.tensor([token]))
    return Recovered(tuple(found), candidates=tried)


def _nearest(
    prefixes: Prefixes, targets: torch.Tensor, prior: torch.Tensor, matching: Matching
) -> tuple[int, int, int]:
    """Return the token and row at the smallest distance, and how many tokens were tried."""
    order = prior.argsort(descending=True, stable=True)
    distances = torch.empty(0, len(targets))
    limit = _SAME * float(targets.abs().sum(1).mean())
    for size in (*_WIDENINGS, len(order)):
        more = order[len(distances) : size]
        states = prefixes.hidden_after(more[None], layer=matching.layer)[0].float()
        if matching.columns_permuted:
            states = states.sort(dim=1).values
        distances = torch.cat([distances, torch.cdist(states, targets, p=1)])
        if len(distances) == len(order) or float(distances.min()) < limit:
            break
    token, row = divmod(int(distances.argmin()), len(targets))
    return int(order[token]), row, len(distances)
