"""Sealing and opening 128 MiB on one thread, as ratios to raw AES-256-GCM on the same chunks in the same run.

Prints throughput of: raw `AESGCM.encrypt_into`; sealing's chunks alone; sealing with the ciphertext root as it is
logged and receipted; and the same for opening into preallocated slabs. Interleaved rounds, best of each.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import parser, print_report, report
from splitinfer.receive.chunks import ChunkReader
from splitinfer.sealing.keys import Direction, StreamKeys
from splitinfer.sealing.signing import Purpose, Signer
from splitinfer.sealing.stream import TAG_BYTES, ChunkCipher, ChunkRoot, SealedStream

TRANSFER_ID = bytes(16)
MANIFEST_DIGEST = bytes(32)


class NoRoot(ChunkRoot):
    """A root that is not computed: what the chunks alone cost."""

    def add(self, chunk: memoryview) -> None:
        """Do nothing."""


def unsigned(purpose: Purpose, payload: bytes) -> bytes:  # noqa: ARG001
    """Stand in for the one Ed25519 signature of a stream, which is not what is measured."""
    return bytes(64)


def sealed(keys: StreamKeys, slabs: list[memoryview], chunk: int, root: ChunkRoot, signer: Signer) -> SealedStream:
    """Build the product's own stream over these slabs."""
    return SealedStream(
        cipher=ChunkCipher(keys, transfer_id=TRANSFER_ID, direction=Direction.REQUEST),
        direction=Direction.REQUEST,
        chunk_bytes=chunk,
        data_bytes=sum(map(len, slabs)),
        manifest_digest=MANIFEST_DIGEST,
        pieces=slabs,
        signer=signer,
        chunks=root,
    )


class Memory:
    """A source over bytes in memory."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readinto(self, buffer: memoryview) -> int:
        """Copy the next bytes."""
        taken = min(len(buffer), len(self._data) - self._at)
        buffer[:taken] = self._data[self._at : self._at + taken]
        self._at += taken
        return taken


def raw_encrypt(key: bytes, plain: memoryview, chunk: int) -> None:
    """Encrypt chunk by chunk with the library alone, into one reused buffer."""
    aead, out = AESGCM(key), memoryview(bytearray(chunk + TAG_BYTES))
    for index, start in enumerate(range(0, len(plain), chunk)):
        aead.encrypt_into(index.to_bytes(12, "big"), plain[start : start + chunk], None, out)


def raw_hash(plain: memoryview, chunk: int) -> None:
    """Hash chunk by chunk with the library alone."""
    for start in range(0, len(plain), chunk):
        blake3(plain[start : start + chunk]).digest()


def raw_decrypt(key: bytes, body: memoryview, out: memoryview, chunk: int) -> None:
    """Read chunk by chunk from the same kind of source and decrypt with the library alone, into the destination."""
    aead, source, buffer = AESGCM(key), Memory(body), memoryview(bytearray(chunk + TAG_BYTES))
    for index in range(len(out) // chunk):
        source.readinto(buffer)
        aead.decrypt_into(index.to_bytes(12, "big"), buffer, None, out[index * chunk : (index + 1) * chunk])


def drain(stream: SealedStream) -> None:
    """Pull a stream to its end."""
    for _ in stream:
        pass


def open_slabs(keys: StreamKeys, body: memoryview, slabs: list[memoryview], chunk: int, *, root: bool) -> None:
    """Open the product's stream into preallocated slabs."""
    reader = ChunkReader(
        Memory(body),
        ChunkCipher(keys, transfer_id=TRANSFER_ID, direction=Direction.REQUEST),
        direction=Direction.REQUEST,
        chunk_bytes=chunk,
        manifest_digest=MANIFEST_DIGEST,
    )
    if not root:
        reader._root = NoRoot()
    sink = _Slabs(slabs)
    reader.expect(sum(map(len, slabs)))
    reader.fill(sink, iter(map(len, slabs)))


