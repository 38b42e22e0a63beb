"""What an attacker expects before seeing anything: public texts of the victim's kind -> chances of the next token.

Evaluation. Interpolated n-grams: the chances after the last n - 1 tokens, with the weight total / (total + distinct) of
Witten and Bell, over those after fewer, down to equal chances. Mixed half and half with the attacked model's own
prediction: a model that was trained to answer, and not to continue prompts, is then no worse than the texts alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch

__all__ = ["TextPrior"]

_ORDER = 4


class TextPrior:
    """Counts of the attacker's own texts; `mixed` joins them with a model's log-probabilities."""

    def __init__(self, texts: Iterable[Sequence[int]], *, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self._first: Counter[int] = Counter()
        for ids in texts:
            for place, token in enumerate(ids):
                for length in range(min(place, _ORDER - 1) + 1):
                    self._counts[tuple(ids[place - length : place])][token] += 1
                if not place:
                    self._first[token] += 1

    def chances(self, prefix: Sequence[int]) -> torch.Tensor:
        """Return the chances [vocabulary] of the token after a prefix."""
        found = torch.full((self._vocabulary,), 1 / self._vocabulary, dtype=torch.float64)
        contexts = [tuple(prefix[len(prefix) - length :]) for length in range(min(len(prefix), _ORDER - 1) + 1)]
        counters = [self._counts[context] for context in contexts if context in self._counts]
        for counter in [*counters, *([self._first] if not prefix else [])]:
            total, distinct = counter.total(), len(counter)
            if total:
                found *= distinct / (total + distinct)
                places = torch.tensor(list(counter))
                found[places] += torch.tensor(list(counter.values()), dtype=torch.float64) / (total + distinct)
        return found

    def mixed(self, log_probabilities: torch.Tensor, prefixes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return log(p_model / 2 + p_texts / 2), [prefixes, vocabulary]; before the first token the texts alone."""
        own = torch.stack([self.chances(prefix) for prefix in prefixes]).log()
        if not prefixes[0]:
            return own
        return torch.logaddexp(log_probabilities.double(), own) - math.log(2)
