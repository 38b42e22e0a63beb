"""The reader of a disk: what lies in the folders of device and cloud after a run -> whether anything of it can be read.

Evaluation. Threat: somebody who copied the store of public caches, or any other file of either side, and has no key.
He looks for what he would recognise: texts, the personal value, token ids in the usual widths, rows of the prompt's
cache in the usual dtypes. Sizes and numbers of files are seen in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.evaluation.capture import Stage
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.prompts import EvaluationPrompt
from splitinfer.handoff import SamplingParams
from splitinfer.model.engine import Engine
from trust_models.policy import Policy

__all__ = ["StoreFigures", "probes_of", "read_disk", "share_found"]

_RUN_TOKENS, _TEXT_LETTERS = 6, 24
_ID_TYPES, _ROW_TYPES = ("<u2", "<u4", "<i8"), (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """Files of the store of public caches and their bytes, and the share of probes that any file of a side held."""

    files: int
    size_bytes: int
    found: Rate

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {"files": self.files, "size_bytes": self.size_bytes, "found": self.found.to_json()}


def read_disk(policy: Policy, engine: Engine, prompt: EvaluationPrompt, *, params: SamplingParams) -> StoreFigures:
    """Run a prompt with the store that the policy asks for, and look for it in every file that is left."""
    with Stage.open(policy, engine, use_store=True) as stage:
        run = stage.run(prompt, params=params)
        ids = run.tokens.token_ids
        exact = engine.prefill(ids, steps=[(0, len(ids))])
        stored = _files(stage.device.path / "store")
        everything = _files(stage.folder)
    found = share_found(probes_of(prompt, ids, exact), everything)
    return StoreFigures(len(stored), sum(map(len, stored)), found)


def probes_of(prompt: EvaluationPrompt, token_ids: Sequence[int], cache: CacheSnapshot) -> list[bytes]:
    """Return what a reader would recognise of a prompt: texts, runs of token ids, rows of its cache."""
    probes = [prompt.secret.encode()]
    probes += [segment.text[:_TEXT_LETTERS].encode() for segment in prompt.segments]
    for first in range(0, len(token_ids) - _RUN_TOKENS, _RUN_TOKENS):
        run = np.asarray(token_ids[first : first + _RUN_TOKENS])
        probes += [run.astype(kind).tobytes() for kind in _ID_TYPES]
    for layer in cache.layers:
        for tensor in layer.values():
            row = tensor.reshape(-1, tensor.shape[-1])[1].detach().cpu()
            probes += [_bytes(row.to(kind)) for kind in _ROW_TYPES]
    return probes


def share_found(probes: Iterable[bytes], files: Sequence[bytes]) -> Rate:
    """Return how many of the probes lie in any of the files."""
    hits = [any(probe in data for data in files) for probe in probes]
    return Rate(sum(hits), len(hits))


def _bytes(row: torch.Tensor) -> bytes:
    return row.contiguous().view(torch.uint8).numpy().tobytes()


def _files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
