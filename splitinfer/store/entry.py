"""One file of the store: slabs of a public cache <-> encrypted bytes, chunk by chunk; on the device.

A file is a clear head, a sealed block of facts, and the slabs in chunks of 1 MiB (docs/format.md section 20):

    head    16-byte magic, u32 version, 12-byte nonce, file key (32 bytes) wrapped under the store's wrap key
    facts   chunk 0: u64 count of slab bytes, prefixed canonical JSON, zeros up to 4096
    slabs   chunks 1, 2, ...: all of 1 MiB but the last, which says that it is the last

Every file has a fresh AES-256-GCM key, so a chunk's nonce is its index. The associated data of wrap and chunks hold
magic, version and the file's own name; the name covers model, tokens and all else, so a file that was renamed, or is
of anything else than what was asked for, does not open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from splitinfer.errors import AuthenticationError, ManifestError, StoreError, TruncatedError
from splitinfer.handoff import Sink
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.manifest import ModelWire
from splitinfer.sealing.wire import Count, Hex16, Hex32, Seconds, WireModel, parse_wire
from splitinfer.store.files import StoreFiles

__all__ = [
    "CHUNK_BYTES",
    "FACTS_BYTES",
    "HEAD_BYTES",
    "TAG_BYTES",
    "Facts",
    "OpenedEntry",
    "fill",
    "open_entry",
    "write",
]

MAGIC = b"splitinfer/store"
VERSION = 1
KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
FACTS_BYTES = 4096
CHUNK_BYTES = 1024 * 1024
_PREAMBLE = MAGIC + VERSION.to_bytes(4, "big")
HEAD_BYTES = len(_PREAMBLE) + NONCE_BYTES + KEY_BYTES + TAG_BYTES
_SLABS_START = HEAD_BYTES + FACTS_BYTES + TAG_BYTES


class Facts(WireModel):
    """What is known of a stored cache: of which model and transfer it is, and what was checked when it came.

    `verified_rows` were recomputed; `is_exact` tells that the cloud stated this device's numerics and the codec lost
    nothing; `generation` is the recipient's, so that what a retired one sent is not used.
    """

    model: ModelWire
    tokens: Count
    recipient: Hex32
    generation: Count
    transfer_id: Hex16
    received_root: Hex32
    verified_rows: Count
    is_exact: bool
    stored_at: Seconds


@dataclass(frozen=True, slots=True)
class _Cipher:
    """AES-256-GCM over numbered chunks of one file: nonce = index, AAD = magic, version, name, index, final flag."""

    aead: AESGCM = field(repr=False)
    bound: bytes

    def seal_into(self, index: int, plain: memoryview, out: memoryview, *, final: bool = False) -> None:
        """Encrypt one chunk into `out` (16 bytes longer)."""
        self.aead.encrypt_into(index.to_bytes(NONCE_BYTES, "big"), plain, self._associated(index, final), out)

    def open_into(self, index: int, chunk: bytes, out: memoryview, *, final: bool = False) -> None:
        """Decrypt one chunk into `out` (16 bytes shorter); raises AuthenticationError."""
        try:
            self.aead.decrypt_into(index.to_bytes(NONCE_BYTES, "big"), chunk, self._associated(index, final), out)
        except InvalidTag as error:
            raise AuthenticationError from error

    def _associated(self, index: int, final: bool) -> bytes:
        return self.bound + index.to_bytes(4, "big") + bytes([final])


@dataclass(frozen=True, slots=True)
class OpenedEntry:
    """A file whose head and facts are authentic; `data_bytes` of slabs follow."""

    facts: Facts
    data_bytes: int
    cipher: _Cipher

    def chunks(self, files: StoreFiles, handle: int) -> Iterator[memoryview]:
        """Yield the slabs' bytes in order, each chunk valid until the next; raises AuthenticationError."""
        plain = memoryview(bytearray(min(CHUNK_BYTES, self.data_bytes)))
        offset, left, index = _SLABS_START, self.data_bytes, 0
        while left:
            size, index = min(CHUNK_BYTES, left), index + 1
            left -= size
            chunk = files.read_at(handle, offset, size + TAG_BYTES)
            self.cipher.open_into(index, chunk, plain[:size], final=not left)
            yield plain[:size]
            offset += size + TAG_BYTES


