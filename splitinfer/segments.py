"""Prompt pieces as a caller writes them: text or a file -> `Segment`; on the device."""

from __future__ import annotations

from pathlib import Path

from splitinfer.errors import PromptError, UsageError
from splitinfer.handoff import Label, Role, Segment

__all__ = ["document", "message", "note", "private", "public", "question"]

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


def _segment(role: Role, text: str | None, path: str | Path | None, label: Label | None) -> Segment:
    if (text is None) == (path is None):
        raise UsageError(f"a {role.value} takes either a text or path=FILE")
    return Segment(role, text if text is not None else _read(Path(path or "")), label, str(path or ""))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise PromptError(f"the file {path} is larger than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise PromptError(f"the file {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise PromptError(f"the file {path} is not UTF-8 text") from error
