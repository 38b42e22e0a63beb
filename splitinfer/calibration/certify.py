"""What a level of `ftc1` costs a model: model, artefact, texts -> Certificate; on any machine that has the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from splitinfer import codec
from splitinfer.cache.live import logits_of
from splitinfer.cache.snapshot import CacheSnapshot, restore
from splitinfer.calibration.gather import rows_of_layer
from splitinfer.calibration.needles import Question, digit_copies, needles
from splitinfer.codec.transform import Artefact
from splitinfer.errors import UsageError
from splitinfer.model.loading import LoadedModel
from splitinfer.model.measure import measure, windows
from splitinfer.model.prefill import prefill
from trust_models.certificates import Certificate, Paired
from trust_models.codecs import Loss

__all__ = ["Texts", "certify", "paired"]

_STEP_TOKENS = 512
_CONTEXT_TOKENS, _SCORED_TOKENS = 256, 64
_NEEDLE_TOKENS, _LONGER = 400, 4
Through = Callable[[CacheSnapshot], CacheSnapshot]
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Texts:
    """What to measure on: texts of the model's kind, texts of a domain that calibration did not see, real questions."""

    own: tuple[str, ...] = field(repr=False)
    foreign: tuple[str, ...] = field(default=(), repr=False)
    questions: tuple[Question, ...] = field(default=(), repr=False)


def certify(
    loaded: LoadedModel,
    artefact: Artefact,
    codec_name: str,
    texts: Texts,
    *,
    windows_count: int,
    progress: Report | None = None,
) -> Certificate:
    """Measure everything; `progress(done, total)` counts windows and questions. Raises UsageError for short texts."""

    def through(snapshot: CacheSnapshot) -> CacheSnapshot:
        return codec.move(snapshot, codec=codec_name, artefact=artefact)

    run = _Run(loaded, through, windows_count, progress)
    long_tokens = _long_tokens(loaded, artefact, texts.own)
    loss = run.loss(texts.own, _CONTEXT_TOKENS, windows_count)
    if loss is None:
        raise UsageError("the texts are too short to certify a codec on; give longer --text files")
    copies = max(4, windows_count)
    return Certificate(
        loss=loss,
        long=run.loss(texts.own, long_tokens, max(2, windows_count // 8)),
        foreign=run.loss(texts.foreign, _CONTEXT_TOKENS, windows_count),
        answers=run.paired(texts.questions) if texts.questions else None,
        needles=run.paired(needles(loaded.tokenizer, texts.own, tokens=_NEEDLE_TOKENS, count=copies)),
        digits=run.paired(digit_copies(loaded.tokenizer, count=copies)),
        saturation=_saturation(loaded, artefact, codec_name, texts.own),
        long_tokens=long_tokens,
    )


def _long_tokens(loaded: LoadedModel, artefact: Artefact, texts: Sequence[str]) -> int:
    """Return how long contexts are measured: four times calibration's, where model and texts have as many."""
    lengths = [len(loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)) for text in texts]
    most = min(loaded.max_positions, max(lengths) // 2) - _SCORED_TOKENS - 1
    return min(_LONGER * artefact.facts.longest_context_tokens, most)


@dataclass(frozen=True, slots=True)
class _Run:
    loaded: LoadedModel
    through: Through
    windows_count: int
    progress: Report | None

    def loss(self, texts: Sequence[str], context_tokens: int, count: int) -> Loss | None:
        """Return the loss on windows of these texts, or None where they are too short for two."""
        try:
            found = windows(
                self.loaded, texts, context_tokens=context_tokens, scored_tokens=_SCORED_TOKENS, limit=count
            )
        except UsageError:
            return None
        return measure(self.loaded, found, through=self.through, progress=self.progress)

    def paired(self, questions: Sequence[Question]) -> Paired:
        """Return what moving does to the answers."""
        return paired(self.loaded, questions, self.through, progress=self.progress)


def paired(
    loaded: LoadedModel, questions: Sequence[Question], through: Through, *, progress: Report | None = None
) -> Paired:
    """Answer every question by teacher forcing, on the exact cache and on the moved one."""
    rows = []
    for done, question in enumerate(questions, start=1):
        context = question.context
        steps = [(at, min(at + _STEP_TOKENS, len(context))) for at in range(0, len(context), _STEP_TOKENS)]
        snapshot = prefill(loaded.model, context, steps=steps)
        rows.append([*_answered(loaded, question, snapshot), *_answered(loaded, question, through(snapshot))])
        if progress is not None:
            progress(done, len(questions))
    table = torch.tensor(rows, dtype=torch.float64)
    right, nll, right_moved, nll_moved = table.T
    drop, rise = right - right_moved, nll_moved - nll
    return Paired(
        questions=len(rows),
        accuracy=float(right.mean()),
        accuracy_drop=float(drop.mean()),
        accuracy_drop_error=_error(drop),
        nll=float(nll.mean()),
        nll_rise=float(rise.mean()),
        nll_rise_error=_error(rise),
    )


def _answered(loaded: LoadedModel, question: Question, snapshot: CacheSnapshot) -> tuple[float, float]:
    """Return 1.0 where every token of the answer is the most likely one, and the answer's mean nll."""
    cache = restore(snapshot, loaded.model.config, device=loaded.model.device)
    fed = (*question.prompt, *question.answer[:-1])
    with torch.inference_mode():
        logits = logits_of(loaded.model, fed, cache)[len(question.prompt) - 1 :].float().cpu()
    found = torch.log_softmax(logits, -1)
    target = torch.tensor(question.answer)
    right = bool((found.argmax(-1) == target).all())
    return float(right), float(-found.gather(1, target.unsqueeze(1)).mean())


def _saturation(loaded: LoadedModel, artefact: Artefact, codec_name: str, texts: Sequence[str]) -> float:
    """Return the share of coded values beyond their table's last cell, over the first rows of every text."""
    beyond = total = 0
    for text in texts:
        ids = loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        ids = ids[: min(_STEP_TOKENS, loaded.max_positions)]
        if len(ids) <= artefact.facts.first_tokens:
            continue
        snapshot = prefill(loaded.model, ids, steps=[(0, len(ids))])
        for index, group in enumerate(artefact.groups):
            rows = [
                rows_of_layer(
                    snapshot.layers[layer]["keys"],
                    snapshot.layers[layer]["values"],
                    artefact.rotations[layer],
                    end_position=len(ids),
                )
                for layer in group.layers
            ]
            coder = artefact.group(index, codec_name)
            values = coder.values(torch.cat(rows, 1)[artefact.facts.first_tokens :])
            beyond, total = beyond + coder.saturated(values), total + values.numel()
    return beyond / total if total else 0.0


def _error(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