class _Slabs:
    def __init__(self, slabs: list[memoryview]) -> None:
        self._slabs = iter(slabs)

    def slab(self) -> memoryview:
        """Return the next slab."""
        return next(self._slabs)

    def finish(self) -> object:
        """Return nothing."""
        return None

    def wipe(self) -> None:
        """Keep all."""


def measure(cases: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Time each case in turn, `rounds` times, and return the best seconds of each."""
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, case in cases.items():
            began = time.perf_counter()
            case()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def run(total: int, chunk: int, rounds: int) -> dict[str, float]:
    """Measure one chunk size; returns GiB/s by case."""
    keys = StreamKeys(aead_key=secrets.token_bytes(32), base_nonce=secrets.token_bytes(12), commitment=bytes(32))
    plain = memoryview(bytearray(os.urandom(1 << 20) * (total >> 20)))
    slabs = [plain[start : start + (1 << 20)] for start in range(0, total, 1 << 20)]
    body = memoryview(b"".join(bytes(part) for part in sealed(keys, slabs, chunk, ChunkRoot(), unsigned)))
    raw_body = memoryview(b"".join(_raw_body(keys.aead_key, plain, chunk)))
    target = memoryview(bytearray(total))
    targets = [target[start : start + (1 << 20)] for start in range(0, total, 1 << 20)]
    cases = {
        "raw encrypt_into": lambda: raw_encrypt(keys.aead_key, plain, chunk),
        "seal, chunks alone": lambda: drain(sealed(keys, slabs, chunk, NoRoot(), unsigned)),
        "seal, with root": lambda: drain(sealed(keys, slabs, chunk, ChunkRoot(), unsigned)),
        "raw blake3": lambda: raw_hash(plain, chunk),
        "raw read, decrypt_into": lambda: raw_decrypt(keys.aead_key, raw_body, target, chunk),
        "open, chunks alone": lambda: open_slabs(keys, body, targets, chunk, root=False),
        "open, with root": lambda: open_slabs(keys, body, targets, chunk, root=True),
    }
    return {name: total / seconds / 2**30 for name, seconds in measure(cases, rounds).items()}


def _raw_body(key: bytes, plain: memoryview, chunk: int) -> Iterator[bytes]:
    aead = AESGCM(key)
    for index, start in enumerate(range(0, len(plain), chunk)):
        yield aead.encrypt(index.to_bytes(12, "big"), plain[start : start + chunk], None)


def _rows(tables: dict[int, dict[str, float]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for size, table in tables.items():
        for name, speed in table.items():
            is_opening = name.startswith("open") or name == "raw read, decrypt_into"
            raw = table["raw read, decrypt_into" if is_opening else "raw encrypt_into"]
            rows.append({"case": f"{size >> 10} KiB: {name}", "gib_a_second": speed, "of_raw": speed / raw})
    return rows


def _cap(table: dict[str, float]) -> float:
    """Return the most that encrypting and hashing on one thread can reach of encrypting alone."""
    return 1 / (1 + table["raw encrypt_into"] / table["raw blake3"])


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    made = parser(__doc__, "python benchmarks/sealing.py --mebibytes 64")
    made.add_argument("--mebibytes", type=int, default=128)
    made.add_argument("--rounds", type=int, default=7)
    args = made.parse_args(argv)
    if args.quick:
        args.mebibytes, args.rounds = 2, 1
    tables = {size: run(args.mebibytes << 20, size, args.rounds) for size in (64 << 10, 256 << 10, 1 << 20)}
    found = report(
        "sealing",
        setting=f"{args.mebibytes} MiB, one thread, best of {args.rounds} interleaved rounds",
        rows=_rows(tables),
        marks=[],
        notes=[
            f"{size >> 10} KiB: encrypting and hashing on one thread reach at most {_cap(table):.2f} of encrypting"
            for size, table in tables.items()
        ],
    )
    print_report(found, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
