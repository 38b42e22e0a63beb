"""What every benchmark says the same way: marks, the machine, library versions, best of several rounds."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "ROOT",
    "Mark",
    "best_of",
    "machine",
    "parser",
    "print_report",
    "progress",
    "report",
    "reset_peak",
    "resident",
]

ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "transformers", "cryptography", "blake3", "zstandard", "uvicorn", "numpy")


@dataclass(frozen=True, slots=True)
class Mark:
    """A figure that was measured and the bar that it is compared with."""

    name: str
    value: float
    bar: float
    rule: Literal["at least", "at most"]

    @property
    def is_reached(self) -> bool:
        """Tell whether the figure is on the right side of the bar."""
        return self.value >= self.bar if self.rule == "at least" else self.value <= self.bar

    @property
    def verdict(self) -> str:
        """Return "reached", or by how much it was missed."""
        return "reached" if self.is_reached else f"missed by {abs(self.value - self.bar):.3g}"

    def facts(self) -> dict[str, object]:
        """Return plain values."""
        return {**asdict(self), "reached": self.is_reached, "verdict": self.verdict}


def machine() -> dict[str, object]:
    """Return the processor, its cores, the memory, the versions of what computes, and the day."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": {"python": platform.python_version(), **_versions()},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown processor")


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def parser(document: str | None, example: str) -> argparse.ArgumentParser:
    """Return a parser with --json and --quick, the module's docstring as description and an example below it."""
    made = argparse.ArgumentParser(
        description=document, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: shows that it runs, no figures")
    return made


def report(
    name: str, *, setting: str, rows: Sequence[Mapping[str, object]], marks: Sequence[Mark], **facts: object
) -> dict[str, object]:
    """Return what a benchmark prints with --json."""
    return {
        "benchmark": name,
        "setting": setting,
        "rows": [dict(row) for row in rows],
        "marks": [mark.facts() for mark in marks],
        "machine": machine(),
        **facts,
    }


def print_report(found: Mapping[str, object], *, as_json: bool) -> None:
    """Print the report as JSON, or as a table with its marks."""
    if as_json:
        print(json.dumps(found))
        return
    here = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    print(found["setting"])
    print(f"{here['processor']}, {here['cores']} cores, {here['memory_gib']} GiB; {versions}; {here['date']}\n")
    _print_rows(found["rows"])
    for mark in found["marks"]:
        print(f"{mark['name']}: {mark['value']:.3g}, mark {mark['rule']} {mark['bar']:g}: {mark['verdict']}")
    for line in found.get("notes", ()):
        print(line)


def _print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    if not rows:
        return
    names = list(rows[0])
    cells = [[shown(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    for line in ([name.replace("_", " ") for name in names], *cells):
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]))
    print()


def shown(value: object) -> str:
    """Return a cell's text: figures with four digits, counts with commas."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def progress(text: str) -> None:
    """Say on stderr what goes on."""
    print(text, file=sys.stderr, flush=True)


def best_of(cases: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Run the cases in turn and return the seconds of every round that counts, by case.

    A case returns its own seconds, so that what it prepares is not in them. Which case goes first alternates.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warm_up + rounds):
        for name in list(cases) if number % 2 else reversed(list(cases)):
            spent = cases[name]()
            if number >= warm_up:
                seconds[name].append(spent)
    return seconds


def resident() -> tuple[int, int]:
    """Return this process's resident bytes now and at most so far (Linux).

    Not `ru_maxrss`: that of a new process begins with what its parent held when it was started.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def reset_peak() -> None:
    """Let the most that this process held begin anew from what it holds now (Linux, `clear_refs`).

    Memory that was freed but kept by the C library goes back first: it would be taken again unseen.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
