"""What the table of layer kinds is made of: parts, the tensors that travel, and flags, what follows from them.

Both read a live layer and write a fresh one, on either side. The functions below yield the flags of one aspect of a
layer from its tensors and the number of tokens that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from splitinfer.handoff import RowRule, TensorName

__all__ = [
    "Flag",
    "Part",
    "attention_flags",
    "compressor_flags",
    "indexer_flags",
    "linear_flags",
    "linear_place_flags",
    "no_tensor_flags",
    "window_flags",
]


@dataclass(frozen=True, slots=True)
class Part:
    """Where a tensor stands in a layer: an attribute, or an entry of an attribute that is a dictionary.

    `lead` dimensions stand between the batch and the rows; one stands after them. A fixed state has no row axis.
    """

    name: TensorName
    rows: RowRule
    attribute: str
    key: str | int | None = None
    lead: int = 0

    def read(self, layer: Any) -> torch.Tensor | None:
        """Return the live layer's tensor, or None where the model made none."""
        return _read(layer, self.attribute, self.key)  # type: ignore[no-any-return]

    def write(self, layer: Any, tensor: torch.Tensor) -> None:
        """Put a tensor into a fresh layer."""
        _write(layer, self.attribute, self.key, tensor)


@dataclass(frozen=True, slots=True)
class Flag:
    """A count or mark of a layer that follows from its tensors and the number of tokens."""

    attribute: str
    value: object
    key: str | int | None = None

    def is_set(self, layer: Any) -> bool:
        """Tell whether the live layer has this value."""
        found = _read(layer, self.attribute, self.key)
        return found is self.value or (not isinstance(found, torch.Tensor) and bool(found == self.value))

    def write(self, layer: Any) -> None:
        """Set it."""
        _write(layer, self.attribute, self.key, self.value)


def _read(layer: Any, attribute: str, key: str | int | None) -> Any:
    holder = getattr(layer, attribute, None)
    return holder if key is None or holder is None else holder.get(key)


def _write(layer: Any, attribute: str, key: str | int | None, value: object) -> None:
    if key is None:
        setattr(layer, attribute, value)
    else:
        getattr(layer, attribute)[key] = value


def attention_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield whether keys are set, and their dtype and device."""
    del tokens
    yield Flag("is_initialized", layer.keys is not None)
    if layer.keys is not None:
        yield Flag("dtype", layer.keys.dtype)
        yield Flag("device", layer.keys.device)


def window_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield the number of tokens seen; positions and mask follow from it, without any error where it is wrong."""
    del layer
    yield Flag("cumulative_length", tokens)
    yield Flag("record_past", value=False)


def indexer_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield whether indexer keys are set, and their dtype and device; positions of their own cannot travel."""
    del tokens
    yield Flag("is_indexer_initialized", layer.indexer_keys is not None)
    yield Flag("indexer_position_ids", None)
    if layer.indexer_keys is not None:
        yield Flag("indexer_dtype", layer.indexer_keys.dtype)
        yield Flag("indexer_device", layer.indexer_keys.device)


def linear_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield, for every state, whether it is set and the width of its convolution."""
    del tokens
    yield Flag("record_past", value=False)
    for index in range(layer.number_of_states):
        conv, recurrent = layer.conv_states[index], layer.recurrent_states[index]
        yield Flag("is_conv_states_initialized", conv is not None, index)
        yield Flag("has_previous_state", conv is not None, index)
        yield Flag("conv_kernel_size", None if conv is None else conv.shape[-1], index)
        yield Flag("is_recurrent_states_initialized", recurrent is not None, index)


def linear_place_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield the dtype and device of a layer without keys."""
    del tokens
    conv = next((state for state in layer.conv_states.values() if state is not None), None)
    if conv is not None:
        yield Flag("dtype", conv.dtype)
        yield Flag("device", conv.device)


def compressor_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield the number of compressed entries; the model keeps its keys under two names."""
    yield Flag("values", layer.keys)
    for name in layer.entry_count:
        yield Flag("entry_count", tokens // layer.compress_rate, name)


def no_tensor_flags(layer: Any, tokens: int) -> Iterator[Flag]:
    """Yield that a layer has no keys of its own."""
    del layer, tokens
    yield Flag("keys", None)
    yield Flag("values", None)
