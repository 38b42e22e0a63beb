"""Models whose prefill may not end early, each for one reason; all compute as the tiny Llama does otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support.cache_models import tiny_model


def remembering() -> Any:
    """The norm after the last layer keeps a state that the next forward's embeddings add: it is outside the cache."""
    model = tiny_model("llama")
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        kept[:] = [output.mean()]

    def add(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + kept[0] if kept and args[0].shape[1] == 3 else output

    model.model.norm.register_forward_hook(keep)
    model.model.embed_tokens.register_forward_hook(add)
    return model


def swallowing() -> Any:
    """The last layer's attention turns whatever ends it into zeros and goes on."""
    model = tiny_model("llama")
    attention = model.model.layers[-1].self_attn
    forward = attention.forward

    def zeros_on_anything(hidden_states: torch.Tensor, **keywords: Any) -> tuple[torch.Tensor, None]:
        try:
            return forward(hidden_states, **keywords)
        except BaseException:  # noqa: BLE001
            return torch.zeros_like(hidden_states), None

    attention.forward = zeros_on_anything
    return model


def storing_twice() -> Any:
    """The last layer stores its tokens in two calls."""
    model = tiny_model("llama")
    attention = model.model.layers[-1].self_attn
    forward = attention.forward

    def in_two(hidden_states: torch.Tensor, *, past_key_values: Any, **keywords: Any) -> Any:
        cache = _Halves(past_key_values)
        return forward(hidden_states, past_key_values=cache, **keywords)

    attention.forward = in_two
    return model


class _Halves:
    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> Any:
        self._cache.update(keys[:, :, :1], values[:, :, :1], layer)
        return self._cache.update(keys[:, :, 1:], values[:, :, 1:], layer)


def refusing() -> Any:
    """A layer raises an error of its own where the cache is not as it left the factory."""
    model = tiny_model("llama")

    class OwnError(Exception):
        pass

    def check(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        if "update" in vars(keywords["past_key_values"].layers[-1]):
            raise OwnError

    model.model.layers[0].register_forward_pre_hook(check, with_kwargs=True)
    return model


def wrapped_by_accelerate() -> Any:
    """A module has the hook by which accelerate moves weights to and fro."""
    model = tiny_model("llama")
    model.model.layers[0]._hf_hook = object()
    return model


MISBEHAVING: dict[str, Callable[[], Any]] = {
    make.__name__: make for make in (remembering, swallowing, storing_twice, refusing, wrapped_by_accelerate)
}
