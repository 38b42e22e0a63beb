"""Writes a report: Report -> report.json, report.md, one self-contained report.html, and PNG plots. Evaluation.

Plots need matplotlib, of the extra `evaluate`; without it the rest is written and the page says so.
"""

from __future__ import annotations

import base64
import html
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from splitinfer.evaluation.rendering import markdown, text_lines
from splitinfer.evaluation.report import PolicyFigures, Report

__all__ = ["write_report"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "pre{overflow-x:auto;background:#f5f5f5;padding:1rem}img{max-width:100%}"
)
_LARGEST_MARK, _SMALLEST_MARK = 900.0, 60.0


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write all files into a directory, made where it is missing, and return their paths. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    plots = _plots(report, directory) if _has_matplotlib() else []
    texts = {
        "report.json": json.dumps(report.to_json(), indent=2) + "\n",
        "report.md": markdown(report),
        "report.html": _page(report, plots),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [*plots, *(directory / name for name in texts)]


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _plots(report: Report, directory: Path) -> list[Path]:
    """Draw what there is to draw: the frontier, recovery by position, recovery by layer."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    drawings = {"frontier": _frontier, "by_position": _by_position, "by_layer": _by_layer}
    made = []
    for name, draw in drawings.items():
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
        figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
        if draw(report, axes):
            figure.savefig(directory / f"{name}.png", dpi=120)
            made.append(directory / f"{name}.png")
        pyplot.close(figure)
    return made


def _frontier(report: Report, axes: Any) -> bool:
    """Draw recovery against utility, one mark a policy, its size by the bytes that it moves."""
    most = max((_moved(policy) for policy in report.policies), default=1) or 1
    for policy in report.policies:
        size = _SMALLEST_MARK + (_LARGEST_MARK - _SMALLEST_MARK) * _moved(policy) / most
        at = policy.utility.answers.share, policy.worst("token_recovery")
        axes.scatter(*at, s=size, alpha=0.5)
        axes.annotate(policy.name, at, xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel("share of right answers")
    axes.set_ylabel("private tokens recovered, worst seat and attack")
    axes.set_xlim(-0.05, 1.1)
    axes.set_ylim(-0.05, 1.1)
    axes.set_title("size of a mark: bytes up and down")
    return True


def _by_position(report: Report, axes: Any) -> bool:
    """Draw, for each policy, the recovery of its worst attack by tenth of the private text."""
    for policy in report.policies:
        rows = [row for row in policy.attacks if row.tenths]
        if rows:
            worst = max(rows, key=lambda row: row.tokens.share)
            shares = [100 * rate.share for rate in worst.tenths]
            axes.plot(range(1, len(shares) + 1), shares, marker="o", label=f"{policy.name}, {worst.attack}")
    return _labelled(axes, "tenth of the private text")


def _by_layer(report: Report, axes: Any) -> bool:
    """Draw, for each policy whose recipient holds a cache, what each layer gives away alone."""
    for policy in report.policies:
        if policy.layers:
            shares = [100 * rate.share for rate in policy.layers.values()]
            axes.plot(list(policy.layers), shares, marker="o", label=policy.name)
    return _labelled(axes, "layer that was attacked alone")


def _labelled(axes: Any, what: str) -> bool:
    if not axes.lines:
        return False
    axes.set_xlabel(what)
    axes.set_ylabel("private tokens recovered, %")
    axes.set_ylim(-5, 105)
    axes.legend()
    return True


def _moved(policy: PolicyFigures) -> int:
    return policy.cost.bytes_up + policy.cost.bytes_down


def _page(report: Report, plots: list[Path]) -> str:
    images = "".join(
        f'<img alt="{html.escape(plot.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(plot.read_bytes()).decode("ascii")}">'
        for plot in plots
    )
    missing = "" if plots else "<p>No plots: matplotlib is not installed.</p>"
    text = html.escape("\n".join(text_lines(report)))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>What each policy gives away</title>'
        f"<style>{_STYLE}</style><h1>What each policy gives away</h1>{images}{missing}<pre>{text}</pre></html>\n"
    )
