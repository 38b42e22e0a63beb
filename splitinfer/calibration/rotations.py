"""How a model turns the keys of each layer: read from its rotary module, then tried out; LoadedModel -> Rotations.

The trial: a text of one token repeated has the same hidden state at every position, in every layer, since attention to
equal values gives that value. So its keys without rotation are equal rows; where they are not, the rotation is not
understood and the model is refused, because a wrong one costs much at few bits and shows nothing at many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from splitinfer.cache.live import feed, layers_of, new_cache
from splitinfer.codec.transform.rotation import STYLES, Rotation, Style
from splitinfer.errors import UnsupportedModelError
from splitinfer.model.loading import LoadedModel

__all__ = ["find_rotations"]

_TRIAL_TOKENS, _TRIAL_STEP = 1100, 256
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# Their frequencies change with the length of the text, so that a row depends on what came after it was computed.
_CHANGING = ("dynamic", "longrope")


def find_rotations(loaded: LoadedModel, layers: Sequence[int]) -> dict[int, Rotation]:
    """Return the rotation of each of these layers; raises UnsupportedModelError where none of the known ones fits."""
    keys = _trial_keys(loaded, layers)
    for style in STYLES:
        found = {index: _declared(loaded, index, style) for index in layers}
        if all(_is_constant(keys[index], found[index]) for index in layers):
            return found
    raise UnsupportedModelError(
        "the keys of this model are turned in a way that `ftc1` does not know, or differ by position otherwise; use "
        'codec = "q8"'
    )


def _declared(loaded: LoadedModel, layer: int, style: Style) -> Rotation:
    none = Rotation("none", torch.zeros(0))
    module = getattr(loaded.model.base_model, "rotary_emb", None)
    if style == "none" or module is None:
        return none
    config = loaded.model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    prefix = f"{types[layer]}_" if types and hasattr(module, f"{types[layer]}_inv_freq") else ""
    kind = getattr(module, "rope_type", "default")
    kind = kind.get(types[layer], "default") if isinstance(kind, dict) and types else kind
    if kind in _CHANGING:
        raise UnsupportedModelError(f'the model scales its positions by length ("{kind}"), which `ftc1` does not know')
    frequencies: Any = getattr(module, f"{prefix}inv_freq")
    factor: Any = getattr(module, f"{prefix}attention_scaling", 1.0)
    return Rotation(style, frequencies.detach().float().cpu().clone(), float(factor))


def _trial_keys(loaded: LoadedModel, layers: Sequence[int]) -> dict[int, tuple[torch.Tensor, int]]:
    """Return the keys of a text of one token [heads, rows, dim], and the position of the first row."""
    tokens = min(_TRIAL_TOKENS, loaded.max_positions)
    token = loaded.model.get_input_embeddings().num_embeddings - 1
    cache = new_cache(loaded.model.config)
    with torch.no_grad():
        for start in range(0, tokens, _TRIAL_STEP):
            feed(loaded.model.base_model, [token] * min(_TRIAL_STEP, tokens - start), cache)
    found = {}
    for index in layers:
        keys = layers_of(cache)[index].keys[0].detach()
        found[index] = (keys, tokens - keys.shape[1])
    return found


def _is_constant(trial: tuple[torch.Tensor, int], rotation: Rotation) -> bool:
    keys, at = trial
    if rotation.channels > keys.shape[2]:
        return False
    plain = rotation.apply(keys.float(), at, is_inverse=True)
    spread = (plain - plain[:, :1]).abs().amax()
    return bool(spread <= _TOLERANCE.get(keys.dtype, 2e-3) * plain.abs().amax())
