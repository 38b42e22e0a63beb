"""A cloud that does what the first 64 bytes of a body tell it to, and the same cloud served by a process of its own.

echo N              read the whole body, send its last N bytes back (N is the body's length without the command)
make N              read the whole body, send N bytes
refuse CODE         read nothing more, raise the error with this code
crash WORD          raise a RuntimeError whose text is WORD
late CODE N         begin a reply of N bytes, raise after all of them
break N             begin a reply of 2 N bytes, raise after N
short N             declare N bytes, send N - 1
hold N              send N bytes, then wait for `go`, then N more
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from server.run import serve
from server.settings import make_settings
from splitinfer.errors import ReplayError, SplitInferError, error_for_code
from splitinfer.handoff import CloudReply, Route, Source

COMMAND_BYTES = 64
PIECE_BYTES = 1 << 20
KEYSET = b'{"keyset":"echo"}'


def command(text: str) -> bytes:
    """Return the first bytes of a body that asks for this."""
    return text.encode().ljust(COMMAND_BYTES)


class EchoCloud:
    """Implements `handoff.Cloud`; counts what it read, and which generators were closed or ran to their end."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.truncated = threading.Event()
        self.reading = threading.Event()
        self.begun = threading.Event()
        self.closed = threading.Event()
        self.go = threading.Event()

    def handle(self, route: Route, body: Source) -> CloudReply:
        if route is Route.KEYSET:
            return CloudReply(len(KEYSET), iter([KEYSET]))
        verb, *words = self._read_exactly(body, COMMAND_BYTES).decode().split()
        if verb == "refuse":
            raise (error_for_code(words[0]) or SplitInferError)("detail-canary")
        if verb == "crash":
            raise RuntimeError(words[0])
        if verb == "echo":
            data = self._read_exactly(body, int(words[0]))
            return CloudReply(len(data), self._watched(iter([data])))
        self._read_all(body)
        return self._reply(verb, words)

    def _reply(self, verb: str, words: list[str]) -> CloudReply:
        size = int(words[-1])
        if verb == "late":
            return CloudReply(size, self._watched(_then_raise(size)))
        if verb == "break":
            return CloudReply(2 * size, self._watched(_then_raise(size)))
        if verb == "short":
            return CloudReply(size, self._watched(_pieces(size - 1)))
        if verb == "hold":
            return CloudReply(2 * size, self._watched(self._held(size)))
        return CloudReply(size, self._watched(_pieces(size)))

    def _held(self, size: int) -> Iterator[memoryview | bytes]:
        yield from _pieces(size)
        self.go.wait(60)
        yield from _pieces(size)

    def _watched(self, pieces: Iterator[memoryview | bytes]) -> Iterator[memoryview | bytes]:
        try:
            self.begun.set()
            yield from pieces
        finally:
            self.closed.set()

    def _read_exactly(self, body: Source, size: int) -> bytearray:
        data = bytearray(size)
        with memoryview(data) as view:
            at = 0
            while at < size and (count := self._read(body, view[at:])):
                at += count
        return data[:at]

    def _read_all(self, body: Source) -> None:
        with memoryview(bytearray(PIECE_BYTES)) as view:
            while self._read(body, view):
                pass

    def _read(self, body: Source, view: memoryview) -> int:
        self.reading.set()
        try:
            count = body.readinto(view)
        except SplitInferError:
            self.truncated.set()
            raise
        self.read_bytes += count
        return count


def _pieces(size: int) -> Iterator[memoryview | bytes]:
    buffer = memoryview(bytearray(b"\x5a") * PIECE_BYTES)
    for start in range(0, size, PIECE_BYTES):
        yield buffer[: min(PIECE_BYTES, size - start)]


def _then_raise(size: int) -> Iterator[memoryview | bytes]:
    yield from _pieces(size)
    raise ReplayError("detail-canary")


def main() -> None:
    """Serve an EchoCloud; arguments are NAME=VALUE settings, and `log=PATH`. Prints `HOST PORT` once bound."""
    pairs = dict(argument.split("=", 1) for argument in sys.argv[1:])
    log = Path(pairs.pop("log"))

    def ready(host: str, port: int) -> None:
        print(host, port, flush=True)  # noqa: T201

    with log.open("w", encoding="utf-8", buffering=1) as stream:
        serve(EchoCloud(), make_settings(pairs), ready=ready, log_stream=stream)


if __name__ == "__main__":
    main()
