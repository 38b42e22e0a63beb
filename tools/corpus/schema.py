"""The shapes of what the corpus speaks of: kinds of notes and their fields, kinds of tables and their columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.corpus.drawer import Drawer

__all__ = ["Column", "Draw", "Field", "NoteKind", "TableKind"]

Draw = Callable[[Drawer], str]


@dataclass(frozen=True, slots=True)
class Field:
    """One fact of a note: `labels` name it in a form, `nouns` in prose and in questions.

    A value that `identifies` its person may be asked about the other way round: "Who has phone number ...?".
    """

    labels: tuple[str, ...]
    nouns: tuple[str, ...]
    draw: Draw
    identifies: bool = False


@dataclass(frozen=True, slots=True)
class NoteKind:
    """One kind of note: `person` is the noun for its subject, `name_labels` stand before their name in a form."""

    title: str
    name_labels: tuple[str, ...]
    person: str
    id_prefix: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, its noun in sentences and questions, and its values."""

    heading: str
    noun: str
    draw: Draw


@dataclass(frozen=True, slots=True)
class TableKind:
    """One kind of table: `title` has a place for {company}, rows are found by their key."""

    title: str
    draw_key: Draw
    columns: tuple[Column, ...]
