"""Hypotheses about a prompt's beginning, held as the model's own cache rows: token ids -> rows of keys and values.

Evaluation, in the attacker's hands. Candidates for the next token are packed as one sequence at the same position,
under a mask that lets each see its prefix and itself: a forward of C tokens, and no copy of the prefix for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from splitinfer.cache.live import new_cache
from splitinfer.errors import UnsupportedModelError

__all__ = ["CHUNK_CANDIDATES", "Prefixes", "Rows", "caching_layers", "rows_of"]

CHUNK_CANDIDATES = 256

Rows = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer: [prefixes, heads, candidates, head_dim]."""


class _Enough(BaseException):
    """The last layer that is wanted has its rows. Not an Exception, so that no handler in a model takes it for one."""


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """One layer's rows of every prefix, in memory with room for the candidates of one forward behind them."""

    keys: Any
    values: Any

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.room = positions + CHUNK_CANDIDATES
        self.length = 0
        self.new: Rows | None = None
        self.is_last = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.new = (key_states, value_states)
        if self.is_last:
            raise _Enough
        stop = self.length + key_states.shape[2]
        self._make_room(key_states, value_states)
        self.keys[:, :, self.length : stop] = key_states
        self.values[:, :, self.length : stop] = value_states
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.length

    def select(self, parents: torch.Tensor) -> None:
        if self.keys is not None:
            self.keys, self.values = self.keys.index_select(0, parents), self.values.index_select(0, parents)

    def _make_room(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        if self.keys is None:
            self.keys, self.values = (_room(rows, self.room) for rows in (keys, values))


class Prefixes:
    """Prefixes of equal length for one model; at first one, and empty.

    `positions` is the most tokens that a prefix will have. Raises UnsupportedModelError for a model with a layer
    that keeps something else than a row of keys and values a token.
    """

    def __init__(self, model: PreTrainedModel, *, positions: int) -> None:
        count = caching_layers(model)
        self._model = model
        self._layers = [_PrefixLayer(positions) for _ in range(count)]
        self._cache = DynamicCache(config=model.config)
        self._cache.layers = list(self._layers)
        self.count = 1

    @property
    def length(self) -> int:
        """Return how many tokens every prefix has."""
        return self._layers[0].length

    def rows_after(
        self, inputs: torch.Tensor, *, last_layer: int | None = None, position: int | None = None
    ) -> list[Rows]:
        """Return the rows that each candidate would add to its prefix, for layers 0 to `last_layer`.

        `inputs` is [prefixes, candidates] token ids, or [prefixes, candidates, hidden] embeddings. The forward ends
        at the last layer that is wanted. `position` is the candidates' position where it is not the next one.
        """
        chunks = [
            self._forward(chunk, last_layer, position=position)[0]
            for chunk in torch.split(inputs, CHUNK_CANDIDATES, dim=1)
        ]
        if len(chunks) == 1:
            return chunks[0]
        return [
            (torch.cat([keys for keys, _ in layer], 2), torch.cat([values for _, values in layer], 2))
            for layer in zip(*chunks, strict=True)
        ]

    def hidden_after(self, token_ids: torch.Tensor, *, layer: int) -> torch.Tensor:
        """Return [prefixes, candidates, hidden]: the hidden state at `layer` of each candidate; 0 is the embedding."""
        found = []
        for chunk in torch.split(token_ids, CHUNK_CANDIDATES, dim=1):
            _, output = self._forward(chunk, None, output_hidden_states=True)
            found.append(output.hidden_states[layer])
        return torch.cat(found, dim=1)

    def advance(self, inputs: torch.Tensor, *, parents: Sequence[int] | None = None) -> torch.Tensor:
        """Let every prefix grow by one token and return the log-probabilities of the next, [prefixes, vocabulary].

        `inputs` is [new prefixes] token ids or [new prefixes, hidden] embeddings; new prefix i continues
        `parents[i]`, or prefix i.
        """
        if parents is not None and list(parents) != list(range(self.count)):
            chosen = torch.tensor(list(parents), dtype=torch.long)
            for layer in self._layers:
                layer.select(chosen)
            self.count = len(parents)
        _, output = self._forward(inputs.unsqueeze(1), None, with_logits=True)
        for layer in self._layers:
            layer.length += 1
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits.log_softmax(-1)

    def _forward(
        self,
        inputs: torch.Tensor,
        last_layer: int | None,
        *,
        with_logits: bool = False,
        position: int | None = None,
        **asked: Any,
    ) -> tuple[list[Rows], Any]:
        count = inputs.shape[1]
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        module = self._model if with_logits else self._model.base_model
        stop = len(self._layers) - 1 if last_layer is None else last_layer
        for index, layer in enumerate(self._layers):
            # With logits or hidden states asked for, the forward must come to its end.
            layer.is_last = index == stop and not with_logits and not asked
        at = self.length if position is None else position
        positions = torch.full((inputs.shape[0], count), at, dtype=torch.long)
        given = {name: inputs, "position_ids": positions, "attention_mask": self._masks(count)}
        output = None
        with torch.inference_mode(), suppress(_Enough):
            output = module(**given, past_key_values=self._cache, use_cache=True, **asked)
        return [layer.new for layer in self._layers[: stop + 1] if layer.new is not None], output

    def _masks(self, count: int) -> torch.Tensor | dict[str, torch.Tensor]:
        config = self._model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        full = _mask(self.length, count, 0, self._model.dtype)
        if window is None or (kinds and "sliding_attention" not in kinds):
            return full
        sliding = _mask(self.length, count, int(window), self._model.dtype)
        if "full_attention" in kinds:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding


def rows_of(model: PreTrainedModel, prompt: Sequence[int] | torch.Tensor, *, last_layer: int) -> list[Rows]:
    """Return the rows of a whole prompt, [1, heads, tokens, head_dim], for layers 0 to `last_layer`.

    The prompt is token ids, or embeddings [tokens, hidden]. The forward ends at the last layer that is wanted. Raises
    UnsupportedModelError as `Prefixes` does.
    """
    layers = [_PrefixLayer(len(prompt)) for _ in range(caching_layers(model))]
    layers[last_layer].is_last = True
    cache = DynamicCache(config=model.config)
    cache.layers = list(layers)
    inputs = prompt[None] if isinstance(prompt, torch.Tensor) else torch.tensor([list(prompt)], dtype=torch.long)
    name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
    with torch.inference_mode(), suppress(_Enough):
        model.base_model(**{name: inputs}, past_key_values=cache, use_cache=True)
    return [layer.new for layer in layers[: last_layer + 1] if layer.new is not None]


def caching_layers(model: PreTrainedModel) -> int:
    """Return how many layers keep rows of keys and values; raises UnsupportedModelError where one keeps a state."""
    layers = new_cache(model.config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise UnsupportedModelError("this attack needs a model whose every cache layer keeps a row a token")
    return len(layers)


def _mask(length: int, count: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """Make the additive mask [1, 1, count, length + count]: the prefix, within the window, and itself."""
    mask = torch.full((count, length + count), torch.finfo(dtype).min, dtype=dtype)
    mask[:, max(0, length + 1 - window) if window else 0 : length] = 0
    mask[:, length:].fill_diagonal_(0)
    return mask[None, None]


def _room(rows: torch.Tensor, room: int) -> torch.Tensor:
    shape = list(rows.shape)
    shape[2] = room
    return rows.new_zeros(shape)
