from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import segments
from splitinfer.errors import PromptError, UsageError
from splitinfer.handoff import Label, Role, Segment
from splitinfer.segments import answered, document, message, note, private, public, question

FROM_TEXT = [
    (public, Role.DOCUMENT, Label.PUBLIC),
    (document, Role.DOCUMENT, None),
    (note, Role.NOTE, Label.PRIVATE),
    (private, Role.NOTE, Label.PRIVATE),
    (question, Role.QUESTION, Label.PRIVATE),
    (message, Role.MESSAGE, Label.PRIVATE),
    (answered, Role.ANSWER, Label.PRIVATE),
]
FROM_FILE = [public, document, note, private]


@pytest.mark.parametrize(("make", "role", "label"), FROM_TEXT)
def test_a_piece_has_its_role_and_label(make: Callable[[str], Segment], role: Role, label: Label | None) -> None:
    assert make("text") == Segment(role, "text", label, "")


def test_only_what_is_called_public_is_public() -> None:
    assert [make for make, _, label in FROM_TEXT if label is Label.PUBLIC] == [public]


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300))
@settings(deadline=None, max_examples=30)
def test_a_files_text_is_taken_as_it_is(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("files") / "manual.md"
    path.write_bytes(text.encode())
    segment = public(path=path)
    assert segment.text == text
    assert segment.source == str(path)
    assert note(path=str(path)).text == text


@pytest.mark.parametrize("make", FROM_FILE)
def test_a_text_or_a_file_and_not_both(make: Callable[..., Segment], tmp_path: Path) -> None:
    for arguments in ({}, {"text": "text", "path": tmp_path}, {"text": "", "path": tmp_path}):
        with pytest.raises(UsageError):
            make(**arguments)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80"])
def test_a_file_that_is_not_utf8_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"canary " + content)
    with pytest.raises(PromptError, match="not UTF-8") as caught:
        note(path=path)
    assert "canary" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "x" / "y", "", "a\x00b"):
        with pytest.raises(PromptError):
            note(path=path)


def test_a_file_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_FILE_BYTES", 10)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert len(note(path=path).text) == 10
    path.write_bytes(b"x" * 11)
    with pytest.raises(PromptError, match="larger than 10 bytes"):
        note(path=path)


def test_an_endless_file_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_FILE_BYTES", 1000)
    with pytest.raises(PromptError, match="larger"):
        note(path="/dev/zero")


def test_a_segment_shows_neither_text_nor_source() -> None:
    shown = repr(Segment(Role.NOTE, "canary text", Label.PRIVATE, "canary.txt"))
    assert "canary" not in shown
