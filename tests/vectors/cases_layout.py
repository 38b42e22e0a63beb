"""Vectors of checks 15 and 2 about layers that keep states: what their layout says, how their slabs are padded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import reference as ref
import world
from cases_honest import CACHE, STATES, lossless
from reference import Json
from vector import Vector
from world import LAYOUTS
from world import STATES as FIXED

Tensors = list[Json]
ATTENTION = world.attention("tokens")
LINEAR = [*ATTENTION, *FIXED]


def _layers(index: int, change: Json) -> Json:
    """Change one run of the layout."""
    return {"cache": {"layers": [{**run, **(change if i == index else {})} for i, run in enumerate(LAYOUTS["states"])]}}


def _linear(change: Callable[[Tensors], Tensors]) -> Json:
    """Change the tensors of the layer that has keys, values and two fixed states."""
    return _layers(0, {"tensors": change([dict(form) for form in LINEAR])})


def _member(place: int, change: Json) -> Json:
    return _linear(lambda forms: [{**form, **(change if i == place else {})} for i, form in enumerate(forms)])


_CHANGES: list[tuple[str, Json, str]] = [
    ("tensor-left-out", _linear(lambda forms: forms[:3]), "A state less than the model has."),
    (
        "tensor-repeated",
        _linear(lambda forms: [*forms, FIXED[1]]),
        "One state twice, and no rule which of them counts.",
    ),
    ("tensor-of-another-name", _member(1, {"name": "indexer_keys"}), "A name of the table that this kind lacks."),
    ("state-of-another-shape", _member(3, {"before": [2, 4]}), "As many bytes, in another shape."),
    ("state-of-another-dtype", _member(3, {"dtype": "bfloat16"}), "A float32 state cut to half its bytes."),
    ("stride-differs", _layers(2, {"stride": 8}), "Half as many compressed entries."),
]

COMPRESSED = world.lossless_slabs("full")
RAW_BYTES = 4 * 4 * world.PADDED_TOKENS

VECTORS = [
    *[Vector(15, slug, replace(STATES, sealed=change), sentence) for slug, change, sentence in _CHANGES],
    Vector(
        15,
        "padding-of-states-is-not-zero",
        replace(STATES, contents=world.cache_contents("states", pad=struct.pack("<f", 1.0))),
        "Rows behind the compressed entries and the remainder hold numbers.",
    ),
    Vector(
        15,
        "reply-state-of-another-shape",
        replace(CACHE, layout="states", sealed=_member(3, {"before": [2, 4]})),
        "A returned state of as many bytes in another shape.",
    ),
    Vector(
        2,
        "tensor-outside-the-table",
        replace(STATES, sealed=_member(3, {"name": "__class__"})),
        "A name outside the closed table of tensors; nothing that the wire names is ever set.",
    ),
    Vector(
        15,
        "reply-lossless-slab-longer-than-it-can-be",
        lossless([(RAW_BYTES + 2).to_bytes(4, "little") + bytes(RAW_BYTES + 2), *COMPRESSED[1:]]),
        "The first slab declares one byte more than its rows as they are would take.",
    ),
    Vector(
        15,
        "reply-lossless-of-a-larger-size-class",
        lossless(COMPRESSED, ref.padme(ref.padme(sum(map(len, COMPRESSED))) + 1)),
        "The slabs are honest, their announced length is a size class, but the next larger one.",
    ),
]
