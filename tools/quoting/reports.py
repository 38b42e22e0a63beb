"""Committed reports: what a measurement wrote -> the part of it that documents quote, in `docs/reports`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["REPORTS", "Kind", "QuoteError", "Report", "load_committed", "reduced"]

Report = Mapping[str, Any]

_LEAST_PROMPTS = 8
_NOT_QUOTED = ("seen", "by_layer")


class QuoteError(Exception):
    """A report or a quote that is not one; the sentence says what was expected."""


@dataclass(frozen=True)
class Kind:
    """One committed report: where the measurement writes it, and the command that does, with its time on 2 cores."""

    format: str
    written_to: str
    command: str
    reduce: Callable[[Report], Report]


def _policy(policy: Report) -> Report:
    """Leave out what no document quotes; the times of attacks and what seats saw differ from run to run."""
    kept = {name: value for name, value in policy.items() if name not in _NOT_QUOTED}
    kept["leakage"] = [
        {name: value for name, value in row.items() if name not in ("seconds", "by_tenth")} for row in policy["leakage"]
    ]
    return kept


def _evaluation(report: Report) -> Report:
    if report["prompts"] < _LEAST_PROMPTS:
        raise QuoteError(
            f"an evaluation of {report['prompts']} prompts says that all runs, and not how much leaks; evaluate at "
            f"least {_LEAST_PROMPTS}, without --quick"
        )
    return {**report, "policies": [_policy(policy) for policy in report["policies"]]}


def _attacks(report: Report) -> Report:
    if report["is_quick"]:
        raise QuoteError("bars played with --quick say that all runs, and not what is reached; leave --quick out")
    return report


def _noise(report: Report) -> Report:
    return report


_EVALUATION = "splitinfer-evaluation/1"
REPORTS: Mapping[str, Kind] = {
    "evaluation": Kind(_EVALUATION, "build/evaluation/report.json", "make evaluate", _evaluation),
    "evaluation-noise": Kind(_EVALUATION, "build/evaluation-noise/report.json", "make evaluate-noise", _evaluation),
    "attacks": Kind("splitinfer-attacks/1", "build/attacks.json", "make bench-attacks", _attacks),
    "noise": Kind("splitinfer-noise/1", "build/noise.json", "make bench-noise", _noise),
}
"""The reports that documents may quote, by the name of their file in `docs/reports`."""


def reduced(name: str, path: Path) -> Report:
    """Return the part of a measured report that is committed under this name; raises QuoteError."""
    return _kind(name).reduce(_read(path, name))


def load_committed(name: str, folder: Path) -> Report | None:
    """Return a committed report, None where it was not measured yet; raises QuoteError for an unknown name."""
    _kind(name)
    path = folder / f"{name}.json"
    return _read(path, name) if path.exists() else None


def _kind(name: str) -> Kind:
    if name not in REPORTS:
        raise QuoteError(f"there is no report {name!r}; write one of {', '.join(REPORTS)}")
    return REPORTS[name]


def _read(path: Path, name: str) -> Report:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise QuoteError(f"{path} cannot be read as JSON; `{_kind(name).command}` writes it") from None
    expected = _kind(name).format
    if not isinstance(report, dict) or report.get("format") != expected:
        raise QuoteError(f"{path} is not of the format {expected}; `{_kind(name).command}` writes it")
    return report
