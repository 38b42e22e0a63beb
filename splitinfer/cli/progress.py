"""A progress bar on stderr for work of more than two seconds, where a terminal is attached."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["prefill_bar", "progress_bar"]

_DELAY_SECONDS = 2.0


@contextmanager
def prefill_bar() -> Iterator[Callable[[int, int], None] | None]:
    """Lend a callback for `Session.open(on_prefill=...)`, or None where stderr is no terminal."""
    with progress_bar("prefill", unit="token") as report:
        yield report


@contextmanager
def progress_bar(name: str, *, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """Lend a callback that is told what is done and how much there is, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = tqdm(desc=name, unit=unit, delay=_DELAY_SECONDS, leave=False, file=sys.stderr)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    try:
        yield report
    finally:
        bar.close()
