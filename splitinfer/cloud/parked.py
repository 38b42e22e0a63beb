"""Transfers that this replica has begun: running, or parked because their connection was lost; on the cloud.

A parked transfer holds no thread: it is the opened request with its sink and position, or the reply in the making. Its
number is bounded, and its time by its own expiry; who is given up is wiped. Memory only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from splitinfer.cloud.answer import Answer
from splitinfer.cloud.outgoing import TAIL_BYTES, Outgoing
from splitinfer.errors import RemoteBusyError, ReplayError, TransportError, TruncatedError
from splitinfer.handoff import CloudReply, Source
from splitinfer.receive.intake import OpenedRequest
from splitinfer.receive.reading import require_end
from splitinfer.sealing.resume import TransferState

__all__ = ["Key", "Parking", "key_of"]

PARKED_PER_DEVICE = 2
PARKED_IN_ALL = 8
_STATE_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 600.0

Key = tuple[bytes, str, str]
"""Sender's public key, transfer id, hexadecimal digest of the public manifest."""


def key_of(opened: OpenedRequest) -> Key:
    """Return the name of a request's transfer."""
    return opened.sender, opened.head.manifest.transfer_id, opened.manifest_digest.hex()


@dataclass(slots=True, eq=False)
class _Transfer:
    """One transfer. `opened` and `proceed` are gone once its reply is made; `chunks` is then all of the request's."""

    expires_at: int
    opened: OpenedRequest | None = field(repr=False)
    answer: Answer | None = field(repr=False)
    proceed: Callable[[], CloudReply] | None = field(repr=False)
    outgoing: Outgoing | None = None
    chunks: int = 0
    is_refused: bool = False
    is_running: bool = True
    is_awaited: bool = False

    @property
    def request_chunks(self) -> int:
        return self.opened.reader.count if self.opened is not None else self.chunks

    @property
    def is_whole(self) -> bool:
        return self.outgoing is not None or (self.opened is not None and self.opened.reader.is_whole)

    @property
    def is_made(self) -> bool:
        return self.outgoing is not None and self.outgoing.is_made

    def wipe(self) -> None:
        if self.outgoing is not None:
            self.outgoing.wipe()
        if self.opened is not None:
            self.opened.wipe()
        if self.answer is not None:
            self.answer.wipe()
        self.let_go()

    def let_go(self) -> None:
        """Drop the content key and whatever else the reply was made from."""
        self.chunks = self.request_chunks
        self.opened = self.answer = self.proceed = None


