"""Kinds of notes and tables that are told apart by one word only: keys that share a word, nouns that share a word.

Their labels are made up more often, their owners are not always people, and their values have freer forms. A reader
that knows the usual nouns and names well still has to read these.
"""

from __future__ import annotations

from collections.abc import Callable

from tools.corpus import words
from tools.corpus.drawer import Drawer
from tools.corpus.marked import capitalised
from tools.corpus.schema import Draw, Field, NoteKind, TableKind

__all__ = ["alike_kind", "alike_table", "draw_owner"]

_NOTE_FIELDS, _COLUMNS = 9, 3
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_UNITS = ("g", "kg", "m", "mm", "ml", "l", "A", "W", "C", "bar", "EUR", "NOK", "points", "people", "years", "nights")
_FORMS_OF_ADDRESS = ("Mr.", "Ms.", "Mrs.", "Dr.", "Prof.")
_VERBS = ("keep", "lift", "press", "open", "wash", "call", "turn", "dry", "leave", "wait for", "ring")


def _made_up(drawer: Drawer) -> str:
    return drawer.syllables(1, 2)


def _noun(drawer: Drawer) -> str:
    share = drawer.rng.random()
    if share < 0.3:
        return drawer.draw(lambda: drawer.syllables(1, 3))
    return drawer.pick(words.LABEL_NOUNS) if share < 0.7 else drawer.pick(words.THINGS)


def _before(drawer: Drawer) -> str:
    return _made_up(drawer) if drawer.rng.random() < 0.4 else drawer.pick(words.LABEL_ADJECTIVES)


def _nouns(drawer: Drawer, count: int) -> list[str]:
    """Draw different nouns; some differ in their first word only, some in their last."""
    found: dict[str, None] = {}
    while len(found) < count:
        share, first, last = drawer.rng.random(), _before(drawer), _noun(drawer)
        if found and share < 0.4:
            parts = drawer.pick(list(found)).split()
            noun = f"{first} {parts[-1]}" if share < 0.25 else f"{parts[0]} {last}"
        elif share < 0.65:
            noun = last
        else:
            noun = f"{first} {last}" if share < 0.9 else f"{first} {_noun(drawer)} {last}"
        if len(set(noun.split())) == len(noun.split()):
            found[noun] = None
    return list(found)


def _code(drawer: Drawer) -> str:
    form = drawer.pick(
        ("LL9999", "L-99", "L9", "LL-999-L", "99-99-99", "L-99L", "LL99 LLL", "999-99", "LL9-99999", "99L")
    )
    signs = {"L": lambda: drawer.pick(_LETTERS), "9": lambda: drawer.digits(1)}
    return "".join(signs[sign]() if sign in signs else sign for sign in form)


def _quantity(drawer: Drawer) -> str:
    whole = drawer.pick("123456789") + drawer.digits(drawer.rng.randint(0, 3))
    whole = whole if len(whole) < 4 or drawer.rng.random() < 0.5 else f"{whole[:-3]},{whole[-3:]}"
    part = drawer.pick(("", "", f".{drawer.digits(1)}", f".{drawer.digits(2)}"))
    return f"{whole}{part}{drawer.pick(('', f' {drawer.pick(_UNITS)}', f' {drawer.pick(_UNITS)}'))}"


def _phrase(drawer: Drawer) -> str:
    thing = drawer.pick((drawer.pick(words.THINGS), drawer.pick(words.NOUNS), _made_up(drawer)))
    share = drawer.rng.random()
    if share < 0.25:
        return f"{drawer.pick(_VERBS)} the {thing}"
    if share < 0.4:
        return f"every {drawer.rng.randint(2, 48)} {drawer.pick(('hours', 'days', 'weeks'))}"
    if share < 0.7:
        return f"{drawer.pick(words.VALUES)} {thing}"
    return f"{drawer.pick(('no', 'with', 'without', 'her', 'his', 'two'))} {_made_up(drawer)} {thing}"


def _proper_name(drawer: Drawer) -> str:
    share = drawer.rng.random()
    if share < 0.35:
        return f"{drawer.pick(_FORMS_OF_ADDRESS)} {drawer.word(1, 2)}"
    if share < 0.7:
        return f"{drawer.word(1, 2)} {capitalised(drawer.pick(words.THINGS))}"
    return f"{capitalised(drawer.pick(words.VALUES))} {drawer.word(1, 2)}"


def _pass_phrase(drawer: Drawer) -> str:
    parts = [_made_up(drawer) if drawer.rng.random() < 0.6 else drawer.pick(words.NOUNS) for _ in range(2)]
    return "-".join([*parts, drawer.digits(drawer.rng.randint(1, 2))])


def _value(drawer: Drawer) -> str:
    draws = (_code, _quantity, _quantity, _phrase, _phrase, _proper_name, _pass_phrase)
    return drawer.pick((*draws, *(Drawer.value,) * 5))(drawer)


def draw_owner(drawer: Drawer) -> str:
    """Draw whom or what a note is about: mostly a person, else a thing with a name, a company or a pet."""
    if drawer.rng.random() < 0.6:
        return drawer.name()
    return drawer.pick((Drawer.thing, Drawer.company, Drawer.word, lambda d: f"{d.word(1, 2)} {d.word(1, 2)}"))(drawer)


def alike_kind(drawer: Drawer) -> NoteKind:
    """Draw a kind of note with nouns that share words."""
    person = _noun(drawer)
    return NoteKind(
        title=f"{capitalised(_before(drawer))} {drawer.pick(words.RECORD_TITLES).lower()}",
        name_labels=(capitalised(person), "Name"),
        person=person,
        id_prefix=drawer.pick(_LETTERS) + drawer.pick(_LETTERS),
        fields=tuple(Field((capitalised(noun),), (noun,), _value) for noun in _nouns(drawer, _NOTE_FIELDS)),
    )


def alike_table(drawer: Drawer) -> TableKind:
    """Draw a kind of table whose keys share a word, which may be what a note calls them."""
    draw_key, link = _keys(drawer)
    title = drawer.pick(words.TABLE_TITLES)
    return TableKind(
        title=f"{title} of {{company}}" if drawer.rng.random() < 0.7 else title,
        draw_key=draw_key,
        link_nouns=(link if drawer.rng.random() < 0.6 else _nouns(drawer, 1)[0],),
        columns=tuple(Field((noun,), (noun,), _value) for noun in _nouns(drawer, _COLUMNS)),
    )


def _keys(drawer: Drawer) -> tuple[Draw, str]:
    shared = _noun(drawer)
    head = capitalised(shared)
    pool = [drawer.word(1, 2) for _ in range(2)]
    draws: tuple[Draw, ...] = (
        lambda d: f"{head} {_tail(d)}",
        lambda d: f"{head} {d.digits(d.rng.randint(1, 3))}",
        lambda d: f"{d.word(1, 2)} {shared}",
        lambda d: f"{d.pick(pool)} {d.pick((d.word(1, 2), d.digits(2), d.digits(3)))}",
        lambda d: f"{capitalised(d.pick((*words.VALUES, *words.NOUNS)))} {capitalised(d.pick(words.THINGS))}",
    )
    return drawer.pick(draws), shared


def _tail(drawer: Drawer) -> str:
    draws: tuple[Callable[[], str], ...] = (
        lambda: drawer.word(1, 2),
        lambda: capitalised(drawer.pick(words.VALUES)),
        lambda: capitalised(drawer.pick(words.THINGS)),
        lambda: drawer.pick(_LETTERS) + drawer.pick(("", drawer.pick(_LETTERS), drawer.digits(1))),
    )
    return drawer.pick(draws)()
