"""What a session on the device remembers between its turns: tokens, their cache, what the cloud holds; on the device.

In memory only, one conversation at a time, wiped when the session is closed. A later prompt goes on from the longest
part that it has in common with the one before, cut at a step end, so that every step stays the same function of the
same tokens; nothing is ever guessed from text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from splitinfer.cache.memory import memory_bytes, shares_memory
from splitinfer.cache.snapshot import CacheSnapshot, cut, require_rows, wipe
from splitinfer.errors import UnsupportedCacheError
from splitinfer.handoff import CacheLayout
from splitinfer.placement import Step

__all__ = ["LIMIT_BYTES", "Conversation", "Held", "Link", "Origin", "Past"]

LIMIT_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class Past:
    """Tokens whose cache was computed, in these steps, which cover them."""

    token_ids: tuple[int, ...] = field(repr=False)
    steps: tuple[Step, ...]

    def common_tokens(
        self, token_ids: Sequence[int], steps: Sequence[Step], *, layout: CacheLayout, below: int | None = None
    ) -> int:
        """Return the last step end up to which tokens and steps are the same; with `below`, one that is lower.

        0 where a cache of this layout cannot be cut there.
        """
        end = 0
        for old, new in zip(self.steps, steps, strict=False):
            start, stop = new
            same = old == new and self.token_ids[start:stop] == tuple(token_ids[start:stop])
            if not same or (below is not None and stop >= below):
                break
            end = stop
        return end if end == len(self.token_ids) or _can_be_cut(layout, len(self.token_ids)) else 0


@dataclass(frozen=True, slots=True)
class Origin:
    """The call by which a cache came from the cloud, for the log."""

    recipient: str
    transfer_id: str
    received_root: str


@dataclass(frozen=True, slots=True)
class Held:
    """The cache of the last prompt, all but its last token.

    The first `public_tokens` of it were public text. `origin` is None where the device computed all of it.
    """

    past: Past
    snapshot: CacheSnapshot = field(repr=False)
    is_exact: bool
    public_tokens: int = 0
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """What the cloud holds of the session, as its last receipt says: after which turn, with which ciphertext root."""

    past: Past
    turn: int
    root: str


class Conversation:
    """One session's memory; `session_id` names the session to the cloud. Not safe for several threads.

    `keeps` lets the cloud keep the session's cache; `limit_bytes` is the most that the device's own may take.
    """

    def __init__(self, session_id: str, *, keeps: bool = False, limit_bytes: int = LIMIT_BYTES) -> None:
        self.session_id, self.keeps = session_id, keeps
        self._limit_bytes = limit_bytes
        self.held: Held | None = None
        self.link: Link | None = None
        self.may_be_held_by_cloud = False
        self._transfers = 0

    def base_tokens(self, token_ids: Sequence[int], steps: Sequence[Step]) -> int:
        """Return how many of the first tokens of a prompt the device holds the cache of."""
        if self.held is None:
            return 0
        return self.held.past.common_tokens(token_ids, steps, layout=self.held.snapshot.layout)

    def linked_tokens(
        self, token_ids: Sequence[int], steps: Sequence[Step], *, layout: CacheLayout, at_most: int | None = None
    ) -> int:
        """Return how many of them the cloud holds, less than all that `steps` cover: a transfer brings a new one.

        With `at_most`, no more than the device holds, to which the rest is to be added.
        """
        if self.link is None or not steps:
            return 0
        below = steps[-1][1] if at_most is None else min(steps[-1][1], at_most + 1)
        return self.link.past.common_tokens(token_ids, steps, layout=layout, below=below)

    def begin_transfer(self) -> int:
        """Number a transfer; what the cloud holds is not known again before its receipt came."""
        self.link = None
        self._transfers += 1
        return self._transfers

    def end_transfer(self, number: int, link: Link | None) -> None:
        """Note what the cloud kept; nothing for sure where two runs of the session overlapped."""
        self.link = link if number == self._transfers else None

    def cache(self, tokens: int) -> CacheSnapshot | None:
        """Return the held cache of the first `tokens` tokens, as views of it; None for 0."""
        return cut(self.held.snapshot, tokens) if tokens and self.held is not None else None

    def can_give(self, tokens: int) -> bool:
        """Tell whether the held cache can be cut to so many tokens."""
        if self.held is None or tokens > self.held.snapshot.true_tokens:
            return False
        return tokens == self.held.snapshot.true_tokens or _can_be_cut(
            self.held.snapshot.layout, self.held.snapshot.true_tokens
        )

    def remember(self, held: Held) -> bool:
        """Take a cache over in place of the one before, which is wiped; False where it is above the limit."""
        is_small = memory_bytes(held.snapshot) <= self._limit_bytes
        before, self.held = self.held, held if is_small else None
        if before is not None and not shares_memory(before.snapshot, held.snapshot):
            wipe(before.snapshot)
        return is_small

    def forget(self) -> None:
        """Wipe the tokens' cache and drop the rest; what the cloud holds is another matter. Idempotent."""
        if self.held is not None:
            wipe(self.held.snapshot)
        self.held = self.link = None


def _can_be_cut(layout: CacheLayout, tokens: int) -> bool:
    try:
        require_rows(layout, tokens)
    except UnsupportedCacheError:
        return False
    return True
