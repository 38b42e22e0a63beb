"""Time and peak memory of a transfer by its token count, 256 to 32,768, sealed over loopback: what a token costs.

The set-up is that of `transfer.py`, with a small layout: a stand-in engine hands over random numbers. Seconds are the
best of several rounds; memory is the receiving process's own peak above what it held before, and the sending process's.
The least-squares line through all sizes parts what a transfer costs from what a token costs; constant means that beyond
that fixed part a token of the largest size costs at most 1.5 times what one of the smallest size that counts does
(4,096 tokens: below it the fixed part is most of the time), or the other way round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, best_of, parser, print_report, progress, report, reset_peak, resident
from benchmarks.loopback import Pair, attention_layout, cache_bytes

MARK = 1.5
SMALLEST_TOKENS, LARGEST_TOKENS, COUNTED_TOKENS = 256, 32768, 4096


def sizes(smallest: int, largest: int) -> list[int]:
    """Return the powers of two times the smallest, up to the largest."""
    found = [smallest]
    while found[-1] * 2 <= largest:
        found.append(found[-1] * 2)
    return found


def measure(pair: Pair, counts: Sequence[int], rounds: int) -> list[dict[str, object]]:
    """Receive caches of these token counts in turn; returns one row a count."""
    device_peaks: dict[int, list[int]] = {tokens: [] for tokens in counts}
    cloud_peaks: dict[int, list[int]] = {tokens: [] for tokens in counts}

    def receive(tokens: int) -> float:
        pair.prepare(tokens)
        reset_peak()
        before, _ = resident()
        timed = pair.receive(tokens)
        device_peaks[tokens].append(resident()[1] - before)
        now, most = pair.cloud_figures()[1]
        cloud_peaks[tokens].append(most - now)
        progress(f"{tokens:,} tokens: {timed.seconds:.3f} s")
        return timed.seconds

    seconds = best_of({str(tokens): lambda tokens=tokens: receive(tokens) for tokens in counts}, rounds=rounds)  # type: ignore[misc]
    return [
        {
            "tokens": tokens,
            "cache_bytes": cache_bytes(pair.layout, tokens),
            "seconds": min(seconds[str(tokens)]),
            "microseconds_a_token": min(seconds[str(tokens)]) / tokens * 1e6,
            "device_peak_bytes": min(device_peaks[tokens]),
            "device_peak_bytes_a_token": min(device_peaks[tokens]) / tokens,
            "cloud_peak_bytes_above_its_cache": min(cloud_peaks[tokens]),
        }
        for tokens in counts
    ]


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line, each point weighted by 1 / y so that small ones count."""
    weights = [1 / max(y, 1e-12) ** 2 for y in ys]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs, strict=True))
    common = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, xs, ys, strict=True))
    slope = common / spread
    return mean_y - slope * mean_x, slope


def evenness(rows: Sequence[dict[str, object]], name: str, fixed: float) -> float:
    """Return the larger cost a token over the smaller one, of the first and the last row, beyond the fixed part."""
    costs = [(float(row[name]) - fixed) / int(row["tokens"]) for row in (rows[0], rows[-1])]  # type: ignore[arg-type, call-overload]
    return max(costs) / min(costs) if min(costs) > 0 else float("inf")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure every size and return the report."""
    layout = attention_layout(layers=args.layers, heads=args.heads, dim=args.dim)
    counts = sizes(args.smallest, args.largest)
    with Pair(layout) as pair:
        rows = measure(pair, counts, args.rounds)
    counted = [row for row in rows if int(row["tokens"]) >= min(args.counted, counts[-2])]  # type: ignore[call-overload]
    marks: list[Mark] = []
    fits: dict[str, tuple[float, float]] = {}
    for name in ("seconds", "device_peak_bytes"):
        fixed, slope = line([float(row["tokens"]) for row in rows], [float(row[name]) for row in rows])  # type: ignore[arg-type]
        fixed = max(fixed, 0.0)
        fits[name] = (fixed, slope)
        label = "time" if name == "seconds" else "memory"
        between = f"{counted[0]['tokens']:,} and {counted[-1]['tokens']:,} tokens"
        marks.append(
            Mark(f"{label} a token, {between}, larger to smaller", evenness(counted, name, fixed), MARK, "at most")
        )
    shape = f"{args.layers} layers x {args.heads} KV heads x {args.dim}, bfloat16"
    return report(
        "growth",
        setting=f"sealed caches over loopback HTTP, two processes, {shape}, best of {args.rounds} interleaved rounds",
        rows=rows,
        marks=marks,
        fixed_and_a_token=fits,
        notes=[
            f"A transfer costs {fits['seconds'][0] * 1e3:.1f} ms and {fits['seconds'][1] * 1e6:.2f} us a token",
            f"Receiving takes {fits['device_peak_bytes'][0] / 2**20:.1f} MiB and {fits['device_peak_bytes'][1]:,.0f} "
            f"bytes a token, of which the cache is {cache_bytes(layout, counts[-1]) / counts[-1]:,.0f}",
        ],
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    made = parser(__doc__, "python benchmarks/growth.py --rounds 3 --largest 8192")
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--heads", type=int, default=4)
    made.add_argument("--dim", type=int, default=64)
    made.add_argument("--smallest", type=int, default=SMALLEST_TOKENS, help="fewest tokens (default 256)")
    made.add_argument("--largest", type=int, default=LARGEST_TOKENS, help="most tokens (default 32768)")
    made.add_argument("--counted", type=int, default=COUNTED_TOKENS, help="fewest tokens that the mark is for")
    made.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not (default 5)")
    args = made.parse_args(argv)
    if args.quick:
        args.layers, args.largest, args.counted, args.rounds = 2, 2048, 512, 2
    torch.set_num_threads(1)
    print_report(run(args), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
