"""Forked helpers that share every product: Record -> replies by several processes; runs in the cloud's own process.

SEAL's bindings hold Python's lock, so that threads gain nothing. Helpers are forked when the first product is asked
for, after keys, tiles and weights are in memory, which they then share with their parent page by page. What is stored
later is told to each. The process that forks must have no other threads.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from splitinfer.errors import SplitInferError, TransportError
from splitinfer.homomorphic.cloud import COMPUTING, CloudHalf
from splitinfer.homomorphic.framing import receive_frame, send_frame
from splitinfer.rounds import MAX_RECORD_BYTES, Record

__all__ = ["SharedCloud"]


@dataclass(frozen=True, slots=True)
class _Helper:
    process_id: int
    stream: socket.socket


class SharedCloud:
    """A cloud half whose products are shared by `processes` processes; a context manager that ends them."""

    def __init__(self, cloud: CloudHalf, *, processes: int = 1) -> None:
        self._cloud = cloud
        self._processes = processes
        self._helpers: list[_Helper] = []

    def __enter__(self) -> SharedCloud:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, record: Record) -> Record:
        """Answer one record as `CloudHalf.answer`; raises TransportError besides where a helper died."""
        if record.operation not in COMPUTING:
            reply = self._cloud.answer(record)
            self._tell(record)
            return reply
        while len(self._helpers) < self._processes - 1:
            self._helpers.append(self._fork(len(self._helpers)))
        self._tell(record)
        return self._cloud.combine(record, [partial(self._reply, helper) for helper in self._helpers])

    def close(self) -> None:
        """End the helpers by closing their sockets, and wait for them. Idempotent."""
        for helper in self._helpers:
            helper.stream.close()
        for helper in self._helpers:
            os.waitpid(helper.process_id, 0)
        self._helpers.clear()

    def _tell(self, record: Record) -> None:
        data = record.to_bytes() if self._helpers else b""
        for helper in self._helpers:
            send_frame(helper.stream, data)

    def _reply(self, helper: _Helper) -> tuple[bytes, ...]:
        data = receive_frame(helper.stream, limit_bytes=MAX_RECORD_BYTES)
        if data is None:
            raise TransportError("a helper process of the cloud ended")
        return Record.from_bytes(data).blobs

    def _fork(self, index: int) -> _Helper:
        ours, theirs = socket.socketpair()
        process_id = os.fork()
        if not process_id:
            for stream in (ours, *(helper.stream for helper in self._helpers)):
                stream.close()
            self._help(theirs, index)
        theirs.close()
        return _Helper(process_id, ours)

    def _help(self, stream: socket.socket, index: int) -> NoReturn:
        """Serve as helper until the parent closes; never returns."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            while (data := receive_frame(stream, limit_bytes=MAX_RECORD_BYTES)) is not None:
                record = Record.from_bytes(data)
                if record.operation in COMPUTING:
                    blobs = self._cloud.partial(record, (index, self._processes))
                    send_frame(stream, record.reply(blobs).to_bytes())
                else:
                    self._cloud.answer(record)
            status = 0
        except SplitInferError:
            status = 1
        finally:
            # The parent's buffers and exit handlers are not this process's to run.
            os._exit(status)
