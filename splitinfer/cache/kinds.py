"""The closed table of cache layer kinds: which tensors of a live layer travel, and what follows from them; both sides.

A row names the exact layer class, every attribute that such a layer may have, the tensors with the rule of their rows,
and the flags: counts and marks that are never sent, because they follow from the tensors and the number of tokens. Both
directions use the same flags: a live layer whose flags are others is refused, a restored layer is given them.
A class, an attribute or an entry outside the table is refused by name, because state that is left behind gives wrong
tokens without any error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from splitinfer.cache.parts import (
    Flag,
    Part,
    attention_flags,
    compressor_flags,
    indexer_flags,
    linear_flags,
    linear_place_flags,
    no_tensor_flags,
    window_flags,
)
from splitinfer.errors import UnsupportedCacheError
from splitinfer.handoff import LayerKind, RowRule

__all__ = ["Kind", "LightningLayer", "kind_of", "stride_of", "window_of"]

_MOST_STATES = 4


class LightningLayer(DummyLayer):  # type: ignore[misc]  # transformers has no types
    """A layer of MiniMax's lightning attention, whose state stands in a list of the cache itself.

    As it holds no keys, the cache finds its number of tokens in the first layer that does.
    """

    def __init__(self, states: list[torch.Tensor | None], index: int) -> None:
        super().__init__()
        self.states = states
        self.index = index

    @property
    def linear_state(self) -> torch.Tensor | None:
        """Return the state, or None before the first token."""
        return self.states[self.index]

    @linear_state.setter
    def linear_state(self, state: torch.Tensor) -> None:
        self.states[self.index] = state


Flags = Callable[[Any, int], Iterator[Flag]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table."""

    name: LayerKind
    parts: tuple[Part, ...]
    attributes: frozenset[str]
    flags: tuple[Flags, ...]

    def flags_of(self, layer: Any, tokens: int) -> Iterator[Flag]:
        """Yield what follows from the layer's tensors and `tokens`."""
        for rule in self.flags:
            yield from rule(layer, tokens)

    def part(self, name: str) -> Part | None:
        """Return the part of this name, or None where the kind has none."""
        return next((part for part in self.parts if part.name == name), None)


def kind_of(index: int, layer: Any) -> Kind:
    """Return the kind of a live layer; raises UnsupportedCacheError, naming what is outside the table."""
    kind = next((kind for kind in _KINDS if type(layer) is _class_of(kind.name)), None)
    if kind is None:
        raise UnsupportedCacheError(
            f"cache layer {index} is a {type(layer).__name__}; only {', '.join(get_args(LayerKind))} layers can travel"
        )
    unknown = [*sorted(set(vars(layer)) - kind.attributes), *_unknown_entries(layer, kind)]
    if unknown:
        raise UnsupportedCacheError(f"cache layer {index} has state that cannot travel: {', '.join(unknown)}")
    return kind


def window_of(layer: Any) -> int:
    """Return a layer's window, or 0."""
    return int(getattr(layer, "sliding_window", 0))


def stride_of(layer: Any) -> int:
    """Return the number of tokens that make one compressed entry of a layer, or 0."""
    return int(getattr(layer, "compress_rate", 0))


def _unknown_entries(layer: Any, kind: Kind) -> list[str]:
    known = {(part.attribute, part.key) for part in kind.parts}
    holders = {part.attribute for part in kind.parts if part.key is not None}
    entries = sorted((name, key) for name in holders for key in getattr(layer, name))
    return [
        f"{name}[{key}]" for name, key in entries if (name, key) not in known and getattr(layer, name)[key] is not None
    ]


# --- the table --------------------------------------------------------------------------------------------------

_KEYS = Part("keys", "tokens", "keys", lead=1)
_FULL = (_KEYS, Part("values", "tokens", "values", lead=1))
_WINDOW_KEYS = Part("keys", "window", "keys", lead=1)
_WINDOW = (_WINDOW_KEYS, Part("values", "window", "values", lead=1))
_STATES = tuple(
    Part(f"{attribute}_{index}", "fixed", attribute, index)  # type: ignore[arg-type]
    for index in range(_MOST_STATES)
    for attribute in ("conv_states", "recurrent_states")
)
_COMPRESSED_ROWS: tuple[tuple[str, RowRule], ...] = (
    ("compressed_kv", "entries"),
    ("buffer_kv", "remainder"),
    ("buffer_gate", "remainder"),
)
_OVERLAP_ROWS: tuple[tuple[str, RowRule], ...] = (("overlap_kv", "overlap"), ("overlap_gate", "overlap"))


