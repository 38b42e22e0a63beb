"""Layer-0 dictionary: rows of the first layer -> token ids, without any forward through the model.

Threat: a reader of the first layer's keys or values who has the weights. Those rows depend on a token and its position
alone, so the rows of all tokens are computed once and the nearest wins. Where the values do not depend on the position
(rotary models), one dictionary serves every position and every prompt; else there is one a position.
"""

from __future__ import annotations

from functools import cached_property

import torch
from transformers import PreTrainedModel

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.likelihood import PerSlab, Variances, clipped, of_heads
from splitinfer.evaluation.attacks.observed import PARTS, CapturedCache, CapturedSlab
from splitinfer.evaluation.attacks.posterior import Recovered
from splitinfer.evaluation.attacks.prefixes import Prefixes

__all__ = ["LayerZeroDictionary"]

# Keys have another table at every position; with more tokens than these the values alone decide.
_MOST_KEYS = 16_384


class LayerZeroDictionary:
    """The first layer's rows of every token; made once a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._prefixes = Prefixes(model, positions=1)
        self._vocabulary = model.get_input_embeddings().num_embeddings

    def recover(self, capture: CapturedCache) -> Recovered:
        """Return the nearest token of every position that the first layer holds, -1 for the others.

        Values are used where they are held, else keys. Raises UsageError without any row of the first layer.
        """
        slab = capture.find(0, "values") or capture.find(0, "keys")
        if slab is None:
            raise UsageError("the dictionary needs keys or values of layer 0; capture that layer")
        found = [-1] * capture.tokens
        found[slab.first : slab.stop] = self._nearest(slab)
        return Recovered(tuple(found))

    def scores(
        self, capture: CapturedCache, variances: Variances, *, clip_norms: PerSlab | None = None, skip: frozenset[int]
    ) -> torch.Tensor:
        """Return the log-density [tokens, vocabulary] of the first layer's noised rows, zeros at positions to `skip`.

        It needs no prefix, so that no search is needed. `clip_norms` are those that rows were cut to before the noise.
        """
        found = torch.zeros(capture.tokens, self._vocabulary, dtype=torch.float64)
        for slab in (capture.find(0, part) for part in PARTS):
            if slab is None or (slab.part == "keys" and self._vocabulary > _MOST_KEYS):
                continue
            limit = (clip_norms or {}).get((0, slab.part))
            weights = 1 / (2 * of_heads(variances[0, slab.part], slab)).sqrt()
            for position in range(slab.first, slab.stop):
                if position not in skip:
                    table = self._table(slab, position, limit)
                    gaps = (table - slab.at(position)[:, None]).double() * weights[:, None, None]
                    found[position] -= gaps.square().sum((0, 2))
        return found

    def _table(self, slab: CapturedSlab, position: int, limit: float | torch.Tensor | None) -> torch.Tensor:
        """Return the rows [heads, vocabulary, dim] of every token at a position, cut where a limit is given."""
        anywhere = self._values if slab.part == "values" else None
        rows = (self._rows(slab.part, position) if anywhere is None else anywhere)[:, list(slab.heads)].transpose(0, 1)
        return rows if limit is None else clipped(rows, of_heads(limit, slab))

    @cached_property
    def _values(self) -> torch.Tensor | None:
        """Return the values [vocabulary, heads, dim] of the first layer, or None where they depend on the position."""
        here, there = self._rows("values", 0), self._rows("values", 1)
        return here if torch.allclose(here, there, rtol=1e-4, atol=1e-6) else None

    def _rows(self, part: str, position: int) -> torch.Tensor:
        tokens = torch.arange(self._vocabulary)[None]
        rows = self._prefixes.rows_after(tokens, last_layer=0, position=position)[0]
        return rows[0 if part == "keys" else 1][0].transpose(0, 1).float()

    def _nearest(self, slab: CapturedSlab) -> list[int]:
        if slab.part == "values" and self._values is not None:
            return _nearest(slab.rows.transpose(0, 1), self._values[:, list(slab.heads)])
        found = []
        for position in range(slab.first, slab.stop):
            table = self._rows(slab.part, position)[:, list(slab.heads)]
            found += _nearest(slab.at(position)[None], table)
        return found


def _nearest(rows: torch.Tensor, table: torch.Tensor) -> list[int]:
    """Return for rows [n, heads, dim] the indices of the nearest of table [vocabulary, heads, dim]."""
    mine, theirs = rows.flatten(1), table.flatten(1)
    # ||a - b||^2 without the part that is the same for every b.
    nearest: list[int] = (theirs.square().sum(1)[None] - 2 * mine @ theirs.T).argmin(1).tolist()
    return nearest
