"""Private notes: a record of one person, as a form or as prose, with its facts marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tools.corpus import words
from tools.corpus.alike import alike_kind, draw_owner
from tools.corpus.drawer import Drawer
from tools.corpus.marked import Fact, Passage, capitalised, fill
from tools.corpus.note_kinds import DOSE, MEDICATION, NOTE_KINDS, free_kind
from tools.corpus.schema import Field, NoteKind

__all__ = ["TEMPLATES", "Link", "Note", "make_note"]

_FORM_HEADS = (
    "{title} {record_id}\n{name_label}: {name}",
    "{title} {record_id}\n{name_label}: {name}",
    "{title}\n{name_label}: {name}",
    "{name_label}: {name}",
    "{name}",
)
_PROSE_HEADS = (
    "{title} {record_id} for {name}.",
    "{person_capitalised} {name}, {title_lower} {record_id}.",
    "{title} {record_id} about {person} {name}.",
    "{title} for {name}.",
)
_STATEMENTS = (
    "The {noun} of {name} is {value}.",
    "The {noun} of {name} is {value}.",
    "{name} has {noun} {value}.",
    "The {noun} is {value}.",
    "{noun_capitalised}: {value}.",
    "{pronoun} {noun} is {value}.",
    "We noted the {noun} as {value}.",
    "The {noun} on file is {value}.",
)
_PRONOUNS = ("Her", "His", "Their")
TEMPLATES = (*_FORM_HEADS, *_PROSE_HEADS, *_STATEMENTS, *_PRONOUNS)
_FREE_SHARE = 0.4
_REMARK_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Link:
    """A field that every table's key can fill: what the note calls it, and the key."""

    nouns: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Note:
    """One note about `name`; `link` is the fact that names a row of the table, where there is one."""

    name: str
    passage: Passage
    link: Fact | None


def make_note(
    drawer: Drawer, *, field_count: int | None = None, link: Link | None = None, is_alike: bool = False
) -> Note:
    """Draw one note of 3 to 8 fields, or of at most `field_count`; `link` adds a field that names a table's row."""
    kind = alike_kind(drawer) if is_alike else _kind(drawer)
    name, record_id = draw_owner(drawer) if is_alike else drawer.name(), drawer.code(kind.id_prefix)
    values = _draw_values(drawer, kind, field_count or drawer.rng.choice((3, 4, 4, 5, 5, 6, 7, 8)), link)
    write = _form if drawer.rng.random() < 0.6 else _prose
    passage = write(drawer, kind, name, record_id, values)
    named = None
    if link is not None:
        named = next(fact for fact in passage.facts if fact.nouns == link.nouns)
    return Note(name, passage, named)


def _kind(drawer: Drawer) -> NoteKind:
    return free_kind(drawer) if drawer.rng.random() < _FREE_SHARE else drawer.pick(NOTE_KINDS)


def _draw_values(drawer: Drawer, kind: NoteKind, count: int, link: Link | None) -> dict[Field, str]:
    allowed = kind.fields
    if link is not None:
        allowed = tuple(field for field in kind.fields if not set(field.nouns) & set(link.nouns))
    fields = drawer.rng.sample(allowed, min(count, len(allowed)))
    # A dose says nothing without its medication.
    if DOSE in fields and MEDICATION not in fields and MEDICATION in allowed:
        fields[fields.index(DOSE)] = MEDICATION
    values = {field: field.draw(drawer) for field in fields}
    if link is not None:
        field = Field(tuple(capitalised(noun) for noun in link.nouns), link.nouns, lambda _: link.key)
        items = list(values.items())
        items.insert(drawer.rng.randint(0, len(items)), (field, link.key))
        values = dict(items)
    return values


def _form(drawer: Drawer, kind: NoteKind, name: str, record_id: str, values: Mapping[Field, str]) -> Passage:
    text, spans = fill(
        drawer.pick(_FORM_HEADS),
        title=kind.title,
        record_id=record_id,
        name_label=drawer.pick(kind.name_labels),
        name=name,
    )
    facts = []
    for field, value in values.items():
        line, marks = fill("\n{label}: {value}", label=drawer.pick(field.labels), value=value)
        start, text = len(text), text + line
        label_span, value_span = marks["label"].moved(start), marks["value"].moved(start)
        facts.append(Fact(name, field.nouns, value, (spans["name"],), label_span, value_span))
    if drawer.rng.random() < _REMARK_SHARE:
        text += f"\n{drawer.pick(words.REMARKS)}"
    return Passage(text, tuple(facts))


def _prose(drawer: Drawer, kind: NoteKind, name: str, record_id: str, values: Mapping[Field, str]) -> Passage:
    text, spans = fill(
        drawer.pick(_PROSE_HEADS),
        title=kind.title,
        title_lower=kind.title.lower(),
        person=kind.person,
        person_capitalised=capitalised(kind.person),
        name=name,
        record_id=record_id,
    )
    named, facts, pronoun = [spans["name"]], [], drawer.pick(_PRONOUNS)
    for field, value in values.items():
        noun = drawer.pick(field.nouns)
        sentence, marks = fill(
            drawer.pick(_STATEMENTS),
            noun=noun,
            noun_capitalised=capitalised(noun),
            name=name,
            pronoun=pronoun,
            value=value,
        )
        start, text = len(text) + 1, f"{text} {sentence}"
        if "name" in marks:
            named.append(marks["name"].moved(start))
        noun_span = (marks.get("noun") or marks["noun_capitalised"]).moved(start)
        facts.append(Fact(name, field.nouns, value, tuple(named), noun_span, marks["value"].moved(start)))
    if drawer.rng.random() < _REMARK_SHARE:
        text += f" {drawer.pick(words.REMARKS)}"
    return Passage(text, tuple(facts))
