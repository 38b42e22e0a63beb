"""The cache of a prefill that still runs: one thread computes and puts rows in, another reads them; both sides.

The computing thread publishes a layer's tensors once they are stored. They never change afterwards, since every update
of a live layer makes new ones, so publishing keeps a reference and copies nothing. The reading thread asks for the rows
of a slab and waits until they are there and may leave (`early_rows`); everything else is there when the prefill and its
padding time are over. What fails in the one thread is raised in the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

from splitinfer.cache.early_rows import EarlyRows
from splitinfer.cache.live import zero_storage
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cache.snapshot import wipe as wipe_snapshot
from splitinfer.errors import ModelError, SplitInferError
from splitinfer.handoff import CacheLayout, TensorName
from splitinfer.schedule import SlabSpec

__all__ = ["GrowingCache", "PrefillStopped"]

# How much slower tokens may become towards the end of a prompt, in the estimate of `settle`.
_SLOWER = 3.0
T = TypeVar("T")


class PrefillStopped(BaseException):
    """Ends the computing thread where it stands. Not an Exception, so that no handler in a model takes it for one."""


class GrowingCache:
    """A cache that one thread fills and one thread reads; leaving its `with` block, or `wipe`, ends and zeroes it.

    `fill(cache)` runs in a thread of its own: it calls `grew` and `report`, and returns the finished snapshot once
    nothing of it has to be held back any more. `progress` is called with what was reported, in the reading thread,
    while that waits; a terminal is then written by one thread only.
    """

    def __init__(
        self,
        rule: EarlyRows,
        fill: Callable[[GrowingCache], CacheSnapshot],
        *,
        true_tokens: int,
        progress: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule, self._true_tokens, self._progress, self._clock = rule, true_tokens, progress, clock
        self._changed = threading.Condition()
        self._tensors: dict[tuple[int, TensorName], torch.Tensor] = {}
        self._work = 0
        self._reports: list[int] = []
        self._snapshot: CacheSnapshot | None = None
        self._error: SplitInferError | None = None
        self._is_stopping = False
        self._began = clock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prefill")
        self._executor.submit(fill, self).add_done_callback(self._ended)
        # The thread ends with its one task, whoever forgets to.
        self._executor.shutdown(wait=False)

    # --- the reading thread ---------------------------------------------------------------------------------------

    @property
    def layout(self) -> CacheLayout:
        """Return the layout, known from the start."""
        return self._rule.layout

    @property
    def true_tokens(self) -> int:
        """Return how many tokens the cache will hold."""
        return self._true_tokens

    @property
    def has_failed(self) -> bool:
        """Tell whether the prefill ended by an error of its own."""
        return self._error is not None

    @property
    def leaves_early(self) -> bool:
        """Tell whether anything may leave before all is over."""
        return self._rule.leaves_early

    def tensor(self, spec: SlabSpec) -> torch.Tensor:
        """Wait for a slab's rows, and until they may leave; return the tensor in which they stand.

        Raises what the prefill raised, and ModelError where it failed otherwise or was stopped.
        """
        needed = self._rule.work_needed(spec)
        return self._wait_for(lambda: self._found(spec, needed))

    def snapshot(self) -> CacheSnapshot:
        """Wait until prefill and padding time are over; return the whole cache. Raises as `tensor` does."""
        return self._wait_for(lambda: self._snapshot)

    @property
    def is_over(self) -> bool:
        """Tell whether prefill and padding time are over, and the whole cache is there."""
        return self._snapshot is not None

    def hand_over(self) -> CacheSnapshot:
        """Wait for the whole cache and give it away: it is the caller's from now on. Raises as `tensor` does."""
        snapshot = self.snapshot()
        with self._changed:
            self._tensors.clear()
            self._snapshot, self._is_stopping = None, True
        return snapshot

    def settle(self, *, pause_seconds: float) -> None:
        """Wait until the first rows may leave, or until all may where they would come with longer pauses than that.

        A recipient takes a long silence for a lost sender. The pause is estimated from the time of the first rows, and
        so depends on the machine and the padded count. Raises as `tensor` does.
        """
        self._wait_for(lambda: True if self._snapshot is not None or self._work >= self._rule.begin_work else None)
        seconds = self._clock() - self._began
        if _SLOWER * seconds * self._rule.held_tokens / self._rule.lag_tokens > pause_seconds:
            self.snapshot()

    def stop(self) -> None:
        """Ask the prefill to end between two layers or steps, and wake who waits; returns at once, from any thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def wipe(self) -> None:
        """Stop the prefill, wait for its thread, zero the cache, and refuse further use; idempotent."""
        self.stop()
        self._executor.shutdown(wait=True)
        with self._changed, torch.inference_mode():
            for tensor in self._tensors.values():
                zero_storage(tensor)
            self._tensors.clear()
            if self._snapshot is not None:
                wipe_snapshot(self._snapshot)
            self._snapshot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    # --- the computing thread -------------------------------------------------------------------------------------

    def grew(self, work: int, layer: int = 0, tensors: Mapping[TensorName, torch.Tensor] | None = None) -> None:
        """Note that `work` token-layers are done, and publish tensors of a layer, which must not change any more.

        Raises PrefillStopped where the reader has asked for it.
        """
        with self._changed:
            if self._is_stopping:
                raise PrefillStopped
            self._work = work
            self._tensors.update({(layer, name): tensor for name, tensor in (tensors or {}).items()})
            self._changed.notify_all()

    def report(self, tokens: int) -> None:
        """Hand the number of tokens done on to `progress`."""
        if self._progress is not None:
            with self._changed:
                self._reports.append(tokens)
                self._changed.notify_all()

    def _ended(self, future: Future[CacheSnapshot]) -> None:
        error = future.exception()
        with self._changed:
            if error is None:
                self._snapshot = future.result()
            elif not isinstance(error, PrefillStopped):
                self._error = _typed(error)
            else:
                self._is_stopping = True
            self._changed.notify_all()

    # --- waiting --------------------------------------------------------------------------------------------------

    def _wait_for(self, find: Callable[[], T | None]) -> T:
        try:
            while True:
                with self._changed:
                    found = find()
                    if found is None and not self._reports:
                        self._require_running()
                        self._changed.wait()
                    reports, self._reports = self._reports, []
                for tokens in reports:
                    if self._progress is not None:
                        self._progress(tokens)
                if found is not None:
                    return found
        except BaseException:
            # Ctrl-C among them: whoever does not read any more needs no more computed.
            self.stop()
            raise

    def _require_running(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_stopping:
            raise ModelError("the prefill was stopped; start it again")

    def _found(self, spec: SlabSpec, needed: int | None) -> torch.Tensor | None:
        if self._snapshot is not None:
            return self._snapshot.layers[spec.layer][spec.part]
        tensor = self._tensors.get((spec.layer, spec.part))
        if needed is None or tensor is None or self._work < needed:
            return None
        layout = next(x for x in self.layout.layers[spec.layer].tensors if x.name == spec.part)
        return tensor if tensor.shape[1 + len(layout.before)] >= spec.stop else None


def _typed(error: BaseException) -> SplitInferError:
    # Its frames hold the cache, and a foreign error's text may quote the prompt.
    if isinstance(error, SplitInferError):
        return error.with_traceback(None)
    return ModelError(f"the model failed during the prefill ({type(error).__name__})")
