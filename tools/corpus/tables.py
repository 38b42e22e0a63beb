"""Public tables: rows of a price list, manual, directory and so on, in one of three layouts, and their questions."""

from __future__ import annotations

from tools.corpus.drawer import Drawer
from tools.corpus.notes import capitalised
from tools.corpus.schema import TABLES

_QUESTIONS = ["What is the {q} of {k}?", "{k}: {q}?", "Give me the {q} for {k}.", "{q} of {k}?"]


class Table:
    """One table that grows row by row; `head` is its title and, in the pipe layout, its column names."""

    def __init__(self, drawer: Drawer) -> None:
        title, self._key, columns = drawer.pick(TABLES)
        self._drawer = drawer
        title = title.format(c=drawer.company())
        count = 1 if drawer.rng.random() < 0.4 else drawer.rng.randint(2, 3)
        self._columns = drawer.rng.sample(columns, count)
        self._layout = drawer.pick(["line", "pipe", "sentence"])
        names = " | ".join(column[0] for column in self._columns)
        self.head = f"{title}\n" + (f"Key | {names}\n" if self._layout == "pipe" else "")
        self._rows: dict[str, list[str]] = {}

    def add_row(self) -> str:
        """Draw a row with a new key and return its text."""
        key = self._key(self._drawer)
        while key in self._rows:
            key = self._key(self._drawer)
        values = [column[2](self._drawer) for column in self._columns]
        self._rows[key] = values
        pairs = [(column[1], value) for column, value in zip(self._columns, values, strict=True)]
        if self._layout == "pipe":
            return f"| {key} | {' | '.join(values)}\n"
        if self._layout == "line":
            return f"- {key}: {', '.join(f'{noun} {value}' for noun, value in pairs)}\n"
        return f"For {key} the {', the '.join(f'{noun} is {value}' for noun, value in pairs)}.\n"

    def ask(self) -> tuple[str, str]:
        """Draw a question about one cell and its answer."""
        key = self._drawer.pick(list(self._rows))
        column = self._drawer.rng.randrange(len(self._columns))
        question = self._drawer.pick(_QUESTIONS).format(q=self._columns[column][1], k=key)
        return capitalised(question), self._rows[key][column]
