"""All-layer maximum a posteriori: what was captured, and a language model's prior -> the most likely token ids.

Threat: a reader of the cache, or of part of it, who has the weights. Needs to see: rows of any layer, one is enough.
Score of a prompt: sum over positions of log-density of the captured rows + weight * log p(token | prefix). A beam is
kept, every position has an answer, and the search never stops at a miss. Candidates are the prior's shortlist, widened
where even the best of it explains the rows badly. Related: arXiv 2505.13758 (beam), 2605.24042 (Mahalanobis).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from splitinfer.evaluation.attacks.likelihood import Likelihood
from splitinfer.evaluation.attacks.prefixes import Prefixes
from splitinfer.evaluation.attacks.text_prior import TextPrior

__all__ = ["Beam", "Recovered", "recover"]

_WIDENINGS = (16, 256)


@dataclass(frozen=True, slots=True)
class Recovered:
    """The attacker's answer. `fits` are the positions' log-densities; `candidates` counts what was tried."""

    token_ids: tuple[int, ...] = field(repr=False)
    fits: tuple[float, ...] = ()
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class Beam:
    """How wide to search: prefixes kept, and the weight of the prior against the evidence.

    `shortlist` is the number of candidates of the first search; it is widened to 256, then to the vocabulary.
    """

    width: int = 1
    prior_weight: float = 1.0
    shortlist: int = _WIDENINGS[0]


@dataclass(slots=True)
class _Search:
    """The hypotheses at one length: scores [prefixes], ids and fits of each, and the prior of the next token."""

    scores: torch.Tensor
    ids: list[tuple[int, ...]]
    fits: list[tuple[float, ...]]
    prior: torch.Tensor
    candidates: int = 0


def recover(
    model: PreTrainedModel,
    likelihood: Likelihood,
    *,
    tokens: int,
    known: Mapping[int, int] | None = None,
    beam: Beam | None = None,
    texts: TextPrior | None = None,
    hints: torch.Tensor | None = None,
) -> Recovered:
    """Return the most likely prompt of `tokens` tokens; `known` fixes positions, as a template or public text does.

    `hints` [tokens, vocabulary] are log-densities that need no prefix; the shortlist is then the prior's and theirs.
    The prior is the model's own prediction, mixed with what `texts` of the victim's kind make likely. Raises
    UnsupportedModelError for a model with a layer that keeps no rows.
    """
    beam, known = beam or Beam(), known or {}
    prefixes = Prefixes(model, positions=tokens)
    vocabulary = model.get_input_embeddings().num_embeddings
    nothing = torch.zeros(1, vocabulary)
    first = nothing if texts is None else texts.mixed(nothing, [()])
    search = _Search(torch.zeros(1, dtype=torch.float64), [()], [()], first)
    for position in range(tokens):
        hint = None if hints is None or position >= len(hints) else hints[position]
        _grow(search, prefixes, likelihood, beam, known.get(position), hint=hint)
        if texts is not None:
            search.prior = texts.mixed(search.prior, search.ids)
    best = int(search.scores.argmax())
    return Recovered(search.ids[best], search.fits[best], search.candidates)


def _grow(
    search: _Search,
    prefixes: Prefixes,
    likelihood: Likelihood,
    beam: Beam,
    known: int | None,
    *,
    hint: torch.Tensor | None,
) -> None:
    tried, fits = _tried(search, prefixes, likelihood, beam, known, hint=hint)
    search.candidates += tried.numel()
    prior = search.prior.double().gather(1, tried)
    total = search.scores[:, None] + fits + beam.prior_weight * prior
    kept = total.flatten().topk(min(beam.width, total.numel()))
    parents = (kept.indices // tried.shape[1]).tolist()
    tokens = tried.flatten()[kept.indices]
    chosen = fits.flatten()[kept.indices].tolist()
    search.ids = [(*search.ids[parent], token) for parent, token in zip(parents, tokens.tolist(), strict=True)]
    search.fits = [(*search.fits[parent], fit) for parent, fit in zip(parents, chosen, strict=True)]
    search.scores = kept.values - kept.values.max()
    search.prior = prefixes.advance(tokens, parents=parents)


def _tried(
    search: _Search,
    prefixes: Prefixes,
    likelihood: Likelihood,
    beam: Beam,
    known: int | None,
    *,
    hint: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return candidates [prefixes, candidates] and their fits, of ever wider shortlists until one fits well."""
    count, vocabulary = search.prior.shape
    if known is not None:
        only = torch.full((count, 1), known, dtype=torch.long)
        return only, likelihood.scores(prefixes, only)
    sizes = [beam.shortlist, *(size for size in _WIDENINGS if size > beam.shortlist), vocabulary]
    # A position of equal priors has no shortlist: the first one, before anything is known.
    rank = search.prior if hint is None else beam.prior_weight * search.prior.double() + hint
    ranked = rank.sort(dim=1, descending=True).indices
    tried, fits = ranked[:, :0], torch.empty(count, 0, dtype=torch.float64)
    for size in sizes:
        more = ranked[:, tried.shape[1] : min(size, vocabulary)]
        tried = torch.cat([tried, more], 1)
        fits = torch.cat([fits, likelihood.scores(prefixes, more)], 1)
        best = fits.flatten().topk(2).values.tolist() if fits.numel() > 1 else [0.0, 0.0]
        if tried.shape[1] == vocabulary or likelihood.is_good(prefixes.length, *best):
            break
    return tried, fits
