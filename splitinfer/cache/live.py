"""Live caches: the empty one that a model's config asks for, and feeding token ids to a model on one; both sides."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from splitinfer.cache.kinds import LightningLayer, kind_of
from splitinfer.errors import UnsupportedCacheError

__all__ = ["UNSUPPORTED_CACHES", "feed", "layers_of", "logits_of", "new_cache", "require_cache_travels", "wipe_live"]
__all__ += ["zero_storage"]

# Their state is kept elsewhere than in a cache of layers: in lists or classes of their own, or in the model itself.
UNSUPPORTED_CACHES = ("rwkv", "xlstm", "recurrent_gemma")
_CACHE_ATTRIBUTES = frozenset({"layers", "layer_class_to_replicate", "offloading"})
_ARGUMENTS = ("past_key_values", "cache_params")
# Their scan starts from zero in every forward of several tokens; it goes on from the cache in a forward of one.
_ONE_BY_ONE = ("mamba", "falcon_mamba", "jamba", "zamba")


def require_cache_travels(model_type: object) -> None:
    """Raise UnsupportedCacheError for the model types that keep their state elsewhere than in a cache of layers."""
    if model_type in UNSUPPORTED_CACHES:
        raise UnsupportedCacheError(f"{model_type} keeps its state in a form that cannot travel as a KV cache")


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """Make the empty live cache of a model; raises UnsupportedCacheError for a kind outside the table."""
    decoder = config.get_text_config(decoder=True)
    require_cache_travels(decoder.model_type)
    try:
        cache = _lightning_cache(decoder) if decoder.model_type == "minimax" else DynamicCache(config=config)
    except KeyError as error:
        raise UnsupportedCacheError(f"the model has cache layers of type {error}, which cannot travel") from None
    for index, layer in enumerate(cache.layers):
        kind_of(index, layer)
    return cache


def layers_of(cache: DynamicCache) -> list[Any]:
    """Return the live layers; raises UnsupportedCacheError where the cache keeps state outside of them."""
    attributes = _CACHE_ATTRIBUTES | ({"linear_cache"} if _is_lightning(cache) else set())
    unknown = set(vars(cache)) - attributes
    is_known = type(cache) is DynamicCache or _is_lightning(cache)
    if not is_known or unknown or not cache.layers:
        names = ", ".join(sorted(unknown)) or "no layers"
        raise UnsupportedCacheError(
            f"the model keeps its state in a {type(cache).__name__} ({names}), not a plain cache"
        )
    return list(cache.layers)


def feed(module: Any, token_ids: Sequence[int], cache: DynamicCache, *, embeddings: torch.Tensor | None = None) -> Any:
    """Run a model, or its base, over token ids on a live cache that grows; return the output of the last forward.

    With `embeddings`, [1, tokens, dim], the module sees those and no id. One forward, but for the models that lose
    their state between two forwards of several tokens. Raises UnsupportedCacheError where the forward takes no cache.
    """
    return _forwards(module, token_ids, cache, embeddings)[-1]


def logits_of(model: Any, token_ids: Sequence[int], cache: DynamicCache) -> torch.Tensor:
    """Feed token ids as `feed` does and return the logits after each of them, [tokens, vocabulary]."""
    return torch.cat([output.logits[0] for output in _forwards(model, token_ids, cache)])


def _forwards(
    module: Any, token_ids: Sequence[int], cache: DynamicCache, embeddings: torch.Tensor | None = None
) -> list[Any]:
    if len(token_ids) == 1 or module.config.model_type not in _ONE_BY_ONE or _is_empty(cache):
        return [_forward(module, token_ids, cache, embeddings)]
    rows = [None] * len(token_ids) if embeddings is None else torch.split(embeddings, 1, dim=1)
    return [_forward(module, [token_id], cache, row) for token_id, row in zip(token_ids, rows, strict=True)]


def _forward(module: Any, token_ids: Sequence[int], cache: DynamicCache, embeddings: torch.Tensor | None) -> Any:
    names = _parameters_of(module.__class__)
    given: dict[str, Any] = {_cache_argument(module.__class__.__name__, names): cache}
    if embeddings is None:
        given["input_ids"] = torch.tensor([list(token_ids)], dtype=torch.long, device=module.device)
    else:
        given["inputs_embeds"] = embeddings
    seen = _seen_tokens(cache)
    if "position_ids" in names and seen is not None:
        # Some models count from 0 again where they are not told, whatever the cache holds.
        given["position_ids"] = torch.arange(seen, seen + len(token_ids), device=module.device)[None]
    return module(use_cache=True, **given)


def _seen_tokens(cache: DynamicCache) -> int | None:
    """Return how many tokens the attention layers have seen; None where there is none, and no position either."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return None


def _is_empty(cache: DynamicCache) -> bool:
    return not any(part.read(x) is not None for i, x in enumerate(cache.layers) for part in kind_of(i, x).parts)


def wipe_live(cache: DynamicCache, *, keep: Collection[int] = ()) -> None:
    """Zero a live cache's memory (best effort). Snapshots that share its tensors are zeroed with it.

    `keep` are the addresses of storages that stay as they are (see `snapshot.storages`).
    """
    with torch.inference_mode():
        for index, layer in enumerate(cache.layers):
            for part in kind_of(index, layer).parts:
                tensor = part.read(layer)
                if tensor is not None and tensor.untyped_storage().data_ptr() not in keep:
                    zero_storage(tensor)


def zero_storage(tensor: torch.Tensor) -> None:
    """Zero all memory behind a tensor, including what lies outside its view."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    tensor.as_strided((elements,), (1,), 0).zero_()


@functools.cache
def _parameters_of(module_class: type[torch.nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(module_class.forward).parameters)


def _cache_argument(name: str, parameters: frozenset[str]) -> str:
    argument = next((argument for argument in _ARGUMENTS if argument in parameters), None)
    if argument is None:
        raise UnsupportedCacheError(f"{name} takes no cache: its state cannot travel")
    return argument


def _lightning_cache(config: PreTrainedConfig) -> DynamicCache:
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    cache = MiniMaxCache()
    count = len(config.layer_types)
    cache.linear_cache = [None] * count
    cache.layers = [
        LightningLayer(cache.linear_cache, index) if kind == "linear_attention" else DynamicLayer()
        for index, kind in enumerate(config.layer_types)
    ]
    cache.layer_class_to_replicate = None
    return cache


def _is_lightning(cache: DynamicCache) -> bool:
    # By name first: the model's module is imported only where its cache is in use.
    if type(cache).__name__ != "MiniMaxCache":
        return False
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    return type(cache) is MiniMaxCache
