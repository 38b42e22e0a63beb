"""Prompts in the product's form: [public document, private notes, question] and the expected answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from splitinfer.handoff import Label, Role, Segment
from tools.corpus.drawer import Drawer, Split
from tools.corpus.notes import Note, ask_note, make_note
from tools.corpus.tables import Table

__all__ = ["Context", "CountTokens", "Kind", "Question", "held_out_context", "held_out_prompts", "make_context"]

Kind = Literal["notes", "table", "both"]
CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the span of the context that answers it."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Context:
    """A document, notes, or both, with questions about them."""

    segments: tuple[Segment, ...]
    questions: tuple[Question, ...]


def make_context(
    rng: random.Random, *, tokens: int, kind: Kind, questions: int, count_tokens: CountTokens, split: Split
) -> Context:
    """Draw a context of about `tokens` tokens and up to `questions` different questions about it."""
    drawer = Drawer(rng, split=split)
    segments, used, table = [], 1, None
    if kind != "notes":
        table, text = _table(drawer, tokens if kind == "table" else int(tokens * 0.55), count_tokens)
        segments.append(Segment(Role.DOCUMENT, text, Label.PUBLIC, "table"))
        used += 1 + count_tokens(text)
    notes = [] if kind == "table" else _notes(drawer, tokens, used, count_tokens)
    segments += [Segment(Role.NOTE, note.text) for note in notes]
    return Context(tuple(segments), tuple(_questions(drawer, table, notes, questions)))


def _table(drawer: Drawer, limit: int, count_tokens: CountTokens) -> tuple[Table, str]:
    # Some kinds have fewer keys than a long document has rows; another table is drawn then.
    while True:
        table = Table(drawer)
        text = _fill(table, limit, count_tokens)
        if text is not None:
            return table, text


def _fill(table: Table, limit: int, count_tokens: CountTokens) -> str | None:
    text, used = table.head, 2 + count_tokens(table.head)
    while (row := table.add_row()) is not None:
        row_tokens = count_tokens(row)
        text, used = text + row, used + row_tokens
        if used + row_tokens * 0.6 > limit:
            return text
    return None


def _notes(drawer: Drawer, tokens: int, used: int, count_tokens: CountTokens) -> list[Note]:
    notes: dict[str, Note] = {}
    while True:
        room = tokens - used
        note = make_note(drawer, field_count=None if room > 70 else max(1, min(4, int(room / 14))))
        if note.name in notes:
            continue
        notes[note.name] = note
        note_tokens = 1 + count_tokens(note.text)
        used += note_tokens
        if used + note_tokens * 0.6 > tokens:
            return list(notes.values())


def _questions(drawer: Drawer, table: Table | None, notes: list[Note], count: int) -> list[Question]:
    found: dict[str, Question] = {}
    for _ in range(count * 4):
        if table is not None and (not notes or drawer.rng.random() < 0.5):
            text, answer = table.ask()
        else:
            text, answer = ask_note(drawer, drawer.pick(notes), alone=len(notes) == 1)
        found.setdefault(text, Question(text, answer))
        if len(found) == count:
            break
    return list(found.values())


def held_out_context(seed: int, *, tokens: int, kind: Kind, questions: int, count_tokens: CountTokens) -> Context:
    """Draw one context of entities that were never trained on; the same seed gives the same context."""
    rng = random.Random(f"{seed}/{tokens}/{kind}")
    return make_context(rng, tokens=tokens, kind=kind, questions=questions, count_tokens=count_tokens, split="test")


def held_out_prompts(count: int, seed: int) -> list[tuple[list[Segment], str]]:
    """Return prompts of about 100 to 200 tokens, public table, private notes and a question, with their answers."""
    prompts = []
    for index in range(count):
        context = held_out_context(
            seed * 1_000_003 + index, tokens=150, kind="both", questions=1, count_tokens=lambda text: len(text) // 3
        )
        question = context.questions[0]
        segments = [*context.segments, Segment(Role.QUESTION, question.text)]
        prompts.append((segments, question.answer))
    return prompts
