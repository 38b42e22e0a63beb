"""HTTP/1.1 messages and splitinfer bodies as an outsider can take them apart: heads, fields and chunks; no keys.

`Message` is one request or reply; `WireBody` is what its body holds: a length-prefixed JSON head, then equal chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import rfc8785

TAG_BYTES = 16
HEAD_END = b"\r\n\r\n"
HEX = frozenset("0123456789abcdef")
Path = tuple[str | int, ...]


class WireError(AssertionError):
    """The captured bytes are not what the protocol says."""


@dataclass(frozen=True, slots=True)
class Message:
    """One HTTP message: start line, headers in order, body bytes. `cut_bytes` sends that much of the body only."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut_bytes: int | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        head, end, body = raw.partition(HEAD_END)
        if not end:
            raise WireError("the message has no end of its head")
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        return cls(start, headers, body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def route(self) -> str:
        return " ".join(self.start.split(" ")[:2])

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def declared_bytes(self) -> int:
        return int(self.header("content-length") or 0)

    @property
    def unchunked(self) -> bytes:
        """Return the bytes that a body in chunked transfer coding carries (RFC 9112 section 7.1), to its last chunk."""
        if self.header("transfer-encoding") != "chunked":
            raise WireError("the body is not in chunked transfer coding")
        carried, rest = bytearray(), self.body
        while rest:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line, 16)
            carried += rest[:size]
            if rest[size : size + 2] != b"\r\n":
                raise WireError("a chunk has no end")
            rest = rest[size + 2 :]
            if not size:
                break
        return bytes(carried)

    def with_body(self, body: bytes) -> Message:
        """Replace the body and make Content-Length fit it."""
        fitted = ((key, str(len(body)) if key.lower() == "content-length" else value) for key, value in self.headers)
        return replace(self, headers=tuple(fitted), body=body)

    def with_header(self, name: str, value: str | None) -> Message:
        """Set a header, or drop it where `value` is None."""
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name)
        return replace(self, headers=kept if value is None else (*kept, (name, value)))

    def with_status(self, status: int) -> Message:
        return replace(self, start=f"HTTP/1.1 {status} Status")

    def cut(self, body_bytes: int) -> Message:
        """Declare the whole body, send only this much of it, and close."""
        return replace(self, cut_bytes=body_bytes)

    def to_bytes(self) -> bytes:
        lines = [self.start, *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join(lines).encode("latin-1") + HEAD_END + self.body[: self.cut_bytes]


@dataclass(frozen=True, slots=True)
class WireBody:
    """A request or reply body: the head's JSON bytes and the ciphertext chunks."""

    head: bytes
    chunks: tuple[bytes, ...]

    @classmethod
    def parse(cls, body: bytes) -> WireBody:
        size = int.from_bytes(body[:4], "big")
        head, rest = body[4 : 4 + size], body[4 + size :]
        fields = json.loads(head)
        unit = int(fields.get("manifest", fields)["chunk_bytes"]) + TAG_BYTES
        if len(rest) % unit:
            raise WireError("the chunks are not of equal size")
        return cls(head, tuple(rest[at : at + unit] for at in range(0, len(rest), unit)))

    @property
    def fields(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.head)
        return found

    def get(self, *path: str | int) -> object:
        return value_at(self.fields, path)

    def with_fields(self, fields: Mapping[str, object]) -> WireBody:
        return replace(self, head=canonical(fields))

    def with_value(self, path: Path, value: object) -> WireBody:
        return self.with_fields(with_value(self.fields, path, value))

    def with_chunks(self, chunks: Sequence[bytes]) -> WireBody:
        return replace(self, chunks=tuple(chunks))

    def with_chunk(self, index: int, chunk: bytes) -> WireBody:
        chunks = list(self.chunks)
        chunks[index] = chunk
        return self.with_chunks(chunks)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Return every offset at which a part begins or ends, the body's own end left out."""
        first = 4 + len(self.head)
        sizes = [0, 4, *(first + len(self.chunks[0]) * i for i in range(len(self.chunks)))]
        return tuple(sizes)

    def to_bytes(self) -> bytes:
        return len(self.head).to_bytes(4, "big") + self.head + b"".join(self.chunks)


def canonical(value: Mapping[str, object]) -> bytes:
    return rfc8785.dumps(dict(value))  # type: ignore[arg-type]


def flip_bit(data: bytes, byte: int, bit: int = 0) -> bytes:
    """Flip one bit of one byte; a negative index counts from the end."""
    flipped = bytearray(data)
    flipped[byte] ^= 1 << bit
    return bytes(flipped)


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield every leaf of a JSON value with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def value_at(value: object, path: Path) -> object:
    for step in path:
        value = value[step]  # type: ignore[index]
    return value


def with_value(value: Mapping[str, object], path: Path, new: object) -> dict[str, object]:
    """Copy a JSON object with one leaf changed."""
    copy: dict[str, object] = json.loads(json.dumps(value))
    parent = value_at(copy, path[:-1])
    parent[path[-1]] = new  # type: ignore[index]
    return copy


def flipped_value(value: object) -> object:
    """Flip the lowest bit of a leaf so that it keeps its form: hex stays hex, a number a number, a word a word."""
    if isinstance(value, int):
        return value ^ 1
    if isinstance(value, str) and value and set(value) <= HEX:
        middle = len(value) // 2
        return value[:middle] + format(int(value[middle], 16) ^ 1, "x") + value[middle + 1 :]
    if isinstance(value, str) and value:
        return value[:-1] + chr(ord(value[-1]) ^ 1)
    raise WireError(f"a leaf of type {type(value).__name__} cannot be flipped")
