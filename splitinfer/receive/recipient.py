"""What a recipient remembers between requests: nonces it handed out, transfers it saw; on the cloud, memory only."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from splitinfer.errors import LimitExceededError, ReplayError

__all__ = ["NONCE_SECONDS", "NonceTable", "TransferTable"]

NONCE_SECONDS = 60
MAX_NONCES = 65536
MAX_TRANSFERS = 65536
MAX_SENDER_TRANSFERS = 8192


class NonceTable:
    """Single-use server nonces, at most 60 s old; the oldest makes room when 65,536 are out."""

    def __init__(self, *, clock: Callable[[], float], randomness: Callable[[int], bytes]) -> None:
        self._clock, self._randomness = clock, randomness
        self._issued: dict[str, float] = {}
        self._mutex = threading.Lock()

    def issue(self) -> bytes:
        """Hand out a fresh 32-byte nonce."""
        nonce = self._randomness(32)
        with self._mutex:
            while len(self._issued) >= MAX_NONCES:
                del self._issued[next(iter(self._issued))]
            self._issued[nonce.hex()] = self._clock()
        return nonce

    def use(self, nonce: str) -> None:
        """Spend a nonce; raises ReplayError where it is unknown, used or too old."""
        with self._mutex:
            issued = self._issued.pop(nonce, None)
        if issued is None or not 0 <= self._clock() - issued <= NONCE_SECONDS:
            raise ReplayError("the server nonce is unknown, used or older than 60 s; fetch the keyset again")


class TransferTable:
    """Transfers by sender and id until they expire, so that each is executed at most once.

    A sender has an eighth of the table at most, so that none keeps the others out by filling it.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[tuple[bytes, str], int] = {}
        self._counts: Counter[bytes] = Counter()
        self._mutex = threading.Lock()

    def begin(self, sender: bytes, transfer_id: str, *, expires_at: int) -> None:
        """Record a transfer; raises ReplayError where this sender used the id before."""
        key = (sender, transfer_id)
        with self._mutex:
            if key in self._seen:
                raise ReplayError("the transfer was seen before; send again under a new transfer id")
            if self._is_full(sender):
                now = self._clock()
                self._seen = {seen: until for seen, until in self._seen.items() if until > now}
                self._counts = Counter(device for device, _ in self._seen)
            if self._is_full(sender):
                raise LimitExceededError("too many transfers are remembered; try again in ten minutes")
            self._seen[key] = expires_at
            self._counts[sender] += 1

    def _is_full(self, sender: bytes) -> bool:
        return len(self._seen) >= MAX_TRANSFERS or self._counts[sender] >= MAX_SENDER_TRANSFERS
