"""The kinds of public tables, as data: price lists, manuals, directories, insurance policies, timetables, drugs."""

from __future__ import annotations

from tools.corpus import words
from tools.corpus.drawer import Drawer
from tools.corpus.schema import Draw, Field, TableKind

__all__ = ["TABLE_KINDS", "free_table"]


def _action(drawer: Drawer) -> str:
    verb = drawer.pick(("replace", "clean", "reset", "check", "tighten"))
    return f"{verb} the {drawer.pick(words.NOUNS)}"


def _period(drawer: Drawer) -> str:
    count = drawer.pick("123456789") + drawer.pick(("", drawer.digits(1)))
    return f"{count} {drawer.pick(('days', 'weeks', 'months'))}"


def _plan(drawer: Drawer) -> str:
    if drawer.rng.random() < 0.5:
        return f"{drawer.pick(words.CITIES)} plan {drawer.word(1, 2)}"
    return f"{drawer.word()} plan"


def _branch(drawer: Drawer) -> str:
    place = drawer.pick((drawer.pick(words.CITIES), drawer.word()))
    return f"{place} {drawer.pick(('branch', 'office', 'shop', 'clinic'))}"


def _column(noun: str, draw: Draw) -> Field:
    return Field((noun,), (noun,), draw)


TABLE_KINDS = (
    TableKind(
        title="Price list of {company}",
        draw_key=Drawer.product,
        link_nouns=("product", "item"),
        columns=(
            _column("price", Drawer.amount),
            _column("stock", lambda d: f"{d.digits(d.rng.randint(1, 3))} units"),
            _column("part number", lambda d: d.code("P")),
            _column("warranty", _period),
        ),
    ),
    TableKind(
        title="Product manual of {company}: error codes",
        draw_key=lambda d: f"E{d.number(3)}",
        link_nouns=("error code",),
        columns=(
            _column("meaning", lambda d: d.pick(words.ISSUES)),
            _column("action", _action),
            _column("page", lambda d: d.digits(2)),
        ),
    ),
    TableKind(
        title="Phone directory of {company}",
        draw_key=Drawer.name,
        link_nouns=("contact", "adviser"),
        columns=(
            _column("extension", lambda d: d.number(4)),
            _column("room", lambda d: d.pick("ABCDEFG") + d.digits(3)),
            _column("office email", Drawer.email),
        ),
    ),
    TableKind(
        title="Policy table of {company}",
        draw_key=_plan,
        link_nouns=("plan",),
        columns=(
            _column("limit", Drawer.amount),
            _column("deductible", Drawer.amount),
            _column("waiting period", _period),
            _column("monthly premium", Drawer.amount),
        ),
    ),
    TableKind(
        title="Timetable of {company}",
        draw_key=lambda d: f"Line {d.number(3)}",
        link_nouns=("line",),
        columns=(
            _column("departure", Drawer.time),
            _column("platform", lambda d: str(d.rng.randint(1, 30))),
            _column("destination", lambda d: d.pick(words.CITIES)),
            _column("fare", Drawer.amount),
        ),
    ),
    TableKind(
        title="Drug formulary of {company}",
        draw_key=Drawer.drug,
        link_nouns=("medication", "prescribed drug"),
        columns=(
            _column("standard dose", Drawer.dose),
            _column("price", Drawer.amount),
            _column("code", lambda d: d.code("RX")),
        ),
    ),
    TableKind(
        title="Opening hours of {company}",
        draw_key=_branch,
        link_nouns=("branch", "office"),
        columns=(
            _column("opening time", Drawer.time),
            _column("closing time", Drawer.time),
            _column("phone number", Drawer.phone),
            _column("address", Drawer.address),
        ),
    ),
)

_FREE_COLUMNS = 3


def free_table(drawer: Drawer) -> TableKind:
    """Draw a kind of table whose columns have any noun and any value, so that they are read and not remembered."""
    letter = drawer.pick("ABCDEFGHKLMPRSTVX")
    names = (Drawer.thing, Drawer.thing, Drawer.thing, Drawer.product, Drawer.company)
    draw_key = drawer.pick((*names, lambda d: d.code(letter), Drawer.word))
    nouns = {drawer.label(): None for _ in range(_FREE_COLUMNS)}
    title = drawer.pick(words.TABLE_TITLES)
    return TableKind(
        title=f"{title} of {{company}}" if drawer.rng.random() < 0.7 else title,
        draw_key=draw_key,
        link_nouns=(drawer.label(),),
        columns=tuple(_column(noun, Drawer.value) for noun in nouns),
    )
