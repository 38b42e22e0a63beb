"""The shapes of what the corpus speaks of: kinds of notes and their fields, kinds of tables and their columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.corpus.drawer import Drawer

__all__ = ["Draw", "Field", "NoteKind", "TableKind"]

Draw = Callable[[Drawer], str]


@dataclass(frozen=True, slots=True)
class Field:
    """One fact of a note or column of a table: `labels` name it in a form, `nouns` in sentences and questions."""

    labels: tuple[str, ...]
    nouns: tuple[str, ...]
    draw: Draw


@dataclass(frozen=True, slots=True)
class NoteKind:
    """One kind of note: `person` is the noun for its subject, `name_labels` stand before their name in a form."""

    title: str
    name_labels: tuple[str, ...]
    person: str
    id_prefix: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class TableKind:
    """One kind of table; rows are found by their key.

    `title` has a place for {company}; `link_nouns` are what a note calls a key of this table.
    """

    title: str
    draw_key: Draw
    link_nouns: tuple[str, ...]
    columns: tuple[Field, ...]
