"""A TCP link of limited rate between two processes of one machine, and what passed it when; a process of its own.

Bytes of one direction wait until their time has come, in pieces of 16 KiB, so that no more than a set number a second
pass; a piece that was late by up to 20 ms is made up for, else the rate would be short by every sleep that took too
long. Times are those of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Self

__all__ = ["PacedLink"]

PIECE_BYTES = 16 * 1024
_LATE_SECONDS = 0.02

Passed = list[tuple[float, int]]
"""Moments and the bytes that had passed by then."""


class PacedLink:
    """The link as the device sees it; a context manager. `url` leads to the server behind it."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, __file__, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self._answer()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def set(self, direction: str, bytes_per_second: float) -> None:
        """Pace a direction, `up` or `down`, from the next piece on, and forget what passed so far."""
        self._ask([direction, bytes_per_second])

    def passed(self) -> Passed:
        """Return what passed in the paced direction since `set`."""
        return [(seconds, count) for seconds, count in self._ask(None)]

    def _ask(self, order: object) -> list[tuple[float, int]]:
        if self._process.stdin is None:
            raise RuntimeError("the link has no input")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        found: list[tuple[float, int]] = self._answer()
        return found

    def _answer(self) -> Any:
        if self._process.stdout is None:
            raise RuntimeError("the link has no output")
        return json.loads(self._process.stdout.readline())


class _Pace:
    """Which direction waits, how long, and what passed."""

    def __init__(self) -> None:
        self.direction, self.bytes_per_second = "up", float("inf")
        self.passed: Passed = []

    def wait(self, count: int, free_at: float) -> float:
        """Wait until so many bytes may pass, note them, and return when the link is free again."""
        free_at = max(free_at, time.perf_counter() - _LATE_SECONDS) + count / self.bytes_per_second
        time.sleep(max(0.0, free_at - time.perf_counter()))
        self.passed.append((time.perf_counter(), count + (self.passed[-1][1] if self.passed else 0)))
        return free_at


def main() -> None:
    """Serve; each line of the input sets a direction's pace, or asks for what passed."""
    pace, listener = _Pace(), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, int(sys.argv[1]), pace), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order is not None:
            pace.direction, pace.bytes_per_second = order
            pace.passed = []
        print(json.dumps(pace.passed), flush=True)


def _accept(listener: socket.socket, port: int, pace: _Pace) -> None:
    while True:
        device, _ = listener.accept()
        cloud = socket.create_connection(("127.0.0.1", port))
        for source, target, direction in ((device, cloud, "up"), (cloud, device, "down")):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=(source, target, direction, pace), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, direction: str, pace: _Pace) -> None:
    free_at = 0.0
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE_BYTES):
            if direction == pace.direction:
                free_at = pace.wait(len(data), free_at)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
