"""The words that templates, labels, nouns and titles are made of: what a passage says besides names and values."""

from __future__ import annotations

from collections.abc import Iterator

from tools.corpus import notes, questions, tables, words
from tools.corpus.note_kinds import NOTE_KINDS, free_name_labels
from tools.corpus.table_kinds import TABLE_KINDS

__all__ = ["fixed_texts", "template_texts"]


def template_texts() -> Iterator[str]:
    """Yield the templates of questions, notes and tables, with their fields in braces."""
    yield from notes.TEMPLATES
    yield from questions.TEMPLATES
    yield from tables.TEMPLATES


def fixed_texts() -> Iterator[str]:
    """Yield every fixed text of the corpus; templates with their fields in braces."""
    yield from template_texts()
    for kind in NOTE_KINDS:
        yield from (kind.title, kind.title.lower(), kind.person, *kind.name_labels)
        for field in kind.fields:
            yield from (*field.labels, *field.nouns)
    for table in TABLE_KINDS:
        yield from (table.title, *table.link_nouns, *(noun for column in table.columns for noun in column.nouns))
    yield from (text.lower() for text in free_name_labels())
    yield from free_name_labels()
    for texts in (words.LABEL_ADJECTIVES, words.LABEL_NOUNS, words.RECORD_TITLES, words.TABLE_TITLES, words.REMARKS):
        yield from texts
