"""Commit what was measured: reports under `build/` -> `docs/reports/NAME.json`, and every figure that documents quote.

    python tools/quote_reports.py                                      every report that lies in build/
    python tools/quote_reports.py --from build/evaluation --as evaluation
    python tools/quote_reports.py --check                              write nothing; exit code 1 where one disagrees

`make evaluate`, `make evaluate-noise`, `make bench-attacks` and `make bench-noise` write the reports.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.quoting.documents import DOCUMENTS, disagreements, rewritten
from tools.quoting.reports import REPORTS, QuoteError, reduced

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Copy reports and rewrite the documents, or check them; returns 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, metavar="PATH", help="a report, or the folder it lies in")
    parser.add_argument("--as", dest="name", choices=list(REPORTS), help="which report it is")
    parser.add_argument("--check", action="store_true", help="compare alone")
    args = parser.parse_args(argv)
    if (args.source is None) != (args.name is None):
        parser.error("--from and --as go together")
    reports = root / "docs" / "reports"
    if args.check:
        return _check(root, reports)
    try:
        _write(root, reports, _sources(root, args.source, args.name))
    except QuoteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _sources(root: Path, source: Path | None, name: str | None) -> Mapping[str, Path]:
    if source is not None and name is not None:
        return {name: source / "report.json" if source.is_dir() else source}
    found = {name: root / kind.written_to for name, kind in REPORTS.items()}
    return {name: path for name, path in found.items() if path.exists()}


def _write(root: Path, reports: Path, sources: Mapping[str, Path]) -> None:
    """Write all or nothing: a quote that its report cannot show leaves every file as it was."""
    before = {reports / f"{name}.json": _text(reports / f"{name}.json") for name in sources}
    made = {reports / f"{name}.json": json.dumps(reduced(name, path), indent=1) for name, path in sources.items()}
    try:
        for path, text in made.items():
            path.write_text(text + "\n", encoding="utf-8")
        documents = {root / name: rewritten((root / name).read_text(encoding="utf-8"), reports) for name in DOCUMENTS}
    except QuoteError:
        for path, old in before.items():
            path.unlink() if old is None else path.write_text(old, encoding="utf-8")
        raise
    for path, text in documents.items():
        path.write_text(text, encoding="utf-8")
    for name, path in sources.items():
        print(f"docs/reports/{name}.json from {path}")
    print(f"{', '.join(DOCUMENTS)} show what docs/reports says")


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _check(root: Path, reports: Path) -> int:
    found = [
        f"{name}: {sentence}"
        for name in DOCUMENTS
        for sentence in disagreements((root / name).read_text(encoding="utf-8"), reports)
    ]
    print("\n".join(found) or "every quoted figure is that of its report")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
