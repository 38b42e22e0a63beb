"""Growing caches without a model, and models that a test holds up between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from splitinfer.cache.early_rows import EarlyRows
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.schedule import pad_tokens

PATIENCE_SECONDS = 60.0


def growing_of(
    layout: Any, tokens: int, fill: Callable[[GrowingCache], CacheSnapshot], *, step: int = 512, **keywords: Any
) -> GrowingCache:
    """Make a growing cache that `fill` fills, as if in steps of this many tokens."""
    steps = [(start, min(start + step, tokens)) for start in range(0, tokens, step)]
    rule = EarlyRows.of(layout, padded_tokens=pad_tokens(tokens), steps=steps)
    return GrowingCache(rule, fill, true_tokens=tokens, **keywords)


def grown(snapshot: CacheSnapshot) -> GrowingCache:
    """Return a growing cache that is over at once."""
    return growing_of(snapshot.layout, snapshot.true_tokens, lambda _: snapshot)


class Turnstile:
    """Lets a model's forwards through one at a time: `wait_for(n)` until the n-th stands there, `open(n)` for it.

    Counted from 1 over the calls of one module. What does not come in time fails the test.
    """

    def __init__(self, module: Any) -> None:
        self._changed = threading.Condition()
        self._arrived = self._opened = 0
        self._hook = module.register_forward_pre_hook(self._pass)

    def _pass(self, *_: object) -> None:
        with self._changed:
            self._arrived += 1
            number = self._arrived
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._opened >= number, PATIENCE_SECONDS)

    @property
    def arrived(self) -> int:
        with self._changed:
            return self._arrived

    def wait_for(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._arrived >= number, PATIENCE_SECONDS)

    def open(self, number: int = 1 << 30) -> None:
        with self._changed:
            self._opened = max(self._opened, number)
            self._changed.notify_all()

    def remove(self) -> None:
        self.open()
        self._hook.remove()
