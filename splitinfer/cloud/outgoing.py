"""A reply that can go on after its connection was lost: the pieces still to be made, and the last ones as ciphertext.

Pieces of `Answer.reply` -> bytes for one connection after another; on the cloud. Once the reply is made, nothing is
kept but ciphertext: what it was made from, and the keys, are gone by the time the receipt says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from splitinfer.errors import LimitExceededError, TruncatedError
from splitinfer.handoff import CloudReply

__all__ = ["TAIL_BYTES", "Outgoing"]

TAIL_BYTES = 32 * 1024 * 1024


class Outgoing:
    """One reply: its head, then chunks. The newest `tail_bytes` of chunks can be sent again. Not for several threads.

    What lies between the recipient and the device when a connection breaks (queues, sockets, proxies) is what has to be
    sent again, so the tail is as long as that.
    """

    def __init__(self, reply: CloudReply, *, tail_bytes: int = TAIL_BYTES) -> None:
        self._pieces: Iterator[memoryview | bytes] | None = reply.body
        self._body_bytes, self._tail_bytes = reply.body_bytes or 0, tail_bytes
        self._head = b""
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._made = 0
        self.has_failed = False

    @property
    def is_made(self) -> bool:
        """Tell whether the reply was made to its end."""
        return self._pieces is None

    def first(self, parked: Callable[[], None]) -> CloudReply:
        """Return the whole reply; `parked` is called when its body is closed."""
        return CloudReply(self._body_bytes, _Connection(self._from_head(), parked))

    def again(self, start: int, parked: Callable[[], None]) -> CloudReply:
        """Return the reply from chunk `start` on, with its head if that is 0; `parked` as for `first`.

        Raises TruncatedError for a chunk beyond the next one to be made, LimitExceededError where it is not held.
        """
        if start > self._made:
            raise TruncatedError("the reply has not come so far; ask for the chunk after the last verified one")
        if start < self._made - len(self._chunks):
            raise LimitExceededError("that part of the reply is not held any more; send a new transfer")
        if start == 0:
            return self.first(parked)
        chunk_bytes = len(self._chunks[-1])
        left = self._body_bytes - len(self._head) - start * chunk_bytes
        return CloudReply(left, _Connection(self._from_chunk(start), parked))

    def wipe(self) -> None:
        """Close what makes the reply, which wipes it, and drop the ciphertext; idempotent."""
        self._close()
        self._chunks.clear()
        self._held_bytes = 0

    def _from_head(self) -> Iterator[bytes]:
        self._head = self._head or bytes(self._piece() or b"")
        yield self._head
        yield from self._from_chunk(0)

    def _from_chunk(self, index: int) -> Iterator[bytes]:
        while index < self._made or self._make():
            yield self._chunks[index - self._made]
            index += 1

    def _make(self) -> bool:
        """Make the next chunk; False at the end."""
        piece = self._piece()
        if piece is None:
            self._close()
            return False
        self._chunks.append(bytes(piece))
        self._made += 1
        self._held_bytes += len(self._chunks[-1])
        while self._held_bytes > self._tail_bytes and len(self._chunks) > 1:
            self._held_bytes -= len(self._chunks.popleft())
        return True

    def _piece(self) -> memoryview | bytes | None:
        try:
            return None if self._pieces is None else next(self._pieces, None)
        except BaseException:
            # What failed once cannot go on.
            self.has_failed = True
            self._close()
            raise

    def _close(self) -> None:
        pieces, self._pieces = self._pieces, None
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


class _Connection(Iterator[bytes]):
    """What one connection is given; its end, a failure or a close says that this connection is over."""

    def __init__(self, pieces: Iterator[bytes], over: Callable[[], None]) -> None:
        self._pieces, self._over = pieces, over
        self._is_closed = False

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._over()
