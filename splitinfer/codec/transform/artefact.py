"""The artefact that `splitinfer model calibrate` makes: a safetensors file <-> Artefact; both sides.

Made from public text only, bound to one model by its digests and to its layers' rotation, and named by the SHA-256 of
the whole file. Both sides must hold the same one. A file is checked before anything of it is used; nothing in it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from splitinfer.codec.transform.basis import Group, GroupAtLevel
from splitinfer.codec.transform.levels import LEVELS, MAX_BITS
from splitinfer.codec.transform.rotation import Rotation, Style
from splitinfer.errors import ArtefactError
from splitinfer.handoff import CacheLayout, ModelIdentity

__all__ = ["FILE_NAME", "MAX_ARTEFACT_BYTES", "Artefact", "Facts", "GroupFacts", "channels_of"]

FILE_NAME = "ftc1.safetensors"
MAX_ARTEFACT_BYTES = 2**30
_KEY = "splitinfer"
_HEADER_LENGTH_BYTES, _MAX_HEADER_BYTES = 8, 16 * 2**20
_GROUP_TENSORS = ("mean", "scale", "basis", "unit", "deviation", "bits")
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Index = Annotated[int, Field(ge=0, lt=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class GroupFacts(_Strict):
    """Which layers share a basis, in order, and the rows that all of them keep."""

    layers: Annotated[list[Index], Field(min_length=1, max_length=4096)]
    rows: Literal["tokens", "window"]


class Facts(_Strict):
    """What stands beside the tensors. `rotations` names for every layer a row of `frequencies` and its factor."""

    version: Literal[1]
    weights_sha256: Digest
    config_sha256: Digest
    tokenizer_sha256: Digest
    corpus_sha256: Digest
    corpus_tokens: Annotated[int, Field(ge=1)]
    longest_context_tokens: Annotated[int, Field(ge=1)]
    first_tokens: Annotated[int, Field(ge=0, le=64)]
    levels: Annotated[list[str], Field(min_length=1, max_length=64)]
    style: Style
    rotations: Annotated[dict[str, tuple[Index, float]], Field(max_length=4096)]
    groups: Annotated[list[GroupFacts], Field(min_length=1, max_length=4096)]
    weighting: Literal["gradient", "none"]


@dataclass(frozen=True, slots=True)
class Artefact:
    """A calibrated transform; `digest` names it in manifests and log."""

    facts: Facts
    groups: tuple[Group, ...] = field(repr=False)
    centroids: tuple[torch.Tensor, ...] = field(repr=False)
    rotations: Mapping[int, Rotation] = field(repr=False)
    digest: str
    _at_level: dict[tuple[int, str], GroupAtLevel] = field(default_factory=dict, repr=False, compare=False)

    @property
    def model(self) -> ModelIdentity:
        """Return the identity of the model that it was made for."""
        return ModelIdentity(self.facts.weights_sha256, self.facts.config_sha256, self.facts.tokenizer_sha256)

    def group(self, index: int, codec: str) -> GroupAtLevel:
        """Return a group's coder at a codec's level; made once. Raises ArtefactError for a level that it lacks."""
        key = (index, codec)
        if key not in self._at_level:
            if codec not in self.facts.levels:
                raise ArtefactError(f"the artefact has no level {codec}; it has {', '.join(self.facts.levels)}")
            self._at_level[key] = self.groups[index].at(self.facts.levels.index(codec), self.centroids)
        return self._at_level[key]

    def require_model(self, identity: ModelIdentity) -> None:
        """Raise ArtefactError where it was made for another model."""
        if self.model != identity:
            raise ArtefactError(
                "the artefact was made for another model, configuration or tokenizer; run `splitinfer model calibrate` "
                "for this one"
            )

    def require_layout(self, layout: CacheLayout) -> None:
        """Raise ArtefactError where a group does not have the channels of the model's layers."""
        for group, facts in zip(self.groups, self.facts.groups, strict=True):
            found = [channels_of(layout, index, facts.rows) for index in group.layers]
            if 0 in found or sum(found) != group.channels or any(i not in self.rotations for i in group.layers):
                raise ArtefactError("the artefact does not fit the model's cache layers; calibrate the model again")

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        return encode(self.facts, self.groups, self.centroids, self.rotations)

    @classmethod
    def read(cls, path: Path) -> Artefact:
        """Read a file; raises ArtefactError for one that is too large, malformed, or holds unusable numbers."""
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= MAX_ARTEFACT_BYTES else b""
        except OSError as error:
            raise ArtefactError(f"the artefact {path.name} cannot be read") from error
        if size > MAX_ARTEFACT_BYTES:
            raise ArtefactError(f"an artefact has at most {MAX_ARTEFACT_BYTES:,} bytes, this one has {size:,}")
        return cls.parse(data)

    @classmethod
    def parse(cls, data: bytes) -> Artefact:
        """Parse a file's bytes; raises ArtefactError as `read` does."""
        try:
            facts = Facts.model_validate_json(_facts_text(data))
            tensors = load_tensors(data)
        except (ValidationError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtefactError("the artefact is not a safetensors file with its facts; calibrate again") from error
        artefact = _assemble(facts, tensors, hashlib.sha256(data).hexdigest())
        _require_usable(artefact)
        return artefact


def channels_of(layout: CacheLayout, layer: int, rows: str) -> int:
    """Return heads x dim of keys and values together; 0 for a layer without two such tensors of these rows."""
    if layer >= len(layout.layers):
        return 0
    found = [x for x in layout.layers[layer].tensors if x.name in ("keys", "values")]
    if [x.name for x in found] != ["keys", "values"] or any(x.rows != rows for x in found):
        return 0
    if any(len(x.before) != 1 or len(x.after) != 1 for x in found):
        return 0
    return sum(x.before[0] * x.after[0] for x in found)


def encode(
    facts: Facts, groups: tuple[Group, ...], centroids: tuple[torch.Tensor, ...], rotations: Mapping[int, Rotation]
) -> bytes:
    """Return a file's bytes; the same for the same numbers."""
    tensors: dict[str, torch.Tensor] = {}
    for index, group in enumerate(groups):
        tensors |= {f"group.{index}.{name}": getattr(group, name).contiguous() for name in _GROUP_TENSORS}
    tensors |= {f"centroids.{bits}": table.contiguous() for bits, table in enumerate(centroids) if bits}
    rows = {index: rotations[int(layer)].inverse_frequencies for layer, (index, _) in facts.rotations.items()}
    if any(len(row) for row in rows.values()):
        tensors["frequencies"] = torch.stack([rows[index] for index in sorted(rows)])
    # One entry only: the order of several is not fixed.
    text = json.dumps(facts.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return bytes(save_tensors(tensors, metadata={_KEY: text}))


def _facts_text(data: bytes) -> str:
    length = int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, len(data) - _HEADER_LENGTH_BYTES):
        raise ValueError("no header")
    header = json.loads(data[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length])
    return cast(str, header["__metadata__"][_KEY])


def _assemble(facts: Facts, tensors: Mapping[str, torch.Tensor], digest: str) -> Artefact:
    taken = dict(tensors)
    try:
        groups = tuple(
            Group(tuple(group.layers), *(taken.pop(f"group.{index}.{name}") for name in _GROUP_TENSORS))
            for index, group in enumerate(facts.groups)
        )
        tables = [torch.zeros(1), *(taken.pop(f"centroids.{bits}") for bits in range(1, MAX_BITS + 1))]
        frequencies = taken.pop("frequencies", torch.zeros(1, 0))
        rotations = {
            int(layer): Rotation(facts.style, frequencies[index], factor)
            for layer, (index, factor) in facts.rotations.items()
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ArtefactError("the artefact lacks a tensor that its facts name; calibrate again") from error
    if taken:
        raise ArtefactError("the artefact holds tensors that its facts do not name; calibrate again")
    return Artefact(facts, groups, tuple(tables), rotations, digest)


def _require_usable(artefact: Artefact) -> None:
    facts = artefact.facts
    layers = [index for group in artefact.groups for index in group.layers]
    is_good = (
        len(set(layers)) == len(layers)
        and set(facts.levels) <= set(LEVELS)
        and len(set(facts.levels)) == len(facts.levels)
        and all(_is_group(group, len(facts.levels)) for group in artefact.groups)
        and all(_is_table(table, bits) for bits, table in enumerate(artefact.centroids) if bits)
        and all(_is_rotation(rotation) for rotation in artefact.rotations.values())
    )
    if not is_good:
        raise ArtefactError("the artefact holds shapes or numbers that no calibration makes; calibrate again")


def _is_group(group: Group, levels: int) -> bool:
    p, r = group.basis.shape if group.basis.dim() == 2 else (0, 0)
    floats = ((group.mean, p), (group.scale, p), (group.unit, r), (group.deviation, r))
    shapes = all(x.dtype == torch.float32 and tuple(x.shape) == (size,) for x, size in floats)
    if not (p and r and shapes and group.basis.dtype == torch.int8):
        return False
    if group.bits.dtype != torch.uint8 or tuple(group.bits.shape) != (levels, r):
        return False
    falls = r < 2 or bool((group.bits[:, 1:] <= group.bits[:, :-1]).all())
    finite = all(bool(x.isfinite().all()) and float(x.abs().max()) < _LARGE for x, _ in floats)
    positive = all(float(x.min()) > _SMALL for x in (group.scale, group.deviation))
    return falls and finite and positive and int(group.bits.max()) <= MAX_BITS


# Products of them stay far from float32's ends.
_LARGE, _SMALL = 1e9, 1e-9


def _is_table(table: torch.Tensor, bits: int) -> bool:
    if table.dtype != torch.float32 or tuple(table.shape) != (2**bits,) or not bool(table.isfinite().all()):
        return False
    return bool((table[1:] > table[:-1]).all()) and float(table.abs().max()) < _LARGE


def _is_rotation(rotation: Rotation) -> bool:
    row = rotation.inverse_frequencies
    return (
        row.dtype == torch.float32
        and bool(row.isfinite().all())
        and _SMALL < rotation.factor < _LARGE
        and (rotation.style == "none" or len(row) > 0)
    )
