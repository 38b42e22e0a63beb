"""A model and public text -> Artefact; on any machine that has the model. Nothing is sent.

Two passes over the text: three pieces of four give means, covariances and weights, the fourth gives the deviations and
tables. Never user text: the basis is the covariance of what was read, and an artefact is given away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from splitinfer.cache.snapshot import layout_of
from splitinfer.calibration.fit import RIDGE, Moments, Projected, basis_of, groups_of
from splitinfer.calibration.gather import Gathered, gather
from splitinfer.calibration.rotations import find_rotations
from splitinfer.calibration.sequences import Corpus, Piece, sequences_of
from splitinfer.codec.transform.artefact import Artefact, Facts, GroupFacts, channels_of, encode
from splitinfer.codec.transform.levels import LEVELS
from splitinfer.codec.transform.rotation import Rotation
from splitinfer.errors import UnsupportedModelError
from splitinfer.handoff import CacheLayout
from splitinfer.model.loading import LoadedModel

__all__ = ["Calibration", "calibrate", "layer_groups"]

_HELD_OUT_OF = 4
_MAX_CHANNELS = 4096
_HELD_OUT_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """How to calibrate. `group_channels` bounds how many channels share a basis; `first_tokens` travel as they are.

    `ridge` is what the weight of a channel has besides its sensitivity, in means of that: it keeps what the loss of
    this corpus does not feel. `is_weighted` False leaves the gradients out, where a backward pass is too dear: more
    bits for the same loss.
    """

    limit_tokens: int = 200_000
    group_channels: int = _MAX_CHANNELS
    first_tokens: int = 4
    is_weighted: bool = True
    ridge: float = RIDGE
    levels: tuple[str, ...] = field(default=tuple(LEVELS))


def calibrate(
    loaded: LoadedModel,
    corpus: Corpus,
    settings: Calibration,
    *,
    progress: Callable[[int, int], None] | None = None,
    parts_of: Callable[[CacheLayout, GroupFacts], torch.Tensor] | None = None,
) -> Artefact:
    """Calibrate; `progress(done, total)` counts pieces of text.

    `parts_of` numbers a group's channels, so that components stay within some of them; for comparisons only.

    Raises UsageError for too short a corpus, UnsupportedModelError where no layer has keys and values of the form that
    `ftc1` codes, or its rotation is not understood.
    """
    layout = layout_of(loaded.model)
    groups = layer_groups(layout, settings.group_channels)
    layers = [index for group in groups for index in group.layers]
    rotations = find_rotations(loaded, layers)
    pieces = sequences_of(
        corpus, loaded.tokenizer, max_positions=loaded.max_positions, limit_tokens=settings.limit_tokens
    )
    run = _Run(loaded, settings, layers, rotations, progress, len(pieces))
    seen = [piece for index, piece in enumerate(pieces) if index % _HELD_OUT_OF]
    unseen = [piece for index, piece in enumerate(pieces) if not index % _HELD_OUT_OF]
    parts = [parts_of(layout, group) if parts_of else None for group in groups]
    bases = run.bases(seen, groups, [_channels(layout, group) for group in groups], parts)
    held_out = run.values(unseen, groups, bases)
    levels = [LEVELS[name] for name in settings.levels]
    found, tables = groups_of(bases, [tuple(group.layers) for group in groups], held_out, levels=levels)
    facts = Facts(
        version=1,
        **asdict(loaded.identity),
        corpus_sha256=corpus.sha256,
        corpus_tokens=sum(len(piece.token_ids) for piece in pieces),
        longest_context_tokens=max(len(piece.token_ids) for piece in pieces),
        first_tokens=settings.first_tokens,
        levels=list(settings.levels),
        style=next(iter(rotations.values())).style,
        rotations=_places(rotations),
        groups=groups,
        weighting="gradient" if settings.is_weighted else "none",
    )
    data = encode(facts, found, tables.centroids, rotations)
    return Artefact(facts, found, tables.centroids, rotations, hashlib.sha256(data).hexdigest())


def layer_groups(layout: CacheLayout, group_channels: int) -> list[GroupFacts]:
    """Join neighbouring layers of one kind, window and row rule until they have so many channels.

    Raises UnsupportedModelError where no layer has keys and values of its own heads.
    """
    found: list[GroupFacts] = []
    last: tuple[str, str, int] | None = None
    held = 0
    for index, layer in enumerate(layout.layers):
        rows = next((x.rows for x in layer.tensors if x.name == "keys"), "")
        channels = channels_of(layout, index, rows) if rows in ("tokens", "window") else 0
        if not channels:
            last = None
            continue
        kind = (layer.kind, rows, layer.window)
        if kind != last or held + channels > group_channels:
            found.append(GroupFacts(layers=[index], rows="tokens" if rows == "tokens" else "window"))
            held = channels
        else:
            found[-1].layers.append(index)
            held += channels
        last = kind
    if not found:
        raise UnsupportedModelError('no layer of this model keeps keys and values by head; use codec = "q8" or "raw"')
    return found


def _channels(layout: CacheLayout, group: GroupFacts) -> int:
    return sum(channels_of(layout, index, group.rows) for index in group.layers)


@dataclass(frozen=True, slots=True)
class _Run:
    """One calibration's passes over its pieces."""

    loaded: LoadedModel
    settings: Calibration
    layers: list[int]
    rotations: dict[int, Rotation]
    progress: Callable[[int, int], None] | None
    total: int

    def bases(
        self,
        pieces: Sequence[Piece],
        groups: Sequence[GroupFacts],
        channels: Sequence[int],
        parts: Sequence[torch.Tensor | None],
    ) -> list[Projected]:
        generator = torch.Generator().manual_seed(0)
        moments = [Moments(size) for size in channels]
        for done, piece in enumerate(pieces, start=1):
            gathered = self._gather(piece, generator, is_weighted=self.settings.is_weighted)
            for group, sums in zip(groups, moments, strict=True):
                rows, gradients = _joined(gathered, group)
                sums.add(rows, gradients)
            self._report(done)
        sensitivities = torch.cat([sums.sensitivity for sums in moments])
        mean = float(sensitivities.mean())
        ridge = self.settings.ridge
        return [
            basis_of(sums, mean_sensitivity=mean, ridge=ridge, parts=own)
            for sums, own in zip(moments, parts, strict=True)
        ]

    def values(
        self, pieces: Sequence[Piece], groups: Sequence[GroupFacts], bases: Sequence[Projected]
    ) -> list[torch.Tensor]:
        """Return the values [n, p] of each group on these pieces, some rows of each so that memory stays bounded."""
        generator = torch.Generator().manual_seed(1)
        kept: list[list[torch.Tensor]] = [[] for _ in groups]
        share = max(1, -(-sum(len(piece.token_ids) for piece in pieces) // _HELD_OUT_ROWS))
        for done, piece in enumerate(pieces, start=1):
            gathered = self._gather(piece, generator, is_weighted=False)
            for group, basis, into in zip(groups, bases, kept, strict=True):
                rows, _ = _joined(gathered, group)
                into.append(basis.values(rows[done % share :: share]))
            self._report(self.total - len(pieces) + done)
        return [torch.cat(values) for values in kept]

    def _gather(self, piece: Piece, generator: torch.Generator, *, is_weighted: bool) -> Gathered:
        return gather(
            self.loaded,
            piece,
            layers=self.layers,
            rotations=self.rotations,
            first_tokens=self.settings.first_tokens,
            generator=generator,
            is_weighted=is_weighted,
        )

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.total)


def _joined(gathered: Gathered, group: GroupFacts) -> tuple[torch.Tensor, torch.Tensor | None]:
    parts = [gathered.layers[index] for index in group.layers]
    gradients = [part.gradients for part in parts if part.gradients is not None]
    return torch.cat([part.rows for part in parts], 1), torch.cat(gradients, 1) if gradients else None


def _places(rotations: dict[int, Rotation]) -> dict[str, tuple[int, float]]:
    """Name for every layer the first of equal rows of frequencies, and its factor."""
    distinct: list[torch.Tensor] = []
    places = {}
    for layer, rotation in rotations.items():
        row = rotation.inverse_frequencies
        index = next((i for i, other in enumerate(distinct) if torch.equal(row, other)), len(distinct))
        if index == len(distinct):
            distinct.append(row)
        places[str(layer)] = (index, rotation.factor)
    return places
