"""Private notes: a record of one person, as a form or as prose, and the questions that it answers."""

from __future__ import annotations

from dataclasses import dataclass

from tools.corpus.drawer import Drawer
from tools.corpus.schema import ASK_ALONE, ASK_BY_ID, ASK_BY_NAME, FIELDS, NOTES, PROSE

_REVERSIBLE = {"phone", "email", "card", "iban", "acct", "order", "policy", "ref", "ssn", "drug"}


@dataclass(frozen=True, slots=True)
class Note:
    """One note; `values` maps field names of the schema to the spans in `text`."""

    text: str
    name: str
    record_id: str
    person: str
    values: dict[str, str]


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def make_note(drawer: Drawer, *, field_count: int | None = None) -> Note:
    """Draw one note of 3 to 6 fields, or of at most `field_count`."""
    title, labels, person, prefix, fields = NOTES[drawer.pick(list(NOTES))]
    name, record_id = drawer.name(), drawer.code(prefix)
    count = field_count or drawer.rng.randint(3, 6)
    keys = drawer.rng.sample(fields, min(count, len(fields)))
    if "dose" in keys and "drug" not in keys:
        keys[keys.index("dose")] = "drug"
    values = {key: FIELDS[key][2](drawer) for key in keys}
    if drawer.rng.random() < 0.5:
        lines = [f"{title} {record_id}", f"{drawer.pick(labels)}: {name}"]
        lines += [f"{drawer.pick(FIELDS[key][0])}: {value}" for key, value in values.items()]
        return Note("\n".join(lines) + "\n", name, record_id, person, values)
    text = _prose(drawer, (title, name, record_id, person), values)
    return Note(text, name, record_id, person, values)


def _prose(drawer: Drawer, head: tuple[str, str, str, str], values: dict[str, str]) -> str:
    title, name, record_id, person = head
    openings = [
        f"{title} {record_id} for {name}.",
        f"{capitalised(person)} {name}, {title.lower()} {record_id}.",
        f"{title} {record_id} about {person} {name}.",
    ]
    sentences = [drawer.pick(openings)]
    for key, value in values.items():
        noun = drawer.pick(FIELDS[key][1])
        sentences.append(drawer.pick(PROSE).format(q=noun, n=name, v=value, Q=capitalised(noun)))
    return " ".join(sentences) + "\n"


def ask_note(drawer: Drawer, note: Note, *, alone: bool) -> tuple[str, str]:
    """Draw a question about the note and its answer; `alone` permits questions that name nobody."""
    share = drawer.rng.random()
    if share < 0.08:
        return drawer.pick([f"Who is the {note.person} in {note.record_id}?", f"{note.record_id}: name?"]), note.name
    if share < 0.14:
        return drawer.pick([f"What is the record id of {note.name}?", f"{note.name}: record id?"]), note.record_id
    key = drawer.pick(list(note.values))
    value, noun = note.values[key], drawer.pick(FIELDS[key][1])
    if share < 0.22 and key in _REVERSIBLE:
        return f"Who has {noun} {value}?", note.name
    if alone and share < 0.5:
        return capitalised(drawer.pick(ASK_ALONE).format(q=noun)), value
    if share < 0.75:
        return capitalised(drawer.pick(ASK_BY_NAME).format(q=noun, n=note.name)), value
    return capitalised(drawer.pick(ASK_BY_ID).format(q=noun, i=note.record_id)), value
