"""Numbers in a document that say from which committed report they come, and the comparison with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

_QUOTE = re.compile(r"([\d,]+(?:\.\d+)?)(\s*%)?\s*<!-- ([\w.-]+\.json)#([\w.-]+) -->")


def disagreements(text: str, reports: Path) -> list[str]:
    """Return a sentence for every quoted number that its report does not say, rounded as the document rounds it."""
    found = []
    for number, percent, report, path in _QUOTE.findall(text):
        value = _value(reports / report, path)
        shown = float(number.replace(",", ""))
        places = len(number.partition(".")[2])
        expected = None if value is None else round(value * (100 if percent else 1), places)
        if expected != shown:
            found.append(f"{report}#{path} says {expected}, the document {shown}")
    return found


def _value(report: Path, path: str) -> float | None:
    try:
        node = json.loads(report.read_text(encoding="utf-8"))
        for key in path.split("."):
            node = node[int(key)] if isinstance(node, list) else node[key]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return float(node) if isinstance(node, int | float) else None
