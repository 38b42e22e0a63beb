"""What every section of a policy shares: frozen, strict, closed; and how one is refused; device side, no IO."""

from __future__ import annotations

from typing import NoReturn

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

__all__ = ["Section", "refuse"]


class Section(BaseModel):
    """A table of a policy file: unknown keys and wrong types are refused, and no message shows a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


def refuse(sentence: str) -> NoReturn:
    """Refuse what is being checked; the sentence says what to write instead."""
    raise PydanticCustomError("policy", "{sentence}", {"sentence": sentence})
