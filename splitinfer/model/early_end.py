"""Ends a forward where its cache is complete: a live cache -> the same cache with the forward's tokens; both sides.

Prefill hands on no logits. In the last layer that caches, nothing is needed once its keys and values are stored: no
attention, no projection of its output, no MLP, no norm, and no later layer that only reads what earlier ones stored.
For one forward the `update` of that layer stores and then raises a signal, which `ending_early` catches. What changes
is one layer of one call's cache, never the model, and for as long as the forward runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from splitinfer.errors import UnsupportedCacheError

__all__ = ["ending_early"]

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
    layer = _last_caching_layer(cache)
    store = layer.update

    def store_and_end(*args: Any, **keywords: Any) -> None:
        store(*args, **keywords)
        raise _CacheComplete

    # On the instance: the layer keeps its class, by which a snapshot knows it.
    layer.update = store_and_end
    try:
        yield
    except _CacheComplete:
        return
    finally:
        del layer.update
    raise UnsupportedCacheError("the model's forward does not end at its last cache layer")


def _last_caching_layer(cache: DynamicCache) -> Any:
    last = next((layer for layer in reversed(cache.layers) if type(layer) is not DummyLayer), None)
    # The exact class: what a subclass does after `update` is not known.
    if type(last) not in _COMPLETE_AFTER_UPDATE:
        raise UnsupportedCacheError(f"a forward cannot end at a last cache layer that is a {type(last).__name__}")
    return last
