"""Captured caches of other systems: a directory in a documented format -> attacks on them. Evaluation.

The format, `splitinfer-captures/1`: a file `captures.json` with one object, `{"format": ..., "captures": [...]}`, and a
safetensors file for each capture. A capture names its `file`, its number of `tokens`, and its true `token_ids`, by
which recovery is counted. Tensors are called `layers.N.keys` and `layers.N.values`, [heads, rows, dim] with the
rotation of positions applied to the keys, as the model of transformers keeps them; fewer rows than tokens are the last
ones. Layers, heads and parts that were not captured are left out; then `heads` lists the heads that are there.
`convert` makes such a directory from plain dumps with other names, mlx-lm's saved prompt caches among them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.observed import CapturedCache, CapturedSlab, Part
from splitinfer.evaluation.capture import Exposure, Seat
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.playbook import ATTACKS, Attacker
from splitinfer.model.loading import LoadedModel

__all__ = ["FORMAT", "MLX_NAMES", "ForeignCapture", "Names", "attack_directory", "convert", "read_directory"]

FORMAT = "splitinfer-captures/1"
INDEX = "captures.json"
_NAME = re.compile(r"layers\.(\d+)\.(keys|values)")
# Half-precision rows of another runtime differ from ours by far more than rounding in float32.
_HALF_ROUNDING = 2e-2


@dataclass(frozen=True, slots=True)
class Names:
    """How a dump names its tensors: `{layer}` stands for the layer's number; `rows_first` for [rows, heads, dim]."""

    keys: str
    values: str
    rows_first: bool = False


MLX_NAMES = Names(keys="{layer}.0", values="{layer}.1")
"""The names that mlx-lm's `save_prompt_cache` writes: the state of cache N is the pair N.0, N.1."""


@dataclass(frozen=True, slots=True)
class ForeignCapture:
    """One captured cache with its true token ids."""

    cache: CapturedCache
    token_ids: tuple[int, ...] = field(repr=False)
    is_half: bool


def read_directory(directory: Path) -> Iterator[ForeignCapture]:
    """Yield the captures of a directory; raises UsageError that says what is wrong with it."""
    index = _index(directory)
    for number, entry in enumerate(index["captures"]):
        yield _capture(directory, entry, number)


def attack_directory(directory: Path, loaded: LoadedModel, *, attacks: Sequence[str]) -> dict[str, Any]:
    """Play the attacks that a cache allows on every capture, and return token recovery by attack.

    Raises UsageError for a directory that is not in the format or a cache that is not of this model.
    """
    tokens: dict[str, Rate] = {}
    seconds: dict[str, float] = {}
    for capture in read_directory(directory):
        _require_model(capture.cache, loaded)
        attacker = Attacker(loaded, relative_rounding=_HALF_ROUNDING if capture.is_half else None)
        exposure = Exposure(Seat.RECIPIENT, {}, cache=capture.cache, tokens=capture.cache.tokens)
        for name in attacks:
            began = time.perf_counter()
            found = ATTACKS[name].run(attacker, exposure, capture.cache.tokens)
            if found is not None:
                pairs = zip(found.token_ids, capture.token_ids, strict=False)
                hits = Rate(sum(mine == true for mine, true in pairs), len(capture.token_ids))
                tokens[name] = tokens.get(name, Rate(0, 0)) + hits
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
    rows = [
        {
            "attack": name,
            "tokens_recovered": rate.successes,
            "tokens": rate.trials,
            "token_recovery": rate.to_json(),
            "seconds": round(seconds[name], 3),
        }
        for name, rate in tokens.items()
    ]
    return {"format": FORMAT, "weights_sha256": loaded.identity.weights_sha256, "attacks": rows}


