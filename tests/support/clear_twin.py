"""What leaking would look like: the same payloads in clear, in every form that the scanner claims to find."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import torch

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import AuthenticationError
from splitinfer.sealing.stream import TAG_BYTES, ChunkCipher
from tests.support.scanner import BYTE_ORDERS, KV_DTYPES, TOKEN_FORMS


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def echoing() -> Iterator[int]:
    """Serve on a free loopback port, sending every body back; yields the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def post(url: str, body: bytes) -> bytes:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("POST", "/v1/decode", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def clear_texts(text: str, names: Sequence[str]) -> Iterator[bytes]:
    """Yield a text as a leak might write it."""
    data = text.encode()
    yield from (data, data.upper(), text.encode("utf-16-le"), text.encode("utf-16-be"), data.hex().encode())
    yield json.dumps({"model": list(names), "prompt": text}).encode()
    # Shifted by one and two bytes, a word's base64 looks different.
    yield from (base64.b64encode(b"\x00" * shift + data) for shift in range(3))


def clear_tokens(token_ids: Sequence[int]) -> Iterator[bytes]:
    """Yield token ids as a leak might write them."""
    for code, mark in itertools.product(TOKEN_FORMS.values(), BYTE_ORDERS.values()):
        yield struct.pack(f"{mark}{len(token_ids)}{code}", *token_ids)
    yield json.dumps(list(token_ids)).encode()
    yield json.dumps(list(token_ids), separators=(",", ":")).encode()


def clear_cache(snapshot: CacheSnapshot) -> Iterator[bytes]:
    """Yield a cache as a leak might send it."""
    for dtype in KV_DTYPES.values():
        tensors = [part.to(dtype).contiguous() for layer in snapshot.layers for part in layer.values()]
        yield b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors)


@contextmanager
def unsealed() -> Iterator[None]:
    """Make every chunk of this process its own plaintext with an empty tag; all else stays as it is."""

    def seal_into(self: ChunkCipher, index: int, plain: memoryview, out: memoryview, *, final: bool) -> None:
        out[: len(plain)] = plain
        out[len(plain) :] = bytes(TAG_BYTES)

    def open_into(self: ChunkCipher, index: int, chunk: memoryview, out: memoryview, *, final: bool) -> None:
        if any(chunk[-TAG_BYTES:]):
            raise AuthenticationError
        out[:] = chunk[:-TAG_BYTES]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkCipher, "seal_into", seal_into)
        patch.setattr(ChunkCipher, "open_into", open_into)
        yield
