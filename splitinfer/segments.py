"""Prompt pieces as a caller writes them: text or a file -> `Segment`; on the device."""

from __future__ import annotations

import os
from pathlib import Path

from splitinfer.errors import PromptError, UsageError
from splitinfer.handoff import Label, Role, Segment

__all__ = ["answered", "document", "message", "note", "private", "public", "question"]

MAX_FILE_BYTES = 64 * 1024 * 1024


def public(text: str | None = None, *, path: str | Path | None = None) -> Segment:
    """Make a document that the other side may read, from a text or a UTF-8 file; a policy rule may still demote it."""
    return _segment(Role.DOCUMENT, text, path, Label.PUBLIC)


def document(text: str | None = None, *, path: str | Path | None = None) -> Segment:
    """Make an unlabelled document: private, unless a policy rule names its source as public."""
    return _segment(Role.DOCUMENT, text, path, None)


def note(text: str | None = None, *, path: str | Path | None = None) -> Segment:
    """Make a private note, from a text or a UTF-8 file."""
    return _segment(Role.NOTE, text, path, Label.PRIVATE)


private = note


def question(text: str) -> Segment:
    """Make the private question."""
    return _segment(Role.QUESTION, text, None, Label.PRIVATE)


def message(text: str) -> Segment:
    """Make a private message of the conversation."""
    return _segment(Role.MESSAGE, text, None, Label.PRIVATE)


def answered(text: str) -> Segment:
    """Make a private segment of what the model answered in an earlier turn, so that the next prompt goes on from it."""
    return _segment(Role.ANSWER, text, None, Label.PRIVATE)


def _segment(role: Role, text: str | None, path: str | Path | None, label: Label | None) -> Segment:
    if (text is None) == (path is None):
        raise UsageError(f"a {role.value} takes either a text or path=FILE")
    if path is None:
        return Segment(role, _checked(text or ""), label)
    location = os.path.abspath(path)
    return Segment(role, _checked(_read(Path(path))), label, str(path), location)


def _checked(text: str) -> str:
    # A lone surrogate cannot be tokenised; the text itself must not travel in the exception.
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PromptError("the text holds a lone surrogate, which is not a character")
    return text


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise PromptError(f"the file {path} cannot be read: {reason}") from error
    if len(data) > MAX_FILE_BYTES:
        raise PromptError(f"the file {path} is larger than {MAX_FILE_BYTES} bytes")
    text = _utf8(data)
    if text is None:
        # Raised here and not where it was found: that exception holds the file's content.
        raise PromptError(f"the file {path} is not UTF-8 text")
    return text


def _utf8(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
