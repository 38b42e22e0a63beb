"""Private notes: a record of one person, as a form or as prose, and the questions that it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tools.corpus.drawer import Drawer
from tools.corpus.note_kinds import DOSE, MEDICATION, NOTE_KINDS
from tools.corpus.schema import Field, NoteKind

__all__ = ["Note", "ask_note", "capitalised", "make_note"]

_OPENINGS = (
    "{title} {record_id} for {name}.",
    "{person_capitalised} {name}, {title_lower} {record_id}.",
    "{title} {record_id} about {person} {name}.",
)
_STATEMENTS = (
    "The {noun} of {name} is {value}.",
    "{name} has {noun} {value}.",
    "The {noun} is {value}.",
    "{noun_capitalised}: {value}.",
    "We noted the {noun} as {value}.",
    "The {noun} on file is {value}.",
)
_ASK_BY_NAME = (
    "What is the {noun} of {name}?",
    "{noun} of {name}?",
    "Give me the {noun} of {name}.",
    "Tell me the {noun} for {name}.",
    "{name}: {noun}?",
    "What {noun} does {name} have?",
)
_ASK_BY_ID = ("What is the {noun} in {record_id}?", "{record_id}: {noun}?", "Give me the {noun} for {record_id}.")
_ASK_ALONE = ("What is the {noun}?", "Give me the {noun}.", "{noun}?")
_ASK_FOR_NAME = ("Who is the {person} in {record_id}?", "{record_id}: name?")
_ASK_FOR_ID = ("What is the record id of {name}?", "{name}: record id?")


@dataclass(frozen=True, slots=True)
class Note:
    """One note; `values` are spans of `text`."""

    text: str
    kind: NoteKind
    name: str
    record_id: str
    values: Mapping[Field, str]


def capitalised(text: str) -> str:
    """Raise the first letter and leave the rest as it is."""
    return text[0].upper() + text[1:]


def make_note(drawer: Drawer, *, field_count: int | None = None) -> Note:
    """Draw one note of 3 to 6 fields, or of at most `field_count`."""
    kind = drawer.pick(NOTE_KINDS)
    name, record_id = drawer.name(), drawer.code(kind.id_prefix)
    count = field_count or drawer.rng.randint(3, 6)
    fields = drawer.rng.sample(kind.fields, min(count, len(kind.fields)))
    # A dose says nothing without its medication.
    if DOSE in fields and MEDICATION not in fields:
        fields[fields.index(DOSE)] = MEDICATION
    values = {field: field.draw(drawer) for field in fields}
    write = _form if drawer.rng.random() < 0.5 else _prose
    return Note(write(drawer, kind, name, record_id, values), kind, name, record_id, values)


def _form(drawer: Drawer, kind: NoteKind, name: str, record_id: str, values: Mapping[Field, str]) -> str:
    lines = [f"{kind.title} {record_id}", f"{drawer.pick(kind.name_labels)}: {name}"]
    lines += [f"{drawer.pick(field.labels)}: {value}" for field, value in values.items()]
    return "\n".join(lines) + "\n"


def _prose(drawer: Drawer, kind: NoteKind, name: str, record_id: str, values: Mapping[Field, str]) -> str:
    opening = drawer.pick(_OPENINGS).format(
        title=kind.title,
        title_lower=kind.title.lower(),
        person=kind.person,
        person_capitalised=capitalised(kind.person),
        name=name,
        record_id=record_id,
    )
    sentences = [opening]
    for field, value in values.items():
        noun = drawer.pick(field.nouns)
        form = drawer.pick(_STATEMENTS)
        sentences.append(form.format(noun=noun, noun_capitalised=capitalised(noun), name=name, value=value))
    return " ".join(sentences) + "\n"


def ask_note(drawer: Drawer, note: Note, *, alone: bool) -> tuple[str, str]:
    """Draw a question about the note and its answer; `alone` permits questions that name nobody."""
    share = drawer.rng.random()
    if share < 0.08:
        return drawer.pick(_ASK_FOR_NAME).format(person=note.kind.person, record_id=note.record_id), note.name
    if share < 0.14:
        return drawer.pick(_ASK_FOR_ID).format(name=note.name), note.record_id
    field = drawer.pick(list(note.values))
    value, noun = note.values[field], drawer.pick(field.nouns)
    if share < 0.22 and field.identifies:
        return f"Who has {noun} {value}?", note.name
    form = drawer.pick(_forms(share, alone=alone))
    return capitalised(form.format(noun=noun, name=note.name, record_id=note.record_id)), value


def _forms(share: float, *, alone: bool) -> tuple[str, ...]:
    if alone and share < 0.5:
        return _ASK_ALONE
    return _ASK_BY_NAME if share < 0.75 else _ASK_BY_ID
