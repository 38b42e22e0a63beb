"""A cache of 1 GiB between two processes over loopback HTTP: sealed against unsealed, stage by stage, and its memory.

No model of that size runs here. A stand-in engine hands over a cache of random bfloat16 numbers; it is made anew before
each transfer, outside of what is timed, because the product wipes what it sent. All else is the product: its server and
service in one process, its gate, exchange, client and sink in the other, ciphertext root and receipt included. Unsealed
means the same bytes through the same door, client and sink. Rounds are interleaved and the best of each counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, best_of, parser, print_report, progress, report, reset_peak, resident
from benchmarks.loopback import Mode, Pair, RandomCache, Timed, attention_layout, cache_bytes
from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.handoff import CacheLayout

GIB = 2**30
CHUNK_BYTES = 1 << 20
RECEIVE_MARK, SEND_MARK, MEMORY_MARK_GIB = 0.26, 0.3, 1.15
CASES: tuple[Mode, ...] = ("sealed", "unsealed", "http")


def moved(layout: CacheLayout, tokens: int, rounds: int) -> dict[str, list[Timed]]:
    """Move the cache both ways in every form; returns what was timed, by case."""
    found: dict[str, list[Timed]] = {}
    with Pair(layout) as pair:
        cache = RandomCache(layout, tokens)

        def down(mode: Mode) -> float:
            return kept(f"receive, {mode}", pair.receive(tokens, mode=mode))

        def up(mode: Mode) -> float:
            return kept(f"send, {mode}", pair.send(cache.filled(), mode=mode))

        def kept(name: str, timed: Timed) -> float:
            # Without the snapshot, whose memory is given back before the next round.
            found.setdefault(name, []).append(Timed(timed.seconds, timed.device_cpu_seconds, timed.cloud_cpu_seconds))
            progress(f"{name}: {timed.seconds:.2f} s")
            return timed.seconds

        cases: dict[str, Callable[[], float]] = {}
        for mode in CASES:
            cases[f"receive, {mode}"] = lambda mode=mode: down(mode)  # type: ignore[misc]
            cases[f"send, {mode}"] = lambda mode=mode: up(mode)  # type: ignore[misc]
        best_of(cases, rounds=rounds)
    return {name: timed[1:] for name, timed in found.items()}


def transfer_rows(found: dict[str, list[Timed]], total: int) -> list[dict[str, object]]:
    """Return one row a case: the best round, and the CPU seconds of that round."""
    rows: list[dict[str, object]] = []
    for name, timed in found.items():
        best = min(timed, key=lambda one: one.seconds)
        rows.append(
            {
                "case": name,
                "seconds_a_gib": best.seconds * GIB / total,
                "gib_a_second": total / best.seconds / GIB,
                "median_seconds_a_gib": median(one.seconds for one in timed) * GIB / total,
                "device_cpu_seconds_a_gib": best.device_cpu_seconds * GIB / total,
                "cloud_cpu_seconds_a_gib": best.cloud_cpu_seconds * GIB / total,
            }
        )
    return rows


# --- the stages alone -----------------------------------------------------------------------------------------------


def stage_seconds(layout: CacheLayout, tokens: int, rounds: int) -> dict[str, float]:
    """Measure each stage of the same bytes alone on one thread; returns CPU seconds a GiB, the best of the rounds."""
    snapshot = RandomCache(layout, tokens).filled()
    total = cache_bytes(layout, tokens)
    plain = memoryview(bytearray(os.urandom(CHUNK_BYTES) * 64))
    sealed, target = memoryview(bytearray(CHUNK_BYTES + 16)), memoryview(bytearray(len(plain)))
    key = AESGCM(os.urandom(32))
    chunks = [plain[start : start + CHUNK_BYTES] for start in range(0, len(plain), CHUNK_BYTES)]
    boxes = [memoryview(key.encrypt(bytes(12), chunk, None)) for chunk in chunks]
    passes = max(1, total // len(plain))

    def encrypt() -> None:
        for _ in range(passes):
            for chunk in chunks:
                key.encrypt_into(bytes(12), chunk, None, sealed)

    def decrypt() -> None:
        for _ in range(passes):
            for index, box in enumerate(boxes):
                key.decrypt_into(bytes(12), box, None, target[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])

    def hashed() -> None:
        for _ in range(passes):
            for box in boxes:
                blake3(box).digest()

    fixed = passes * len(plain)
    cases: dict[str, tuple[Callable[[], float], int]] = {
        "slab copy": (lambda: _spent(lambda: _drained(snapshot)), total),
        "AES-256-GCM, encrypt": (lambda: _spent(encrypt), fixed),
        "BLAKE3": (lambda: _spent(hashed), fixed),
        "AES-256-GCM, decrypt": (lambda: _spent(decrypt), fixed),
        "placing": (lambda: _placing(layout, tokens), total),
    }
    spent = best_of({name: case for name, (case, _) in cases.items()}, rounds=rounds)
    return {name: min(spent[name]) * GIB / size for name, (_, size) in cases.items()}


def _spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _drained(snapshot: CacheSnapshot) -> None:
    for _ in codec.pack(snapshot, codec="raw", padded_tokens=schedule.pad_tokens(snapshot.true_tokens)).slabs():
        pass


def _placing(layout: CacheLayout, tokens: int) -> float:
    """Return the CPU seconds of moving slabs to their places, memory for the tensors included, filling them not."""
    padded = schedule.pad_tokens(tokens)
    sink = codec.sink(layout, codec="raw", true_tokens=tokens, padded_tokens=padded)
    return _spent(lambda: _settle(iter(sink.sizes()), sink))


def _settle(sizes: Iterator[int], sink: codec.CacheSink) -> None:
    for _ in sizes:
        sink.slab()
    sink.finish()


def cap_rows(stages: dict[str, float], http: Timed | None, total: int) -> tuple[list[dict[str, object]], float]:
    """Return one row a stage, and the ratio that no arrangement of one thread a process can pass on two cores.

    A sealed cache is as slow as the slower of sender (copy, encrypt, hash, HTTP) and receiver (HTTP, decrypt, hash,
    place); an unsealed one as the slower of copy with HTTP, and HTTP with placing.
    """
    rows: list[dict[str, object]] = [
        {"case": f"stage alone: {name}", "device_cpu_seconds_a_gib": seconds} for name, seconds in stages.items()
    ]
    sending = http.cloud_cpu_seconds * GIB / total if http else 0.0
    taking = http.device_cpu_seconds * GIB / total if http else 0.0
    sender = stages["slab copy"] + stages["AES-256-GCM, encrypt"] + stages["BLAKE3"] + sending
    receiver = taking + stages["AES-256-GCM, decrypt"] + stages["BLAKE3"] + stages["placing"]
    unsealed = max(stages["slab copy"] + sending, taking + stages["placing"])
    rows.append({"case": "sender's stages together", "cloud_cpu_seconds_a_gib": sender})
    rows.append({"case": "receiver's stages together", "device_cpu_seconds_a_gib": receiver})
    return rows, unsealed / max(sender, receiver)


# --- memory ---------------------------------------------------------------------------------------------------------


def _receiving(answer: Connection, layout: CacheLayout, tokens: int) -> None:
    torch.set_num_threads(1)
    with Pair(layout) as pair:
        pair.receive(64)  # what a first transfer imports and keeps is not this cache's
        pair.prepare(tokens)
        reset_peak()
        before, _ = resident()
        snapshot = pair.receive(tokens).snapshot
        _, most = resident()
        answer.send((before, most, snapshot.true_tokens if snapshot else 0))


def peak_above_idle(layout: CacheLayout, tokens: int) -> int:
    """Receive once in a fresh process; returns the most bytes that it held above what it held before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receiving, args=(theirs, layout, tokens))
    process.start()
    theirs.close()
    try:
        before, most, _ = ours.recv()
    finally:
        process.join()
    return int(most - before)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure everything and return the report."""
    layout = attention_layout(layers=args.layers, heads=args.heads, dim=args.dim)
    total = cache_bytes(layout, args.tokens)
    progress("memory of the receiving process")
    peak = peak_above_idle(layout, args.tokens)
    found = moved(layout, args.tokens, args.rounds)
    progress("each stage alone")
    stages = stage_seconds(layout, args.tokens, max(2, args.rounds // 2))
    best = {name: min(timed, key=lambda one: one.seconds) for name, timed in found.items()}
    more, cap = cap_rows(stages, best["receive, http"], total)
    marks = [
        Mark("receiving, sealed to unsealed", _ratio(best, "receive"), RECEIVE_MARK, "at least"),
        Mark("sending, sealed to unsealed", _ratio(best, "send"), SEND_MARK, "at least"),
        Mark("peak memory above idle, times the cache", peak / total, MEMORY_MARK_GIB, "at most"),
    ]
    shape = f"{args.layers} layers x {args.heads} KV heads x {args.dim}, {args.tokens:,} tokens, bfloat16"
    return report(
        "transfer",
        setting=(
            f"{total / GIB:.3g} GiB ({shape}) over loopback HTTP, two processes, best of {args.rounds} interleaved "
            "rounds"
        ),
        rows=[*transfer_rows(found, total), *more],
        marks=marks,
        cap=cap,
        peak_bytes=peak,
        cache_bytes=total,
        notes=[
            f"Cap of receiving, sealed to unsealed, from the stages alone, one core a process: {cap:.2f}",
            f"Peak memory of the receiving process above idle: {peak / GIB:.3g} GiB for {total / GIB:.3g} GiB",
        ],
    )


def _ratio(best: dict[str, Timed], way: str) -> float:
    return best[f"{way}, unsealed"].seconds / best[f"{way}, sealed"].seconds


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    made = parser(__doc__, "python benchmarks/transfer.py --rounds 3 --json")
    made.add_argument("--layers", type=int, default=32)
    made.add_argument("--heads", type=int, default=8)
    made.add_argument("--dim", type=int, default=128)
    made.add_argument("--tokens", type=int, default=8192, help="prompt tokens (default 8192)")
    made.add_argument("--rounds", type=int, default=4, help="rounds that count, after one that does not (default 4)")
    args = made.parse_args(argv)
    if args.quick:
        args.layers, args.tokens, args.rounds = 4, 1024, 2
    torch.set_num_threads(1)
    print_report(run(args), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
