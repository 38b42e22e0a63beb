"""Quotes in documents: `<!-- quote NAME -->shown<!-- end quote -->` -> what disagrees, and the text rewritten."""

from __future__ import annotations

import re
from pathlib import Path

from tools.quoting.quotes import shown
from tools.quoting.reports import QuoteError

__all__ = ["DOCUMENTS", "disagreements", "rewritten"]

DOCUMENTS = ("threat_model.md", "README.md", "docs/evaluation.md", "docs/noise.md")
_QUOTE = re.compile(r"(<!-- quote (?P<name>[^>]+?) -->)(?P<text>.*?)(<!-- end quote -->)", re.S)
_OPENINGS = re.compile(r"<!-- quote [^>]+? -->|<!-- end quote -->")


def rewritten(text: str, reports: Path) -> str:
    """Return a document in which every quote shows what its report says; raises QuoteError."""
    require_pairs(text)
    return _QUOTE.sub(lambda found: f"{found[1]}{shown(found['name'], reports)}{found[4]}", text)


def disagreements(text: str, reports: Path) -> list[str]:
    """Return a sentence for every quote that does not show what its report says, or quotes nothing."""
    try:
        require_pairs(text)
    except QuoteError as error:
        return [str(error)]
    return [sentence for found in _QUOTE.finditer(text) for sentence in _disagreement(found, reports)]


def require_pairs(text: str) -> None:
    """Raise QuoteError where a quote has no end, or an end no quote: what stands between would go unchecked."""
    marks = _OPENINGS.findall(text)
    is_paired = all(mark.startswith("<!-- end") == bool(place % 2) for place, mark in enumerate(marks))
    if len(marks) % 2 or not is_paired:
        raise QuoteError('a quote is "<!-- quote NAME -->" and "<!-- end quote -->" around what it shows; one is alone')


def _disagreement(found: re.Match[str], reports: Path) -> list[str]:
    try:
        expected = shown(found["name"], reports)
    except QuoteError as error:
        return [str(error)]
    if found["text"] == expected:
        return []
    return [f"{found['name']} shows {found['text'].strip()[:200]!r}, the report says {expected.strip()[:200]!r}"]
