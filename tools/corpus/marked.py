"""Text with marked spans: where in a passage the owner, the noun and the value of each fact stand."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

__all__ = ["Fact", "Passage", "Span", "capitalised", "fill"]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text."""

    start: int
    end: int

    def moved(self, by: int) -> Span:
        """Return the same characters in a text that `by` characters now precede."""
        return Span(self.start + by, self.end + by)


@dataclass(frozen=True, slots=True)
class Fact:
    """One value in a passage, whose it is, and the nouns that a question may call it by.

    `owner_spans` are the places before the value that name its owner; `noun_span` is None where no noun stands beside
    the value.
    """

    owner: str
    nouns: tuple[str, ...]
    value: str
    owner_spans: tuple[Span, ...]
    noun_span: Span | None
    value_span: Span


@dataclass(frozen=True, slots=True)
class Passage:
    """A document or a note and the facts in it; the text has no newline at its end."""

    text: str
    facts: tuple[Fact, ...]


def capitalised(text: str) -> str:
    """Raise the first letter and leave the rest as it is."""
    return text[0].upper() + text[1:]


def fill(template: str, **values: str) -> tuple[str, dict[str, Span]]:
    """Put values into the template's fields; return the text and where each value stands (its last place)."""
    text, spans = "", {}
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is not None:
            spans[field] = Span(len(text), len(text) + len(values[field]))
            text += values[field]
    return text, spans
