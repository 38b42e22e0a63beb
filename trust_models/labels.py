"""Which label a segment gets: rules, source and the caller's label -> public or private; device side, no IO.

Promotion reads names narrowly and demotion reads them broadly, so that a different spelling of a path can only
make text private.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

__all__ = ["LabelName", "LabelRule", "decide_label", "normal_name"]

LabelName = Literal["public", "private"]


@dataclass(frozen=True, slots=True)
class LabelRule:
    """One rule: exactly one of `source` (a name) and `pattern` (fnmatch) is set."""

    source: str | None
    pattern: str | None
    label: LabelName


def decide_label(rules: Iterable[LabelRule], source: str, caller_label: str | None) -> LabelName:
    """Return the label of a segment; see `Policy.label_of` for the table."""
    kept = tuple(rules)
    if any(rule.label == "private" and _demotes(rule, source) for rule in kept):
        return "private"
    if caller_label == "public":
        return "public"
    if caller_label is None and any(_promotes(rule, source) for rule in kept):
        return "public"
    return "private"


def normal_name(name: str) -> str:
    """Return one spelling of a path-like name: slashes forward, no `.` parts, NFC, case folded."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return posixpath.normpath(text.replace("\\", "/")) if text else ""


def _promotes(rule: LabelRule, source: str) -> bool:
    return rule.label == "public" and rule.source is not None and rule.source == source


def _demotes(rule: LabelRule, source: str) -> bool:
    endings = _endings(normal_name(source))
    if rule.pattern is not None:
        pattern = normal_name(rule.pattern)
        return any(fnmatchcase(ending, pattern) for ending in endings)
    if rule.source is None:
        return True
    name = normal_name(rule.source)
    # The caller may write a shorter or a longer path to the same file than the rule does.
    return name in endings or normal_name(source) in _endings(name)


def _endings(name: str) -> tuple[str, ...]:
    cuts = [index + 1 for index, letter in enumerate(name) if letter == "/"]
    return (name, *(name[cut:] for cut in cuts))
