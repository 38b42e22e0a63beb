"""Prompts in the product's form: [public document, private notes, question] and the expected answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from splitinfer.handoff import Label, Role, Segment
from tools.corpus.drawer import Drawer, Split
from tools.corpus.marked import Passage
from tools.corpus.notes import Link, Note, make_note
from tools.corpus.questions import Question, Source, ask, ask_alone, ask_through
from tools.corpus.tables import Table

__all__ = ["Context", "CountTokens", "Kind", "held_out_context", "held_out_prompts", "make_context"]

# notes: notes alone; table: a document alone; both: questions that need document and note; mixed: of every sort.
Kind = Literal["notes", "table", "both", "mixed"]
CountTokens = Callable[[str], int]

_LINK_SHARE = 0.75
_ALONE_SHARE = 0.35
_DOCUMENT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Context:
    """A document, notes, or both, with questions about them; the document is the first of the passages."""

    passages: tuple[Passage, ...]
    has_document: bool
    questions: tuple[Question, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The passages as segments of a prompt, the question left out."""
        roles = [Role.DOCUMENT if self.has_document and not index else Role.NOTE for index in range(len(self.passages))]
        return tuple(
            Segment(role, passage.text, *((Label.PUBLIC, "table") if role is Role.DOCUMENT else ()))
            for role, passage in zip(roles, self.passages, strict=True)
        )


def make_context(
    rng: random.Random,
    *,
    tokens: int,
    kind: Kind,
    questions: int,
    count_tokens: CountTokens,
    split: Split,
    is_alike: bool = False,
) -> Context:
    """Draw a context of about `tokens` tokens and up to `questions` different questions about it.

    With `is_alike` its notes and tables are of the kinds of `alike`.
    """
    drawer = Drawer(rng, split=split)
    table, used = None, 1
    if kind != "notes":
        table = _table(
            drawer, tokens if kind == "table" else int(tokens * _DOCUMENT_SHARE), count_tokens, is_alike=is_alike
        )
        used += 2 + count_tokens(table.passage.text)
    notes = [] if kind == "table" else _notes(drawer, tokens, used, count_tokens, table, is_alike=is_alike)
    passages = ([table.passage] if table is not None else []) + [note.passage for note in notes]
    asked = _questions(drawer, table, notes, questions, kind)
    return Context(tuple(passages), table is not None, tuple(asked))


def _table(drawer: Drawer, limit: int, count_tokens: CountTokens, *, is_alike: bool) -> Table:
    # Some kinds have fewer keys than a long document has rows; another table is drawn then.
    while True:
        table = Table(drawer, is_alike=is_alike)
        if _fill(table, limit, count_tokens):
            return table


def _fill(table: Table, limit: int, count_tokens: CountTokens) -> bool:
    used = 2 + count_tokens(table.passage.text)
    while (row := table.add_row()) is not None:
        row_tokens = count_tokens(row)
        used += row_tokens
        if used + row_tokens * 0.6 > limit:
            return True
    return False


def _notes(
    drawer: Drawer, tokens: int, used: int, count_tokens: CountTokens, table: Table | None, *, is_alike: bool
) -> list[Note]:
    notes: dict[str, Note] = {}
    taken = set(table.keys) if table is not None else set()
    while True:
        room = tokens - used
        link = None
        if table is not None and (not notes or drawer.rng.random() < _LINK_SHARE):
            link = Link(table.kind.link_nouns, drawer.pick(table.keys))
        field_count = None if room > 100 else max(1, min(4, int(room / 16)))
        note = make_note(drawer, field_count=field_count, link=link, is_alike=is_alike)
        if note.name in notes or note.name in taken:
            continue
        notes[note.name] = note
        note_tokens = 2 + count_tokens(note.passage.text)
        used += note_tokens
        if used + note_tokens * 0.6 > tokens:
            return list(notes.values())


def _questions(drawer: Drawer, table: Table | None, notes: list[Note], count: int, kind: Kind) -> list[Question]:
    found: dict[str, Question] = {}
    for _ in range(count * 4):
        question = _question(drawer, table, notes, kind)
        found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def _question(drawer: Drawer, table: Table | None, notes: list[Note], kind: Kind) -> Question:
    share = 1.0 if kind == "both" else drawer.rng.random()
    linked = [index for index, note in enumerate(notes) if note.link is not None]
    first_note = 0 if table is None else 1
    if table is not None and linked and share > 0.5:
        index = drawer.pick(linked)
        via = notes[index].link
        assert via is not None  # noqa: S101
        cells = [fact for fact in table.passage.facts if fact.owner == via.value]
        return ask_through(drawer, Source(0, drawer.pick(cells)), Source(first_note + index, via))
    if table is not None and (not notes or share < 0.25):
        return ask(drawer, Source(0, drawer.pick(table.passage.facts)), in_table=True)
    index = drawer.rng.randrange(len(notes))
    fact = drawer.pick(notes[index].passage.facts)
    source = Source(first_note + index, fact)
    in_table = {noun for other in (table.passage.facts if table is not None else ()) for noun in other.nouns}
    if len(notes) == 1 and not in_table & set(fact.nouns) and drawer.rng.random() < _ALONE_SHARE:
        return ask_alone(drawer, source)
    return ask(drawer, source, in_table=False)


def held_out_context(seed: int, *, tokens: int, kind: Kind, questions: int, count_tokens: CountTokens) -> Context:
    """Draw one context of entities that were never trained on; the same seed gives the same context."""
    rng = random.Random(f"{seed}/{tokens}/{kind}")
    return make_context(rng, tokens=tokens, kind=kind, questions=questions, count_tokens=count_tokens, split="test")


def held_out_prompts(count: int, seed: int) -> list[tuple[list[Segment], str]]:
    """Return prompts of about 100 to 200 tokens, public table, private notes and a question, with their answers."""
    prompts = []
    for index in range(count):
        context = held_out_context(
            seed * 1_000_003 + index, tokens=150, kind="mixed", questions=1, count_tokens=lambda text: len(text) // 3
        )
        question = context.questions[0]
        segments = [*context.segments, Segment(Role.QUESTION, question.text)]
        prompts.append((segments, question.answer))
    return prompts
