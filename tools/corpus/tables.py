"""Public tables: rows of a price list, manual, directory and so on, in one of three layouts, and their questions."""

from __future__ import annotations

from tools.corpus.drawer import Drawer
from tools.corpus.notes import capitalised
from tools.corpus.table_kinds import TABLE_KINDS

__all__ = ["Table"]

_QUESTIONS = (
    "What is the {noun} of {key}?",
    "{key}: {noun}?",
    "Give me the {noun} for {key}.",
    "{noun} of {key}?",
)
_KEY_DRAWS = 200


class Table:
    """One table that grows row by row; `head` is its title and, in the pipe layout, its column names."""

    def __init__(self, drawer: Drawer) -> None:
        kind = drawer.pick(TABLE_KINDS)
        self._drawer = drawer
        self._draw_key = kind.draw_key
        title = kind.title.format(company=drawer.company())
        column_count = 1 if drawer.rng.random() < 0.4 else drawer.rng.randint(2, 3)
        self._columns = drawer.rng.sample(kind.columns, column_count)
        self._layout = drawer.pick(("line", "pipe", "sentence"))
        headings = " | ".join(column.heading for column in self._columns)
        self.head = f"{title}\n" + (f"Key | {headings}\n" if self._layout == "pipe" else "")
        self._rows: dict[str, list[str]] = {}

    def add_row(self) -> str | None:
        """Draw a row with a new key and return its text; None where the kind has hardly a key left."""
        key = self._new_key()
        if key is None:
            return None
        values = [column.draw(self._drawer) for column in self._columns]
        self._rows[key] = values
        cells = [(column.noun, value) for column, value in zip(self._columns, values, strict=True)]
        if self._layout == "pipe":
            return f"| {key} | {' | '.join(values)}\n"
        if self._layout == "line":
            return f"- {key}: {', '.join(f'{noun} {value}' for noun, value in cells)}\n"
        return f"For {key} the {', the '.join(f'{noun} is {value}' for noun, value in cells)}.\n"

    def _new_key(self) -> str | None:
        for _ in range(_KEY_DRAWS):
            key = self._draw_key(self._drawer)
            if key not in self._rows:
                return key
        return None

    def ask(self) -> tuple[str, str]:
        """Draw a question about one cell and its answer."""
        key = self._drawer.pick(list(self._rows))
        index = self._drawer.rng.randrange(len(self._columns))
        question = self._drawer.pick(_QUESTIONS).format(noun=self._columns[index].noun, key=key)
        return capitalised(question), self._rows[key][index]
