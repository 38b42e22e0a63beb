"""Questions: what a fact is, asked by its owner, alone, or through the note that names its row."""

from __future__ import annotations

from dataclasses import dataclass

from tools.corpus.drawer import Drawer
from tools.corpus.marked import Fact, Span, capitalised, fill

__all__ = ["TEMPLATES", "Question", "Source", "ask", "ask_alone", "ask_through"]

_BY_OWNER = (
    "What is the {noun} of {owner}?",
    "What is the {noun} of {owner}?",
    "{noun_capitalised} of {owner}?",
    "Give me the {noun} of {owner}.",
    "Tell me the {noun} for {owner}.",
    "{owner}: {noun}?",
    "What {noun} does {owner} have?",
    "What is {owner}'s {noun}?",
)
_BY_THE_KEY = (
    "What is the {noun} of the {owner}?",
    "Give me the {noun} for {owner}.",
    "What is the {noun} for the {owner}?",
)
_ALONE = ("What is the {noun}?", "Give me the {noun}.", "{noun_capitalised}?")
_THROUGH = (
    "What is the {noun} of the {link} of {owner}?",
    "What is the {noun} of the {link} of {owner}?",
    "Give me the {noun} of the {link} of {owner}.",
    "Tell me the {noun} for the {link} of {owner}.",
    "What is the {noun} of {owner}'s {link}?",
    "{owner}: {noun} of the {link}?",
)

TEMPLATES = (*_BY_OWNER, *_BY_THE_KEY, *_ALONE, *_THROUGH)


@dataclass(frozen=True, slots=True)
class Source:
    """A fact, and which passage of the context it stands in."""

    passage: int
    fact: Fact


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the span of the context that answers it.

    The spans say where the question names the owner, the noun and the link; `via` is the fact of a note that names
    the row in which `source` stands.
    """

    text: str
    answer: str
    source: Source
    noun_span: Span
    owner_span: Span | None = None
    link_span: Span | None = None
    via: Source | None = None


def ask(drawer: Drawer, source: Source, *, in_table: bool) -> Question:
    """Ask for a fact by its owner's name."""
    forms = _BY_OWNER + _BY_THE_KEY if in_table else _BY_OWNER
    return _ask(drawer, forms, source, owner=source.fact.owner)


def ask_alone(drawer: Drawer, source: Source) -> Question:
    """Ask for a fact without saying whose it is."""
    return _ask(drawer, _ALONE, source)


def ask_through(drawer: Drawer, source: Source, via: Source) -> Question:
    """Ask for a cell of the row that a note names, by the note's owner."""
    return _ask(drawer, _THROUGH, source, owner=via.fact.owner, link=drawer.pick(via.fact.nouns), via=via)


def _ask(
    drawer: Drawer,
    forms: tuple[str, ...],
    source: Source,
    *,
    owner: str = "",
    link: str = "",
    via: Source | None = None,
) -> Question:
    noun = drawer.pick(source.fact.nouns)
    form = drawer.pick(forms)
    text, spans = fill(form, noun=noun, noun_capitalised=capitalised(noun), owner=owner, link=link)
    noun_span = spans.get("noun") or spans["noun_capitalised"]
    return Question(capitalised(text), source.fact.value, source, noun_span, spans.get("owner"), spans.get("link"), via)
