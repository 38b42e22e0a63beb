"""Public tables: rows of a price list, manual, directory and so on, every value with its noun beside it."""

from __future__ import annotations

from tools.corpus import words
from tools.corpus.alike import alike_table
from tools.corpus.drawer import Drawer
from tools.corpus.marked import Fact, Passage, Span, capitalised, fill
from tools.corpus.schema import TableKind
from tools.corpus.table_kinds import TABLE_KINDS, free_table

__all__ = ["TEMPLATES", "Table"]

# How a row begins, what stands between a noun and its value, what stands between cells, how a row ends.
_LAYOUTS = (
    ("- {key}: ", " ", ", ", ""),
    ("- {key}: ", " ", ", ", ""),
    ("{key}: ", " ", ", ", ""),
    ("For {key} the ", " is ", ", the ", "."),
    ("| {key} | ", " ", " | ", " |"),
    ("{key} - ", ": ", "; ", ""),
)
# A table of one column may leave its noun to the title.
_BARE_TITLES = {"price": "Prices", "stock": "Stock", "extension": "Extensions", "departure": "Departures"}
TEMPLATES = (*(part for layout in _LAYOUTS for part in layout), *_BARE_TITLES.values(), "value is ")
_FREE_SHARE = 0.35
_KEY_DRAWS = 200
_REMARK_SHARE = 0.1


class Table:
    """One table that grows row by row; `kind.link_nouns` are what a note calls a row's key."""

    def __init__(self, drawer: Drawer, *, is_alike: bool = False) -> None:
        self.kind = alike_table(drawer) if is_alike else _kind(drawer)
        self._drawer = drawer
        self._text = self.kind.title.format(company=drawer.company())
        count = 1 if drawer.rng.random() < 0.3 else drawer.rng.randint(2, len(self.kind.columns))
        self._columns = drawer.rng.sample(self.kind.columns, min(count, len(self.kind.columns)))
        self._head, self._joint, self._comma, self._stop = drawer.pick(_LAYOUTS)
        self._is_capitalised = drawer.rng.random() < 0.15
        self._is_bare = False
        first = self._columns[0].nouns[0]
        if len(self._columns) == 1 and first in _BARE_TITLES and drawer.rng.random() < 0.5:
            self._is_bare, self._text = True, f"{_BARE_TITLES[first]} of {drawer.company()}"
        if drawer.rng.random() < _REMARK_SHARE:
            self._text += f"\n{drawer.pick(words.REMARKS)}"
        self._facts: dict[str, list[Fact]] = {}

    @property
    def keys(self) -> list[str]:
        """The keys of the rows, in their order."""
        return list(self._facts)

    @property
    def passage(self) -> Passage:
        """The table as it stands."""
        return Passage(self._text, tuple(fact for facts in self._facts.values() for fact in facts))

    def add_row(self) -> str | None:
        """Draw a row with a new key and return its text; None where the kind has hardly a key left."""
        key = self._new_key()
        if key is None:
            return None
        before = len(self._text)
        head, spans = fill(f"\n{self._head}", key=key)
        self._text += head
        owner, facts = spans["key"].moved(before), []
        for index, column in enumerate(self._columns):
            value = column.draw(self._drawer)
            self._text += self._comma if index else ""
            noun = capitalised(column.nouns[0]) if self._is_capitalised else column.nouns[0]
            start = len(self._text)
            if not self._is_bare:
                self._text += noun + self._joint
            elif self._joint == " is ":
                self._text += "value is "
            value_span = Span(len(self._text), len(self._text) + len(value))
            self._text += value
            noun_span = None if self._is_bare else Span(start, start + len(noun))
            facts.append(Fact(key, column.nouns, value, (owner,), noun_span, value_span))
        self._text += self._stop
        self._facts[key] = facts
        return self._text[before:]

    def _new_key(self) -> str | None:
        for _ in range(_KEY_DRAWS):
            key = self.kind.draw_key(self._drawer)
            if key not in self._facts:
                return key
        return None


def _kind(drawer: Drawer) -> TableKind:
    return free_table(drawer) if drawer.rng.random() < _FREE_SHARE else drawer.pick(TABLE_KINDS)
