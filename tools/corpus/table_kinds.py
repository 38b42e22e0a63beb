"""The kinds of public tables, as data: price lists, manuals, directories, insurance policies, timetables, drugs."""

from __future__ import annotations

from tools.corpus import words
from tools.corpus.drawer import Drawer
from tools.corpus.schema import Column, TableKind

__all__ = ["TABLE_KINDS"]


def _action(drawer: Drawer) -> str:
    verb = drawer.pick(("replace", "clean", "reset", "check", "tighten"))
    return f"{verb} the {drawer.pick(words.NOUNS)}"


def _waiting_period(drawer: Drawer) -> str:
    count = drawer.pick("123456789") + drawer.pick(("", drawer.digits(1)))
    return f"{count} {drawer.pick(('days', 'weeks', 'months'))}"


def _time(drawer: Drawer) -> str:
    return f"{drawer.rng.randint(0, 23):02d}:{drawer.rng.randint(0, 59):02d}"


TABLE_KINDS = (
    TableKind(
        title="Price list of {company}",
        draw_key=Drawer.product,
        columns=(
            Column("Price", "price", Drawer.amount),
            Column("Stock", "stock", lambda d: f"{d.digits(d.rng.randint(1, 3))} units"),
            Column("Part", "part number", lambda d: d.code("P")),
        ),
    ),
    TableKind(
        title="Product manual of {company}: error codes",
        draw_key=lambda d: f"E{d.number(3)}",
        columns=(
            Column("Meaning", "meaning", lambda d: d.pick(words.ISSUES)),
            Column("Action", "action", _action),
            Column("Page", "page", lambda d: d.digits(2)),
        ),
    ),
    TableKind(
        title="Phone directory of {company}",
        draw_key=Drawer.name,
        columns=(
            Column("Extension", "extension", lambda d: d.number(4)),
            Column("Room", "room", lambda d: d.pick("ABCDEFG") + d.digits(3)),
            Column("Email", "email", Drawer.email),
        ),
    ),
    TableKind(
        title="Policy table of {company}",
        draw_key=lambda d: f"{d.pick(words.CITIES)} plan {d.word(1, 2)}",
        columns=(
            Column("Limit", "limit", Drawer.amount),
            Column("Deductible", "deductible", Drawer.amount),
            Column("Waiting period", "waiting period", _waiting_period),
        ),
    ),
    TableKind(
        title="Timetable of {company}",
        draw_key=lambda d: f"Line {d.number(3)}",
        columns=(
            Column("Departure", "departure", _time),
            Column("Platform", "platform", lambda d: str(d.rng.randint(1, 30))),
            Column("To", "destination", lambda d: d.pick(words.CITIES)),
        ),
    ),
    TableKind(
        title="Drug formulary of {company}",
        draw_key=Drawer.drug,
        columns=(
            Column("Dose", "dose", Drawer.dose),
            Column("Price", "price", Drawer.amount),
            Column("Code", "code", lambda d: d.code("RX")),
        ),
    ),
)
