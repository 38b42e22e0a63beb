"""A proxy between device and cloud that changes one message on its way: an attacker who owns the network.

It reads each message whole, lets a `Mutation` change it, and notes what it had and what it delivered instead.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.support.recording_proxy import TcpProxy, read_message
from tests.support.wire import Message, WireBody, WireError

Where = Literal["keyset", "request", "reply"]
# None closes the connection without a word.
Change = Callable[[Message], Message | None]


@dataclass(frozen=True)
class Transfer:
    """One whole call as it passed, before any change; `reply` is None where the cloud gave none."""

    request: Message
    reply: Message | None

    @property
    def sent(self) -> WireBody:
        return WireBody.parse(self.request.body)

    @property
    def received(self) -> WireBody:
        if self.reply is None:
            raise WireError("the cloud gave no reply")
        return WireBody.parse(self.reply.body)


@dataclass
class Delivery:
    """What a mutation did: the bytes that it was given, those it gave instead, and how many of these were taken."""

    original: bytes
    changed: bytes
    taken_bytes: int = 0

    @property
    def is_changed(self) -> bool:
        """Tell whether something other than the original arrived."""
        delivered = self.changed[: self.taken_bytes]
        was_all_taken = self.taken_bytes == len(self.changed)
        return delivered != self.original if was_all_taken else not self.original.startswith(delivered)


@dataclass
class TamperingProxy(TcpProxy):
    """Applies `change` to messages of the kind `where`; with None it passes everything as it is."""

    target_port: int
    where: Where | None = None
    change: Change | None = None
    transfers: list[Transfer] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.target_port)

    def arm(self, where: Where | None = None, change: Change | None = None) -> None:
        """Change messages of this kind from now on, and forget what passed before."""
        self.wait()
        self.where, self.change = where, change
        self.transfers, self.deliveries = [], []

    def _serve(self, client: socket.socket) -> None:
        request = read_message(client)
        if request is None:
            return
        is_keyset = request.route.endswith("/keyset")
        with self._connect() as upstream:
            if not self._pass(request, upstream, "" if is_keyset else "request"):
                upstream.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                reply = read_message(upstream)
                self.transfers.append(Transfer(request, reply))
                if reply is not None:
                    self._pass(reply, client, "keyset" if is_keyset else "reply")

    def _pass(self, message: Message, target: socket.socket, kind: str) -> bool:
        """Send a message, changed where it is of the kind to change; return False where it was cut short."""
        if self.change is None or kind != self.where:
            _send(target, message.to_bytes())
            return True
        changed = self.change(message)
        delivery = Delivery(message.to_bytes(), changed.to_bytes() if changed else b"")
        self.deliveries.append(delivery)
        delivery.taken_bytes = _send(target, delivery.changed)
        return changed is not None and changed.cut_bytes is None


def _send(target: socket.socket, data: bytes) -> int:
    """Send as much as the other side takes; one that has answered already may close before it has all."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < len(data):
            sent += target.send(data[sent : sent + (1 << 16)])
    return sent
