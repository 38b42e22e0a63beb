"""How many masks of a pool are gone: one number in the pool and one outside it; on the device.

The pool's mark is raised first, then the anchor outside the pool's folder, and only then is a mask used. So a crash
can leave the pool's mark above the anchor, never below it. A pool below its anchor is an older copy put back; a pool
without an anchor was copied from another machine. Both are refused. A whole machine put back to an earlier state takes
the anchor along: that is found only where the cloud remembers the pool and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitinfer.errors import MasksExhaustedError, StateError
from splitinfer.masking.files import locked, make_folder, write_small

__all__ = ["Marks"]

_DISCARDED = 2**63 - 1


class Marks:
    """The two marks of one pool."""

    def __init__(self, folder: Path, anchors: Path, *, pool_id: str) -> None:
        self._mark = folder / "mark"
        self._anchors = anchors
        self._anchor = anchors / f"{pool_id}.json"
        self._pool_id = pool_id

    def create(self) -> None:
        """Write both marks at zero, for a new pool."""
        make_folder(self._anchors)
        self._write(0)

    def read(self) -> int:
        """Return how many masks are gone; raises MasksExhaustedError for a pool that must not be used."""
        with self._held():
            return self._read()

    def raise_by(self, count: int, *, limit: int) -> range:
        """Take up to `count` masks below `limit`, durably, before they are used.

        Raises MasksExhaustedError where none is left or the pool must not be used.
        """
        with self._held():
            mark = self._read()
            taken = range(mark, min(mark + count, limit))
            if not taken:
                raise MasksExhaustedError(
                    f"all {limit} one-time masks are used; run `splitinfer masks prepare`, then ask again"
                )
            self._write(taken.stop)
            return taken

    def discard(self) -> None:
        """Make every copy of the pool refused from now on."""
        with self._held():
            write_small(self._anchor, self._anchored(_DISCARDED))

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            make_folder(self._anchors)
            with locked(self._anchors / ".lock"):
                yield
        except OSError as error:
            raise StateError(f"the marks of the mask pool cannot be read or written: {error.strerror}") from error

    def _read(self) -> int:
        anchor = self._number(self._anchor, "anchor")
        if anchor is None:
            raise MasksExhaustedError(
                "this mask pool was not made on this machine, or its anchor is gone; its masks may have been used "
                "elsewhere: remove it and run `splitinfer masks prepare`"
            )
        if anchor == _DISCARDED:
            raise MasksExhaustedError(
                "this mask pool was discarded after a wrong result; remove it and run `splitinfer masks prepare`"
            )
        mark = self._number(self._mark, "mark")
        if mark is None or mark < anchor:
            raise MasksExhaustedError(
                f"this mask pool is a copy or was put back: {anchor} of its masks are used, but it says {mark or 0}; "
                "remove it and run `splitinfer masks prepare`"
            )
        return mark

    def _number(self, path: Path, what: str) -> int | None:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        number = found.get("used") if isinstance(found, dict) and found.get("pool") == self._pool_id else None
        if not isinstance(number, int) or number < 0:
            raise StateError(f"the {what} of the mask pool is damaged; remove the pool and prepare a new one")
        return number

    def _write(self, mark: int) -> None:
        write_small(self._mark, self._anchored(mark))
        write_small(self._anchor, self._anchored(mark))

    def _anchored(self, mark: int) -> bytes:
        return json.dumps({"pool": self._pool_id, "used": mark}).encode()
