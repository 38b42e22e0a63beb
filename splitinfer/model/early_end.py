"""Follows a forward by the cache that it fills, and ends it where that is complete; both sides.

Prefill hands on no logits. In the last layer that caches, nothing is needed once its keys and values are stored: no
attention, no projection of its output, no MLP, no norm, and no later layer that only reads what earlier ones stored.
For one forward the `update` of that layer stores and then raises a signal, which `watching` catches; the same wrapper
tells of every layer that has stored, so that its rows can be read while later layers compute. What changes is layers of
one call's cache, never the model, and for as long as the forward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from splitinfer.errors import UnsupportedCacheError

__all__ = ["ending_early", "watching"]

# All that a forward leaves in one of these is stored by its one call of `update`.
_COMPLETE_AFTER_UPDATE = (DynamicLayer, DynamicSlidingWindowLayer)


class _CacheComplete(BaseException):
    """The signal. Not an Exception, so that no handler in a model takes it for an error."""


@contextmanager
def ending_early(cache: DynamicCache) -> Iterator[None]:
    """Let the one forward in this block end as soon as the last layer of `cache` that caches has stored its part.

    Whatever else the forward raises passes through. Raises UnsupportedCacheError where that layer is of a class whose
    state `update` does not complete (a recurrent one), and where the forward ends without having stored there.
    """
    with watching(cache, ends_early=True):
        yield


@contextmanager
def watching(
    cache: DynamicCache, *, stored: Callable[[int], None] | None = None, ends_early: bool = False
) -> Iterator[None]:
    """Call `stored(index)` after every `update` of a layer in the one forward of this block, then end it if asked to.

    What `stored` raises ends the forward as well, and passes through. Raises as `ending_early` does.
    """
    last = _last_caching_layer(cache) if ends_early else None
    # Layers of states alone have no `update`.
    storing: dict[int, Any] = {
        i: x for i, x in enumerate(cache.layers) if hasattr(x, "update") and type(x) is not DummyLayer
    }
    watched: dict[int, Any] = storing if stored is not None else {i: x for i, x in storing.items() if x is last}
    for index, layer in watched.items():
        # On the instance: the layer keeps its class, by which a snapshot knows it.
        layer.update = _followed(layer.update, index, stored, ends=layer is last)
    try:
        yield
    except _CacheComplete:
        return
    finally:
        for layer in watched.values():
            del layer.update
    if ends_early:
        raise UnsupportedCacheError("the model's forward does not end at its last cache layer")


def _followed(
    store: Callable[..., Any], index: int, stored: Callable[[int], None] | None, *, ends: bool
) -> Callable[..., Any]:
    def update(*args: Any, **keywords: Any) -> Any:
        result = store(*args, **keywords)
        if stored is not None:
            stored(index)
        if ends:
            raise _CacheComplete
        return result

    return update


def _last_caching_layer(cache: DynamicCache) -> Any:
    last = next((layer for layer in reversed(cache.layers) if type(layer) is not DummyLayer), None)
    # The exact class: what a subclass does after `update` is not known.
    if type(last) not in _COMPLETE_AFTER_UPDATE:
        raise UnsupportedCacheError(f"a forward cannot end at a last cache layer that is a {type(last).__name__}")
    return last
