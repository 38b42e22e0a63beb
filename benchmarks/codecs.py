"""Speed and size of every codec on one thread: GB of bfloat16 cache a CPU-second in and out, length against bfloat16.

In is snapshot to slabs, out is slabs to snapshot, the memory of the final tensors included. CPU-seconds are this
process's own, so that other load disturbs them less than it does a clock; the best of several rounds is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, parser, print_report, report
from splitinfer import codec
from splitinfer.cache.snapshot import CacheSnapshot, LayerTensors
from splitinfer.handoff import CacheLayout, LayerLayout, TensorLayout

# GB a CPU-second in and out, and times smaller than bfloat16.
MARKS = {"raw": (3.0, 3.0, 1.0), "lossless": (0.2, 0.5, 1.4), "q8": (0.8, 0.8, 1.8), "k6v4": (0.0, 0.0, 2.7)}


def snapshot_of(tokens: int, layers: int, heads: int, dim: int) -> CacheSnapshot:
    """Draw a cache like a Llama's: keys whose channels differ in mean and spread, values that do not."""
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    parts = (TensorLayout("keys", "bfloat16", "tokens", (heads,), (dim,)),)
    parts += (TensorLayout("values", "bfloat16", "tokens", (heads,), (dim,)),)
    layout = CacheLayout((LayerLayout("full", parts),) * layers)
    made: list[LayerTensors] = []
    for _ in range(layers):
        spread = (0.7 * normal(1, heads, 1, dim)).exp()
        keys = 2 * spread * normal(1, heads, 1, dim) + spread * normal(1, heads, tokens, dim)
        made.append({"keys": keys.bfloat16(), "values": normal(1, heads, tokens, dim).bfloat16()})
    return CacheSnapshot(layout, tokens, tuple(made))


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the least CPU-seconds of several rounds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def pack(snapshot: CacheSnapshot, name: str) -> int:
    """Pack to the last slab; returns the length."""
    packed = codec.pack(snapshot, codec=name, padded_tokens=snapshot.true_tokens)
    return sum(len(slab) for slab in packed.slabs())


def receiving_seconds(snapshot: CacheSnapshot, name: str, rounds: int) -> float:
    """Return the least CPU-seconds of receiving; filling a slab's memory, which decryption does, is not counted."""
    packed = codec.pack(snapshot, codec=name, padded_tokens=snapshot.true_tokens)
    data = memoryview(b"".join(map(bytes, packed.slabs())))
    announced = packed.size_bytes if packed.is_variable else None
    best = float("inf")
    for _ in range(rounds):
        sink = codec.sink(
            snapshot.layout,
            codec=name,
            true_tokens=snapshot.true_tokens,
            padded_tokens=snapshot.true_tokens,
            coded_bytes=announced,
        )
        sizes, at, spent = sink.sizes(), 0, 0.0
        while True:
            began = time.process_time()
            size = next(sizes, None)
            slab = sink.slab() if size is not None else None
            spent += time.process_time() - began
            if size is None or slab is None:
                break
            slab[:] = data[at : at + size]
            at += size
        began = time.process_time()
        sink.finish()
        best = min(best, spent + time.process_time() - began)
    return best


def run(snapshot: CacheSnapshot, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Measure each codec; returns GB a CPU-second in and out, and the factor against bfloat16."""
    raw_bytes = codec.pack(snapshot, codec="raw", padded_tokens=snapshot.true_tokens).size_bytes
    table = {}
    for name in names:
        size = pack(snapshot, name)
        seconds_in = cpu_seconds(lambda name=name: pack(snapshot, name), rounds)
        seconds_out = receiving_seconds(snapshot, name, rounds)
        table[name] = {
            "in_gb_per_cpu_second": raw_bytes / seconds_in / 1e9,
            "out_gb_per_cpu_second": raw_bytes / seconds_out / 1e9,
            "times_smaller": raw_bytes / size,
        }
    return table


def _marks(table: dict[str, dict[str, float]]) -> list[Mark]:
    units = ("in_gb_per_cpu_second", "out_gb_per_cpu_second", "times_smaller")
    words = ("GB a CPU-second in", "GB a CPU-second out", "times smaller")
    return [
        Mark(f"{name}: {word}", table[name][unit], bar, "at least")
        for name, bars in MARKS.items()
        if name in table
        for unit, word, bar in zip(units, words, bars, strict=True)
        if bar
    ]


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    made = parser(__doc__, "python benchmarks/codecs.py --codec q8 --codec lossless")
    made.add_argument("--tokens", type=int, default=2048)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--heads", type=int, default=8)
    made.add_argument("--dim", type=int, default=128)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument(
        "--codec", action="append", choices=list(codec.UNCALIBRATED), help="only this one; may be repeated"
    )
    args = made.parse_args(argv)
    if args.quick:
        args.tokens, args.layers, args.rounds = 64, 1, 1
    torch.set_num_threads(1)
    table = run(
        snapshot_of(args.tokens, args.layers, args.heads, args.dim), args.codec or list(codec.UNCALIBRATED), args.rounds
    )
    found = report(
        "codecs",
        setting=(
            f"{args.tokens:,} tokens, {args.layers} layers, {args.heads} heads of {args.dim}, drawn like a Llama's "
            f"cache, bfloat16; one thread, best of {args.rounds} rounds"
        ),
        rows=[{"codec": name, **row} for name, row in table.items()],
        marks=_marks(table),
    )
    print_report(found, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
