"""Run every benchmark in a process of its own, one after another, and write docs/benchmarks.md from what they print.

Takes at most a quarter of an hour on two cores. A benchmark that fails or is not there is named in the document and the
others go on; exits 1 where one failed. A mark that is missed is no failure: it is written down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, progress, shown

# Each with its own arguments, and the drawing of its JSON.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "sealing": (),
    "prefill": (),
    "codecs": (),
    "transfer": (),
    "growth": (),
    "second_question": (),
    "loss": (),
    "streaming": (),
}
DRAWINGS = {"loss": "size-against-loss.svg", "streaming": "streaming-timeline.svg"}
LIMIT_SECONDS = 15 * 60
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def run(name: str, *, is_quick: bool, limit_seconds: float) -> dict[str, Any]:
    """Run one benchmark; returns its report, or `{"failure": why}`."""
    script = ROOT / "benchmarks" / f"{name}.py"
    if not script.is_file():
        return {"failure": f"skipped: benchmarks/{name}.py is not there"}
    command = [sys.executable, str(script), "--json", *BENCHMARKS[name], *(["--quick"] if is_quick else [])]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit_seconds, check=False, text=True, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"failure": f"failed: not done in the {limit_seconds:.0f} seconds that were left"}
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"failure": f"failed: exit code {done.returncode}, and no JSON"}
    return found


def run_all(names: Sequence[str], *, is_quick: bool) -> dict[str, dict[str, Any]]:
    """Run the benchmarks one after another; progress goes to stderr."""
    began, found = time.monotonic(), {}
    for index, name in enumerate(names, start=1):
        left = LIMIT_SECONDS - (time.monotonic() - began)
        progress(f"[{index}/{len(names)}] {name}, {left:.0f} seconds left")
        found[name] = run(name, is_quick=is_quick, limit_seconds=max(left, 1.0))
        for mark in found[name].get("marks", ()):
            progress(f"    {_sentence(mark)}")
        if "failure" in found[name]:
            progress(f"    {found[name]['failure']}")
    progress(f"{time.monotonic() - began:.0f} seconds")
    return found


def document(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the reports as Markdown."""
    lines = ["# Benchmarks", "", "Written by `make bench`; every figure comes from one run on one machine.", ""]
    reports = [report for report in found.values() if "machine" in report]
    if reports:
        lines += [_machine(reports[0]["machine"]), ""]
    for name, report in found.items():
        lines += [f"## {name.replace('_', ' ').capitalize()}", "", f"`python benchmarks/{name}.py`", ""]
        lines += [report["failure"], ""] if "failure" in report else _section(name, report)
    return "\n".join(lines).rstrip() + "\n"


def _machine(here: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return (
        f"{here['processor']} ({here['architecture']}), {here['cores']} cores, {here['memory_gib']} GiB of memory; "
        f"{versions}; {here['date']}."
    )


def _section(name: str, report: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if "setting" in report:
        lines += [f"{report['setting'][:1].upper()}{report['setting'][1:]}.", ""]
    if report.get("rows"):
        lines += [*_table(report["rows"]), ""]
    if report.get("marks"):
        lines += ["| mark | measured | bar | |", "|---|---|---|---|"]
        lines += [
            f"| {mark['name']} | {shown(mark['value'])} | {mark['rule']} {mark['bar']:g} | {mark['verdict']} |"
            for mark in report["marks"]
        ]
        lines.append("")
    for note in report.get("notes", ()):
        lines += [f"{note}.", ""]
    if name in DRAWINGS and (DOCUMENT.parent / DRAWINGS[name]).is_file():
        lines += [f"![{name}]({DRAWINGS[name]})", ""]
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return []
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", f"|{'---|' * len(names)}"]
    return lines + [f"| {' | '.join(shown(row[name]) if name in row else '' for name in names)} |" for row in rows]


def _sentence(mark: Mapping[str, Any]) -> str:
    return f"{mark['name']}: {shown(mark['value'])}, mark {mark['rule']} {mark['bar']:g}: {mark['verdict']}"


def draw(found: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Draw what can be drawn, each from its JSON."""
    for name, file in DRAWINGS.items():
        if name not in found or "failure" in found[name]:
            continue
        kept = folder / f"{name}.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "plots.py"), name, str(kept), str(DOCUMENT.parent / file)]
        if subprocess.run(command, check=False, cwd=ROOT).returncode:
            progress(f"    {file} was not drawn")


def keep(found: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write each report as JSON, so that a document or drawing can be made again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, report in found.items():
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run, draw, write the document; returns 1 where a benchmark failed."""
    made = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/all.py --only transfer --only growth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs; writes no document")
    made.add_argument(
        "--only", action="append", choices=list(BENCHMARKS), help="only this one; may be repeated; writes no document"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object: the report of every benchmark")
    made.add_argument(
        "--keep", type=Path, default=ROOT / "build" / "benchmarks", metavar="DIR", help="folder of the reports"
    )
    args = made.parse_args(argv)
    found = run_all(args.only or list(BENCHMARKS), is_quick=args.quick)
    keep(found, args.keep)
    if not args.quick and not args.only:
        draw(found, args.keep)
        DOCUMENT.write_text(document(found), encoding="utf-8")
        progress(f"wrote {DOCUMENT.relative_to(ROOT)}")
    if args.json:
        print(json.dumps(found))
    elif args.quick or args.only:
        print(document(found))
    return 1 if any(report.get("failure", "").startswith("failed") for report in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
