"""What the device uses of a cache whose transfer broke off: whole steps, verified in all layers, or nothing; device.

CacheSink -> Part. Only after a lost connection, and only where the policy lets the device take over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from splitinfer import schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec.sinks import CacheSink
from splitinfer.placement import Step
from splitinfer.row_check import RowCheck

__all__ = ["LogFields", "Part", "salvage"]


class LogFields(TypedDict, total=False):
    """What the log says of a part that is used (see `Gate.local`)."""

    transfer_id: str
    received_root: str
    accepted_bucket: int


@dataclass(frozen=True, slots=True)
class Part:
    """The first steps of a prompt's cache, and the transfer that brought all but the first `base_tokens` of them."""

    cache: CacheSnapshot = field(repr=False)
    base_tokens: int
    transfer_id: str
    received_root: str

    @property
    def tokens(self) -> int:
        """Return how many tokens it holds; a step ends with the last."""
        return self.cache.true_tokens

    @property
    def new_tokens(self) -> int:
        """Return how many of them the cloud computed."""
        return self.tokens - self.base_tokens

    @property
    def note(self) -> str:
        """Say it in the answer."""
        return (
            f"the connection was lost for good; {self.new_tokens} tokens of the cloud's prefill had come and were used"
        )

    def log_fields(self) -> LogFields:
        """Say it in the log."""
        bucket = schedule.pad_tokens(self.new_tokens)
        return {"transfer_id": self.transfer_id, "received_root": self.received_root, "accepted_bucket": bucket}

    def left(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """Return the steps that are still to be done."""
        return tuple(step for step in steps if step[1] > self.tokens)


def salvage(
    sink: CacheSink,
    rows: RowCheck,
    *,
    steps: Sequence[Step],
    base_tokens: int,
    transfer_id: str,
    received_root: str,
) -> Part | None:
    """Take what is whole from a sink, and wipe the rest; None where no step is that the device did not hold before.

    The rows are recomputed as those of a whole cache are: else a cloud could break the connection to escape that.
    Raises VerificationError where a row differs, LayoutMismatchError for slabs that no sender writes.
    """
    cache = sink.salvage([stop for _, stop in steps if stop > base_tokens])
    if cache is None:
        return None
    rows.check(cache)
    return Part(cache, base_tokens, transfer_id, received_root)