def convert(dumps: Mapping[Path, Sequence[int]], out: Path, *, names: Names) -> None:
    """Write a directory of captures from safetensors dumps of keys and values and the token ids of each.

    Leading dimensions of 1, the batch, are dropped. Raises UsageError for a dump without any tensor of these names.
    """
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (dump, token_ids) in enumerate(dumps.items()):
        tensors = _renamed(_load(dump), names)
        if not tensors:
            raise UsageError(f"{dump.name} has no tensors named like {names.keys} or {names.values}")
        file = f"{number:04}.safetensors"
        save_file(tensors, out / file)
        entries.append({"file": file, "tokens": len(token_ids), "token_ids": list(token_ids)})
    (out / INDEX).write_text(json.dumps({"format": FORMAT, "captures": entries}), encoding="utf-8")


def _renamed(tensors: Mapping[str, torch.Tensor], names: Names) -> dict[str, torch.Tensor]:
    found = {}
    for part, pattern in (("keys", names.keys), ("values", names.values)):
        before, _, after = pattern.partition("{layer}")
        expression = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        for name, tensor in tensors.items():
            match = expression.fullmatch(name)
            if match:
                found[f"layers.{int(match[1])}.{part}"] = _heads_first(tensor, names)
    return found


def _heads_first(tensor: torch.Tensor, names: Names) -> torch.Tensor:
    while tensor.dim() > 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.dim() != 3:
        raise UsageError("a dump's keys and values have three dimensions: heads, rows and the head's own")
    return (tensor.transpose(0, 1) if names.rows_first else tensor).contiguous()


def _index(directory: Path) -> dict[str, Any]:
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UsageError(f"{directory} has no readable {INDEX}; docs/evaluation.md describes the format") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("captures"), list):
        raise UsageError(f'{INDEX} is not of the format "{FORMAT}" with a list of captures')
    return index


def _capture(directory: Path, entry: Any, number: int) -> ForeignCapture:
    fields = entry if isinstance(entry, dict) else {}
    file, tokens, ids = fields.get("file"), fields.get("tokens"), fields.get("token_ids")
    is_good = isinstance(file, str) and Path(file).name == file and type(tokens) is int and tokens > 0
    if not is_good or not isinstance(ids, list) or len(ids) != tokens or not all(type(x) is int for x in ids):
        raise UsageError(f"capture {number} needs a file name, a number of tokens, and as many token_ids")
    tensors = _load(directory / str(file))
    heads = fields.get("heads")
    slabs = [_slab(name, tensor, int(str(tokens)), heads) for name, tensor in tensors.items()]
    if not slabs:
        raise UsageError(f"capture {number} has no tensor; it needs layers.N.keys or layers.N.values")
    slabs.sort(key=lambda slab: (slab.layer, slab.part))
    is_half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors.values())
    return ForeignCapture(CapturedCache(int(str(tokens)), tuple(slabs)), tuple(ids), is_half)


def _slab(name: str, tensor: torch.Tensor, tokens: int, heads: Any) -> CapturedSlab:
    match = _NAME.fullmatch(name)
    if match is None or tensor.dim() != 3 or not 0 < tensor.shape[1] <= tokens or not tensor.is_floating_point():
        raise UsageError("a captured tensor is called layers.N.keys or layers.N.values and is [heads, rows, dim]")
    part: Part = "keys" if match[2] == "keys" else "values"
    numbers = tuple(heads) if isinstance(heads, list) else tuple(range(tensor.shape[0]))
    if len(numbers) != tensor.shape[0] or not all(type(head) is int and head >= 0 for head in numbers):
        raise UsageError("heads lists the number of every head that was captured")
    return CapturedSlab(int(match[1]), part, numbers, tokens - tensor.shape[1], tensor.float())


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError):
        raise UsageError(f"{path.name} cannot be read as a safetensors file") from None
    return tensors


def _require_model(cache: CapturedCache, loaded: LoadedModel) -> None:
    from splitinfer.cache.snapshot import layout_of

    layout = layout_of(loaded.model).layers
    for slab in cache.slabs:
        tensors = layout[slab.layer].tensors if slab.layer < len(layout) else ()
        of_model = next((tensor for tensor in tensors if tensor.name == slab.part), None)
        if of_model is None or slab.rows.shape[2:] != of_model.after or max(slab.heads) >= of_model.before[0]:
            raise UsageError(
                f"layer {slab.layer} of a capture is not of this model's form; give its model with --model"
            )