def write(
    files: StoreFiles,
    handle: int,
    pieces: Iterable[memoryview | bytes],
    *,
    name: str,
    wrap_key: bytes,
    facts: Facts,
    max_bytes: int,
    randomness: Callable[[int], bytes],
) -> int:
    """Encrypt pieces into an empty file and return its size.

    The head comes last, so that a file that was not finished has none. Raises StoreError where the file would exceed
    `max_bytes` or there are no pieces.
    """
    file_key, nonce = randomness(KEY_BYTES), randomness(NONCE_BYTES)
    cipher = _cipher(file_key, name)
    out = memoryview(bytearray(CHUNK_BYTES + TAG_BYTES))
    offset, data_bytes = _SLABS_START, 0
    for index, (plain, is_last) in enumerate(_cut(pieces), start=1):
        sealed = out[: len(plain) + TAG_BYTES]
        if offset + len(sealed) > max_bytes:
            raise StoreError(
                f"the cache is larger than the store's limit of {max_bytes:,} bytes; raise store.max_bytes"
            )
        cipher.seal_into(index, plain, sealed, final=is_last)
        files.write_at(handle, offset, bytes(sealed))
        offset, data_bytes = offset + len(sealed), data_bytes + len(plain)
    if not data_bytes:
        raise StoreError("there is nothing to store; pack a cache")
    sealed = memoryview(bytearray(FACTS_BYTES + TAG_BYTES))
    cipher.seal_into(0, memoryview(_facts_block(facts, data_bytes)), sealed)
    wrapped = AESGCM(wrap_key).encrypt(nonce, file_key, _bound(name))
    files.write_at(handle, 0, _PREAMBLE + nonce + wrapped + bytes(sealed))
    return offset


def open_entry(files: StoreFiles, handle: int, *, name: str, wrap_key: bytes) -> OpenedEntry:
    """Open a file's head and facts.

    Raises:
        ManifestError: another format or version, or facts of another form.
        AuthenticationError: another key, another name, or changed bytes.
        TruncatedError: the file is longer or shorter than its facts say.
    """
    data = files.read_at(handle, 0, _SLABS_START)
    if len(data) < _SLABS_START:
        raise TruncatedError("the stored cache ends within its head")
    if not data.startswith(_PREAMBLE):
        raise ManifestError(f"the stored cache is not of version {VERSION}")
    cipher = _cipher(_unwrapped(data[len(_PREAMBLE) : HEAD_BYTES], name, wrap_key), name)
    block = memoryview(bytearray(FACTS_BYTES))
    cipher.open_into(0, data[HEAD_BYTES:], block)
    facts, data_bytes = _parsed(bytes(block))
    if files.size(handle) != _SLABS_START + data_bytes + TAG_BYTES * -(-data_bytes // CHUNK_BYTES):
        raise TruncatedError("the stored cache is not as long as it says")
    return OpenedEntry(facts, data_bytes, cipher)


def fill(sink: Sink[object], chunks: Iterable[memoryview]) -> None:
    """Copy chunks into a sink's slabs; raises TruncatedError within a slab, LayoutMismatchError beyond the last."""
    target = memoryview(b"")
    for chunk in chunks:
        rest = chunk
        while rest:
            target = target or sink.slab()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            target, rest = target[count:], rest[count:]
    if target:
        raise TruncatedError("the stored cache ends within a slab")


def _cut(pieces: Iterable[memoryview | bytes]) -> Iterator[tuple[memoryview, bool]]:
    """Cut pieces into chunks of 1 MiB, each with whether it is the last; a chunk is valid until the next."""
    filling, waiting = bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    filled, is_waiting = 0, False
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest:
            if filled == CHUNK_BYTES:
                if is_waiting:
                    yield memoryview(waiting), False
                filling, waiting = waiting, filling
                filled, is_waiting = 0, True
            count = min(CHUNK_BYTES - filled, len(rest))
            filling[filled : filled + count] = rest[:count]
            filled, rest = filled + count, rest[count:]
    if is_waiting:
        yield memoryview(waiting), False
    if filled:
        yield memoryview(filling)[:filled], True


def _bound(name: str) -> bytes:
    return _PREAMBLE + bytes.fromhex(name)


def _cipher(file_key: bytes, name: str) -> _Cipher:
    return _Cipher(AESGCM(file_key), _bound(name))


def _unwrapped(data: bytes, name: str, wrap_key: bytes) -> bytes:
    try:
        return AESGCM(wrap_key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _bound(name))
    except InvalidTag as error:
        raise AuthenticationError from error


def _facts_block(facts: Facts, data_bytes: int) -> bytes:
    return (struct.pack(">Q", data_bytes) + prefixed(facts.to_bytes())).ljust(FACTS_BYTES, b"\x00")


def _parsed(block: bytes) -> tuple[Facts, int]:
    data_bytes, length = struct.unpack_from(">QI", block)
    return parse_wire(Facts, block[12 : 12 + length], what="stored cache"), data_bytes
