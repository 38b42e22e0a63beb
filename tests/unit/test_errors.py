from __future__ import annotations

import re

import pytest

from splitinfer import errors
from splitinfer.errors import (
    AuthenticationError,
    ModelMismatchError,
    RemoteRefusedError,
    SplitInferError,
    error_for_code,
)

DRAWN = errors.__doc__ or ""
DOCUMENTED_EXIT_CODES = {1, 2, 3, 4, 5, 6, 7}
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, SplitInferError)]


def drawn() -> list[tuple[int, str, int | None]]:
    """Read the tree on top of the module: depth, class, and the exit code where it is stated."""
    rows = []
    for line in DRAWN.splitlines():
        found = re.match(r"^([│├└─ ]*)(\w+Error)\b(?:\s+exit (\d))?", line)
        if found:
            rows.append((len(found[1]) // 4, found[2], int(found[3]) if found[3] else None))
    return rows


def test_every_class_is_drawn_once_under_its_parent() -> None:
    path: list[str] = []
    parents: dict[str, str] = {}
    for depth, name, _ in drawn():
        assert name not in parents, f"{name} is drawn twice"
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else "Exception"
    assert parents == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


def test_exit_codes_are_those_drawn() -> None:
    for _, name, exit_code in drawn():
        if exit_code is not None:
            assert getattr(errors, name).exit_code == exit_code, name
    assert {kind.exit_code for kind in CLASSES} <= DOCUMENTED_EXIT_CODES


def test_codes_are_unique_and_plain() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]{1,40}", code) for code in codes)
    assert all("code" in vars(kind) for kind in CLASSES), "a class shares its parent's code"


def test_all_names_every_class_and_is_sorted() -> None:
    assert set(errors.__all__) == {kind.__name__ for kind in CLASSES} | {"error_for_code"}
    assert sorted(errors.__all__[:-1]) == errors.__all__[:-1]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_code_leads_back_to_its_class(kind: type[SplitInferError]) -> None:
    assert error_for_code(kind.code) is kind


@pytest.mark.parametrize("code", ["", "unknown", "Internal", "__class__"])
def test_an_unknown_code_leads_nowhere(code: str) -> None:
    assert error_for_code(code) is None


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_made_from_a_sentence(kind: type[SplitInferError]) -> None:
    made = kind("what was wrong")
    assert str(made) == "what was wrong"
    assert made.fields == {}
    assert kind.__doc__


def test_fields_are_copied() -> None:
    fields = {"weights_sha256_cloud": "1"}
    error = ModelMismatchError("differs", fields=fields)
    fields.clear()
    assert error.fields == {"weights_sha256_cloud": "1"}


def test_every_failure_of_authentication_reads_the_same() -> None:
    assert str(AuthenticationError()) == "the bytes are not authentic"
    assert AuthenticationError().fields == {}


def test_a_remote_refusal_keeps_the_word_it_came_with() -> None:
    assert RemoteRefusedError("refused", remote_code="replay").remote_code == "replay"
    assert RemoteRefusedError("refused").remote_code == "unknown"
