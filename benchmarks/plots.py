"""Draw what benchmarks measured: a codec's size against its loss, and a transfer's bytes over time, as SVG.

Input is the JSON that a benchmark printed. The same JSON gives the same bytes. Colours are told apart by the
colour-blind (Okabe and Ito, 2008), and every point is named where it stands.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "svg.hashsalt": "splitinfer",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def size_against_loss(report: Mapping[str, Any]) -> Figure:
    """Draw divergence over size of every codec; exact ones, which have none, stand on the line at the bottom."""
    rows = report["rows"]
    lossy = [row["kl_nats"] for row in rows if row["kl_nats"] > 0]
    floor = min(lossy, default=1e-6) / 10
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    axes.set_yscale("log")
    for index, row in enumerate(rows):
        x, y = row["times_smaller_padded"], max(row["kl_nats"], floor)
        axes.plot([x], [y], MARKERS[index % len(MARKERS)], color=COLOURS[index % len(COLOURS)], markersize=9)
        text = f"{row['codec']}: {row['times_smaller_padded']:.2f}x, "
        text += f"{100 * row['top1_agreement']:.1f} % same token" if row["kl_nats"] > 0 else "exact"
        is_left = x > 2
        # Exact codecs stand beside one another on the line: every other name below it.
        is_below = row["kl_nats"] == 0 and index % 2 == 1
        axes.annotate(
            text,
            (x, y),
            textcoords="offset points",
            xytext=(-9 if is_left else 9, -16 if is_below else 7),
            ha="right" if is_left else "left",
            color=COLOURS[index % len(COLOURS)],
        )
    axes.axhline(floor, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(floor / 4, max(lossy, default=1e-3) * 4)
    axes.set_xlim(0.8, max(row["times_smaller_padded"] for row in rows) + 0.4)
    axes.set_xlabel("times smaller than bfloat16, as it travels")
    axes.set_ylabel("divergence of the next token, nats (dotted: none)")
    axes.set_title(f"Codecs of the embedded model's caches, prompts of {report['prompt_tokens']} tokens", loc="left")
    return figure


def timeline(report: Mapping[str, Any]) -> Figure:
    """Draw the bytes on the wire over time, computed first and streamed, one panel a run of the report's `timelines`.

    A run is `{"direction", "share", "sequential", "streamed"}`, each of the last two `{"prefill_over", "first_token",
    "wire": [[seconds, bytes]...]}`. The prefill is shaded; a broken line stands at the first token.
    """
    runs: Sequence[Mapping[str, Any]] = report["timelines"]
    figure, panels = plt.subplots(len(runs), 1, figsize=(7.2, 2.4 * len(runs)), layout="constrained", squeeze=False)
    for axes, run in zip(panels[:, 0], runs, strict=True):
        axes.axvspan(0, run["sequential"]["prefill_over"], color=GREY, alpha=0.15, linewidth=0)
        for kind, words, colour in (("sequential", "computed, then sent", VERMILION), ("streamed", "streamed", BLUE)):
            line = run[kind]
            seconds, counts = zip(*line["wire"], strict=True)
            axes.plot(seconds, [count / 1e6 for count in counts], color=colour, linewidth=1.6)
            axes.axvline(line["first_token"], color=colour, linewidth=0.8, linestyle="--")
            axes.annotate(
                f"{words}: {line['first_token']:.1f} s",
                (seconds[len(seconds) // 2], counts[len(counts) // 2] / 1e6),
                textcoords="offset points",
                xytext=(-8, 6),
                ha="right",
                color=colour,
            )
        axes.set_xlabel("seconds since the request (shaded: prefill and padding time)")
        axes.set_ylabel("MB on the wire")
        axes.set_title(f"{run['direction']}, wire {run['share']:g} times the prefill", loc="left")
        axes.set_xlim(left=0)
    return figure


def bits_against_nll(report: Mapping[str, Any]) -> Figure:
    """Draw the rise of the answer's nll over size: a line for every codec that has levels, a point for the others."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in report["parts"]["quality"]:
        families.setdefault(_family(row["codec"]), []).append(row)
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for index, (name, rows) in enumerate(families.items()):
        points = sorted((row["times_smaller"], max(row["nll_rise"], NLL_FLOOR)) for row in rows)
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*zip(*points, strict=True), f"-{MARKERS[index % len(MARKERS)]}", color=colour, markersize=6)
        axes.annotate(name, points[-1], textcoords="offset points", xytext=(6, 5), color=colour, annotation_clip=False)
    axes.axhline(0.01, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("times smaller than bfloat16, all bytes of the stream")
    axes.set_ylabel("rise of the answer's nll, nats a token (dotted: .01)")
    axes.set_title(f"Caches of the embedded model, prompts of {report['prompt_tokens']} tokens", loc="left")
    return figure


NLL_FLOOR = 1e-4


def _family(codec: str) -> str:
    """Return a codec's name without its level."""
    if codec.startswith("ftc1-"):
        return "ftc1"
    name, _, last = codec.rpartition(" ")
    return name if name and name != "hadamard" and last.replace(".", "").isdigit() else codec


DRAWINGS = {"loss": size_against_loss, "streaming": timeline, "transform_codec": bits_against_nll}


def save(figure: Figure, path: Path) -> None:
    """Write the figure without a date, so that the same figure gives the same bytes."""
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Draw one JSON file."""
    made = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/loss.py --json > loss.json\n"
        "  python benchmarks/plots.py loss loss.json docs/size-against-loss.svg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("drawing", choices=list(DRAWINGS))
    made.add_argument("report", type=Path, help="the JSON that the benchmark printed")
    made.add_argument("svg", type=Path, help="the file to write")
    args = made.parse_args(argv)
    with mpl.rc_context(STYLE):
        save(DRAWINGS[args.drawing](json.loads(args.report.read_text(encoding="utf-8"))), args.svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
