"""Draws the timelines of `streaming.py` as SVG, without a plotting library: timelines -> text of one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["draw"]

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 380, 70, 46, 20, 56
PREFILL, THEN_SENT, STREAMED = "#c9cdd2", "#b0563b", "#1f6f8b"
_FONT = 'font-family="sans-serif" font-size="12"'


def draw(timelines: Mapping[str, Mapping[str, Any]], *, tokens: int) -> str:
    """Return an SVG of the bytes on the wire over time, computed first and streamed, above the prefill's time."""
    sequential, streamed = timelines["sequential"], timelines["streamed"]
    seconds = 1.04 * max(sequential["first_token"], streamed["first_token"])
    total = max(line["wire"][-1][1] for line in (sequential, streamed))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {_FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, f"A cache of {tokens:,} tokens on its way", weight="bold"),
        *_prefill(streamed["prefill_over"], seconds),
        *_grid(seconds, total),
        *_line(sequential, THEN_SENT, "computed, then sent", seconds, total),
        *_line(streamed, STREAMED, "streamed", seconds, total),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(at: float, seconds: float) -> float:
    return LEFT + at / seconds * (WIDTH - LEFT - RIGHT)


def _y(count: float, total: float) -> float:
    return HEIGHT - BOTTOM - count / total * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, words: str, *, fill: str = "#222", anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{words}</text>"


def _prefill(over: float, seconds: float) -> Iterator[str]:
    place = f'x="{LEFT}" y="{TOP}" width="{_x(over, seconds) - LEFT:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
    yield f'<rect {place} fill="{PREFILL}" opacity="0.5"/>'
    yield _text(LEFT + 6, TOP + 16, "prefill and padding time")


def _grid(seconds: float, total: float) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#222"/>'
    for step in range(5):
        at = seconds * step / 4
        yield _text(_x(at, seconds), bottom + 18, f"{at:.1f}", anchor="middle")
        yield _text(LEFT - 8, _y(total * step / 4, total) + 4, f"{total * step / 4 / 1e6:.1f}", anchor="end")
    yield _text((LEFT + right) / 2, bottom + 40, "seconds from the request", anchor="middle")
    yield _text(8, TOP - 8, "MB on the wire")


def _line(line: Mapping[str, Any], colour: str, name: str, seconds: float, total: float) -> Iterator[str]:
    points = " ".join(f"{_x(at, seconds):.1f},{_y(count, total):.1f}" for at, count in _thinned(line["wire"]))
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    x = _x(line["first_token"], seconds)
    yield f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{colour}" stroke-dasharray="4 4"/>'
    label = f"{name}: first token at {line['first_token']:.1f} s"
    yield _text(x - 6, TOP + (34 if name == "streamed" else 52), label, fill=colour, anchor="end")


def _thinned(points: Sequence[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    stride = max(1, len(points) // 400)
    yield from points[:-1:stride]
    yield points[-1]