class Parking:
    """Begun transfers by device, id and manifest; safe for several threads.

    At most 2 of a device and 8 in all are parked. One whose reply was made makes room first, then who waits longest.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        per_device: int = PARKED_PER_DEVICE,
        in_all: int = PARKED_IN_ALL,
        tail_bytes: int = TAIL_BYTES,
    ) -> None:
        self._clock, self._per_device, self._in_all, self._tail_bytes = clock, per_device, in_all, tail_bytes
        # In the order in which they were begun or parked.
        self._transfers: dict[Key, _Transfer] = {}
        self._rested = threading.Condition()
        # Devices whose query waits: the few threads for queries are not for one of them alone.
        self._asking: set[bytes] = set()
        self._is_closed = False

    def begin(self, opened: OpenedRequest, answer: Answer, proceed: Callable[[], CloudReply]) -> CloudReply:
        """Run a transfer; `proceed` is called again, from its top, each time that it goes on after a lost source.

        Raises what `proceed` raises. After a TransportError the transfer is parked, after any other error gone.
        """
        key = key_of(opened)
        transfer = _Transfer(opened.head.manifest.expires_at, opened, answer, proceed)
        with self._rested:
            self._transfers[key] = transfer
        return self._run(key, transfer)

    def state(self, key: Key) -> tuple[TransferState, int]:
        """Return how far a transfer is, and how many chunks of its request were verified.

        Waits a moment for a connection that is about to be given up, for one call of a device at a time.
        """
        with self._rested:
            transfer = self._find(key)
            if transfer is not None and not transfer.is_whole and key[0] not in self._asking:
                self._asking.add(key[0])
                try:
                    self._wait(transfer, _STATE_WAIT_SECONDS)
                finally:
                    self._asking.remove(key[0])
                transfer = self._find(key)
            if transfer is None:
                return "unknown", 0
            if transfer.is_refused:
                return "refused", 0
            if transfer.is_running and not transfer.is_whole:
                return "busy", 0
            return "complete" if transfer.is_whole else "open", transfer.request_chunks

    def resume(self, key: Key, source: Source, *, request_from: int, reply_from: int) -> CloudReply:
        """Go on with a transfer: with its request from `source`, or with its reply from chunk `reply_from` on.

        Raises ReplayError where nothing is held, where it was refused, and for chunks that were verified before;
        TruncatedError for chunks beyond the next one; RemoteBusyError where its connection is still served.
        """
        transfer = self._claim(key)
        try:
            self._check(transfer, source, request_from=request_from, reply_from=reply_from)
            if transfer.outgoing is not None:
                return transfer.outgoing.again(reply_from, lambda: self._rest(key, transfer))
        except BaseException:
            self._rest(key, transfer)
            raise
        if transfer.opened is not None:
            transfer.opened.reader.attach(source)
        return self._run(key, transfer)

    def drop_expired(self) -> None:
        """Wipe parked transfers whose time is over."""
        with self._rested:
            over = {key: one for key, one in self._transfers.items() if not one.is_running and self._is_over(one)}
            for key in over:
                del self._transfers[key]
        _wipe(over.values())

    def close(self) -> None:
        """Wipe all that is parked, and whatever would be parked from now on."""
        with self._rested:
            self._is_closed = True
            left = [one for one in self._transfers.values() if not one.is_running]
            self._transfers = {key: one for key, one in self._transfers.items() if one.is_running}
        _wipe(left)

    def _run(self, key: Key, transfer: _Transfer) -> CloudReply:
        try:
            reply = self._proceed(transfer)
        except TransportError:
            self._rest(key, transfer)
            raise
        except BaseException:
            self._forget(key, transfer)
            raise
        outgoing = transfer.outgoing = Outgoing(reply, tail_bytes=self._tail_bytes)
        transfer.is_refused = transfer.answer is not None and transfer.answer.was_refused
        return outgoing.first(lambda: self._rest(key, transfer))

    def _proceed(self, transfer: _Transfer) -> CloudReply:
        if transfer.proceed is None:
            raise ReplayError("the transfer is over; send a new one")
        return transfer.proceed()

    def _claim(self, key: Key) -> _Transfer:
        """Wait until nobody runs the transfer, and run it."""
        with self._rested:
            transfer = self._require(key)
            if transfer.is_running:
                self._wait_for(transfer)
                transfer = self._require(key)
            if transfer.is_refused:
                raise ReplayError("the transfer was refused; send a new one")
            transfer.is_running = True
            return transfer

    def _wait_for(self, transfer: _Transfer) -> None:
        if transfer.is_awaited:
            raise RemoteBusyError("the transfer is being resumed already")
        left = min(max(transfer.expires_at - self._clock(), 0.0), _LONGEST_WAIT_SECONDS)
        transfer.is_awaited = True
        try:
            # A request that is still read is given up soon, or its connection is not lost at all.
            self._wait(transfer, left if transfer.is_whole else _STATE_WAIT_SECONDS)
        finally:
            transfer.is_awaited = False
        if transfer.is_running:
            raise RemoteBusyError("the transfer's connection is still served")

    def _wait(self, transfer: _Transfer, seconds: float) -> None:
        self._rested.wait_for(lambda: not transfer.is_running, seconds)

    def _check(self, transfer: _Transfer, source: Source, *, request_from: int, reply_from: int) -> None:
        if request_from < transfer.request_chunks:
            raise ReplayError("chunks that were verified are not taken a second time")
        if request_from > transfer.request_chunks or (reply_from and transfer.outgoing is None):
            raise TruncatedError("the resume leaves chunks out")
        if transfer.outgoing is not None:
            require_end(source)

    def _rest(self, key: Key, transfer: _Transfer) -> None:
        """Park a transfer whose connection is over, or wipe it where it cannot or may not go on."""
        with self._rested:
            transfer.is_running = False
            self._transfers.pop(key, None)
            given_up = [transfer]
            if not self._is_closed and not self._is_over(transfer) and not self._has_failed(transfer):
                self._transfers[key] = transfer
                given_up = self._crowded_out(key)
            if transfer.is_made:
                transfer.let_go()
            self._rested.notify_all()
        _wipe(given_up)

    def _crowded_out(self, newest: Key) -> list[_Transfer]:
        """Remove and return what is above the limits."""
        parked = [key for key, one in self._transfers.items() if not one.is_running]
        # A reply that was made has most likely arrived.
        parked.sort(key=lambda key: not self._transfers[key].is_made)
        own = [key for key in parked if key[0] == newest[0]]
        gone = own[: max(len(own) - self._per_device, 0)]
        others = [key for key in parked if key not in gone]
        gone += others[: max(len(others) - self._in_all, 0)]
        return [self._transfers.pop(key) for key in gone]

    def _forget(self, key: Key, transfer: _Transfer) -> None:
        with self._rested:
            self._transfers.pop(key, None)
            transfer.is_running = False
            self._rested.notify_all()
        transfer.wipe()

    def _require(self, key: Key) -> _Transfer:
        transfer = self._find(key)
        if transfer is None:
            raise ReplayError("nothing of this transfer is held here; send a new one")
        return transfer

    def _find(self, key: Key) -> _Transfer | None:
        transfer = self._transfers.get(key)
        return None if transfer is None or self._is_over(transfer) else transfer

    def _is_over(self, transfer: _Transfer) -> bool:
        return self._clock() >= transfer.expires_at

    @staticmethod
    def _has_failed(transfer: _Transfer) -> bool:
        return transfer.outgoing is not None and transfer.outgoing.has_failed


def _wipe(transfers: Iterable[_Transfer]) -> None:
    # Never under the lock: erasing a large cache takes a while.
    for transfer in transfers:
        transfer.wipe()
