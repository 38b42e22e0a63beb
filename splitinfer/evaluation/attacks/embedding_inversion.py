"""Inversion of a cache to the embeddings that it was computed from: rows of several layers -> inputs of the model.

Threat: whoever is handed a cache that was prefilled on noised embeddings, and has the weights. All layers are one
deterministic function of those embeddings, so the noise is undone by nothing and hidden by nothing: position by
position, the embedding is found whose rows are the captured ones, by damped Gauss-Newton steps. The Jacobian is taken
by differences, all columns as candidates of one forward. What is left over is returned as `residual`: at 1e-3 or below
the attacker has what was noised, and `posterior` goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.observed import CapturedCache, CapturedSlab
from splitinfer.evaluation.attacks.prefixes import Prefixes

__all__ = ["InvertedEmbeddings", "embedding_table", "invert_embeddings"]

_DIFFERENCE = 1e-3
_GOOD_RESIDUAL = 1e-5
_LEAST_PROGRESS = 0.98
_STEP_SIZES = (1.0, 0.6, 0.3, 0.1, 0.03)
# Loud noise is far longer than any row of the table, and a normalised first layer does not show by how much.
_LENGTHS = tuple(2.0**power for power in range(13))


@dataclass(frozen=True, slots=True)
class InvertedEmbeddings:
    """The inputs found, [tokens, hidden], and the root mean square misfit of their rows, relative to the rows."""

    rows: torch.Tensor = field(repr=False)
    residual: float


def embedding_table(model: PreTrainedModel) -> torch.Tensor:
    """Return the model's inputs [vocabulary, hidden] of all tokens, after the embedding's own scale."""
    embedding = model.get_input_embeddings()
    with torch.inference_mode():
        rows: torch.Tensor = embedding(torch.arange(embedding.num_embeddings))
    return rows.float().clone()


def invert_embeddings(
    model: PreTrainedModel,
    capture: CapturedCache,
    *,
    known: Mapping[int, int] | None = None,
    most_steps: int = 16,
) -> InvertedEmbeddings:
    """Find the inputs of every position; `known` tokens were not noised. Uses the first layers that suffice.

    Raises UsageError where rows of a first layer or of some positions are missing.
    """
    known = known or {}
    slabs = _enough(capture, hidden=model.get_input_embeddings().weight.shape[1])
    table = embedding_table(model)
    prefixes = Prefixes(model, positions=capture.tokens)
    size = float(table.square().mean().sqrt())
    found, misfits = [], []
    for position in range(capture.tokens):
        solver = _Solver(prefixes, slabs, position, size=size)
        start = table[known[position]] if position in known else solver.nearest(table)
        row, misfit = (start, solver.misfit(start)) if position in known else solver.solve(start, most_steps)
        found.append(row)
        misfits.append(misfit)
        prefixes.advance(row[None])
    return InvertedEmbeddings(torch.stack(found), float(torch.tensor(misfits).square().mean().sqrt()))


class _Solver:
    """One position: the captured rows there as one vector, relative to their size; `size` is that of the table."""

    def __init__(self, prefixes: Prefixes, slabs: list[CapturedSlab], position: int, *, size: float) -> None:
        self._prefixes, self._slabs, self._size = prefixes, slabs, size
        self._last_layer = max(slab.layer for slab in slabs)
        sizes = [float(slab.rows.square().mean().sqrt()) for slab in slabs]
        self._scales = [1 / max(size, 1e-12) for size in sizes]
        self._target = torch.cat(
            [slab.at(position).flatten() * scale for slab, scale in zip(slabs, self._scales, strict=True)]
        )

    def nearest(self, table: torch.Tensor) -> torch.Tensor:
        """Return the row of the table whose rows are nearest, at the length at which they are nearest."""
        row = table[int(self._gaps(table).square().sum(1).argmin())]
        lengths = row * torch.tensor(_LENGTHS)[:, None]
        return lengths[int(self._gaps(lengths).square().sum(1).argmin())]

    def misfit(self, row: torch.Tensor) -> float:
        """Return the root mean square of the gap."""
        return float(self._gaps(row[None]).square().mean().sqrt())

    def solve(self, row: torch.Tensor, most_steps: int) -> tuple[torch.Tensor, float]:
        """Return the row at the smallest gap found, and that gap."""
        misfit = self.misfit(row)
        for _ in range(most_steps):
            step = self._step(row)
            tried = torch.stack([row + size * step for size in _STEP_SIZES])
            misfits = self._gaps(tried).square().mean(1).sqrt()
            best = int(misfits.argmin())
            if not float(misfits[best]) < _LEAST_PROGRESS * misfit:
                break
            row, misfit = tried[best], float(misfits[best])
            if misfit < _GOOD_RESIDUAL:
                break
        return row, misfit

    def _step(self, row: torch.Tensor) -> torch.Tensor:
        # A row of zeros, as a padding token has, is no measure of its own.
        difference = _DIFFERENCE * max(float(row.square().mean().sqrt()), self._size)
        moved = row + difference * torch.eye(len(row))
        gaps = self._gaps(torch.cat([row[None], moved]))
        jacobian = (gaps[1:] - gaps[:1]) / difference
        target = -gaps[0].double()[:, None]
        solved: torch.Tensor = torch.linalg.lstsq(jacobian.T.double(), target, driver="gelsd").solution
        return solved[:, 0].float()

    def _gaps(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [inputs, elements]: the scaled rows of each input less the captured ones."""
        rows = self._prefixes.rows_after(inputs[None], last_layer=self._last_layer)
        parts = [
            rows[slab.layer][0 if slab.part == "keys" else 1][0, list(slab.heads)].transpose(0, 1).flatten(1) * scale
            for slab, scale in zip(self._slabs, self._scales, strict=True)
        ]
        return torch.cat(parts, 1).float() - self._target


def _enough(capture: CapturedCache, *, hidden: int) -> list[CapturedSlab]:
    """Return the slabs of the first layers, with twice as many elements a row as an input has."""
    kept: list[CapturedSlab] = []
    for layer in capture.layers:
        kept += [slab for slab in capture.slabs if slab.layer == layer and not slab.first]
        if sum(slab.at(0).numel() for slab in kept) >= 2 * hidden:
            break
    if not kept or kept[0].layer != 0:
        raise UsageError("inversion to embeddings needs whole keys or values of the first layers; capture them")
    return kept
