"""Text for a terminal: what a model or another machine wrote may not steer it."""

from __future__ import annotations

import sys
from typing import TextIO

__all__ = ["for_terminal", "printable"]

_KEPT = "\n\t"


def printable(text: str) -> str:
    """Replace control characters (C0, DEL, C1) but line feed and tab by U+FFFD."""
    return "".join("\ufffd" if _is_control(letter) else letter for letter in text)


def for_terminal(text: str, *, stream: TextIO | None = None) -> str:
    """Return the text as it is for a file or pipe, and `printable` for a terminal."""
    return printable(text) if (stream or sys.stdout).isatty() else text


def _is_control(letter: str) -> bool:
    return letter not in _KEPT and (letter < " " or "\x7f" <= letter <= "\x9f")