def _compressed(*names: str, rows: tuple[tuple[str, RowRule], ...]) -> tuple[Part, ...]:
    return tuple(
        Part(f"{name}_{attribute}", rule, attribute, name)  # type: ignore[arg-type]
        for name in names
        for attribute, rule in rows
    )


_FULL_NAMES = frozenset({"keys", "values", "is_initialized", "dtype", "device"})
_SLIDING_NAMES = _FULL_NAMES | {"sliding_window", "cumulative_length", "_sliding_window_tensor", "record_past"}
_INDEXED_NAMES = _FULL_NAMES | {
    "indexer_keys",
    "indexer_position_ids",
    "is_indexer_initialized",
    "indexer_dtype",
    "indexer_device",
}
_LINEAR_NAMES = frozenset(
    {
        "number_of_states",
        "conv_states",
        "recurrent_states",
        "is_conv_states_initialized",
        "is_recurrent_states_initialized",
        "has_previous_state",
        "conv_kernel_size",
        "device",
        "dtype",
        "record_past",
    }
)
_COMPRESSED_NAMES = _SLIDING_NAMES | {"compress_rate", "buffer_kv", "buffer_gate", "compressed_kv", "entry_count"}
_OVERLAP_NAMES = _COMPRESSED_NAMES | {"overlap_kv", "overlap_gate"}
_EMPTY_NAMES = frozenset({"keys", "values", "is_initialized"})

_KINDS = (
    Kind("full", _FULL, _FULL_NAMES, (attention_flags,)),
    Kind("sliding", _WINDOW, _SLIDING_NAMES, (attention_flags, window_flags)),
    Kind(
        "indexed",
        (*_FULL, Part("indexer_keys", "tokens", "indexer_keys")),
        _INDEXED_NAMES,
        (attention_flags, indexer_flags),
    ),
    Kind("linear", _STATES, _LINEAR_NAMES, (linear_flags, linear_place_flags)),
    Kind("linear_full", (*_FULL, *_STATES), _FULL_NAMES | _LINEAR_NAMES, (linear_flags, attention_flags)),
    Kind(
        "linear_sliding",
        (*_WINDOW, *_STATES),
        _SLIDING_NAMES | _LINEAR_NAMES,
        (linear_flags, attention_flags, window_flags),
    ),
    Kind(
        "compressed",
        (_WINDOW_KEYS, *_compressed("compressor", rows=_COMPRESSED_ROWS)),
        _COMPRESSED_NAMES,
        (attention_flags, window_flags, compressor_flags),
    ),
    Kind(
        "compressed_sparse",
        (_WINDOW_KEYS, *_compressed("compressor", "indexer", rows=(*_COMPRESSED_ROWS, *_OVERLAP_ROWS))),
        _OVERLAP_NAMES,
        (attention_flags, window_flags, compressor_flags),
    ),
    Kind(
        "lightning",
        (Part("linear_state", "fixed", "linear_state"),),
        _EMPTY_NAMES | {"states", "index"},
        (no_tensor_flags,),
    ),
    Kind("empty", (), _EMPTY_NAMES, (no_tensor_flags,)),
)

_CLASSES: dict[LayerKind, type[Any]] = {
    "full": DynamicLayer,
    "sliding": DynamicSlidingWindowLayer,
    "indexed": DynamicIndexedLayer,
    "linear": LinearAttentionLayer,
    "linear_full": LinearAttentionAndFullAttentionLayer,
    "linear_sliding": LinearAttentionAndSlidingWindowAttentionLayer,
    "lightning": LightningLayer,
    "empty": DummyLayer,
}
# Defined beside their model; transformers knows them by layer type once that is imported.
_LAYER_TYPES: dict[LayerKind, str] = {
    "compressed": "heavily_compressed_attention",
    "compressed_sparse": "compressed_sparse_attention",
}


def _class_of(kind: LayerKind) -> type[Any] | None:
    # The exact class: a subclass carries state that this table does not know.
    return _CLASSES.get(kind) or DYNAMIC_LAYER_TYPE_MAPPING.get(_LAYER_TYPES.get(kind, ""))
