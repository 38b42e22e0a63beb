"""A process on a real store, run as a script: stores and reads back at random, or holds a cache half written."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.public_caches import FACTS, BytesPacked, get, open_store, prefix_of

KINDS = 6
SIZE = 20_000


def content(token: int) -> bytes:
    """Return the one right cache of a prefix."""
    return bytes([token]) * SIZE


class Unending(BytesPacked):
    """A cache that never ends, once its first slab was given out."""

    def slabs(self) -> Iterator[memoryview]:
        yield memoryview(bytes(2_000_000))
        _say("holding")
        sys.stdin.readline()
        yield memoryview(b"x")


def exercise(directory: Path, seed: int, times: int) -> None:
    """Store and read back; what is found must be right, whatever the others do. Says how many were found."""
    chosen = random.Random(seed)  # noqa: S311 (a repeatable choice)
    store = open_store(directory, max_bytes=4 * (SIZE + 10_000))
    found = 0
    for _ in range(times):
        token = chosen.randrange(KINDS)
        prefix = prefix_of(token, 1, 2)
        if chosen.random() < 0.5:
            store.put(prefix, BytesPacked(content(token)), FACTS)
        elif (stored := get(store, prefix, SIZE)) is not None:
            found += 1
            if stored.cache != content(token):
                raise AssertionError("another cache was found")
    _say(str(found))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "exercise":
        exercise(Path(folder), int(rest[0]), int(rest[1]))
    else:
        open_store(Path(folder)).put(prefix_of(1, 2, 3), Unending(b""), FACTS)
