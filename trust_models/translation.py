"""What pydantic found -> one sentence that names the key and says what to write instead; device side."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from trust_models.modes import TrustMode
from trust_models.noise import Noise, Sampling
from trust_models.rounds import Homomorphic, Masked
from trust_models.schema import Audit, Fallback, Model, Policy, Remote, SegmentRule, Segments, Session, Store, Transfer

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["sentence"]

_TABLES: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        "": Policy,
        "model": Model,
        "segments": Segments,
        "segments.rule": SegmentRule,
        "remote": Remote,
        "transfer": Transfer,
        "store": Store,
        "session": Session,
        "fallback": Fallback,
        "audit": Audit,
        "noise": Noise,
        "sampling": Sampling,
        "homomorphic": Homomorphic,
        "masked": Masked,
    }
)
_TYPES = MappingProxyType(
    {
        "string_type": 'a text: "..."',
        "int_type": "a whole number without quotes",
        "float_type": "a number without quotes",
        "bool_type": "true or false without quotes",
    }
)
_MODE_WORDS = ", ".join(TrustMode)
_SHOWN_LETTERS = 40


def sentence(error: ValidationError) -> str:
    """Return the first finding as a sentence, and how many there are besides."""
    first, *others = error.errors(include_url=False)
    more = f" (and {len(others)} more)" if others else ""
    return f"{_one(first)}{more}"


def _one(found: ErrorDetails) -> str:
    path, kind = _path(found["loc"]), found["type"]
    if kind == "extra_forbidden":
        return _unknown_key(found["loc"])
    if kind == "missing":
        return _missing(path)
    if kind == "policy":
        return _own(path, found["msg"])
    if kind in {"enum", "literal_error"}:
        return _unknown_word(path, found)
    if path == "segments.rule" or kind == "model_type":
        form = f"[[{path}]]" if path == "segments.rule" else f"[{path}]"
        return f"{path} is not a table; write {form} and its keys below"
    expected = _TYPES.get(kind, "a value of the type that the documentation names")
    return f"{path} has the wrong type; write {expected}"


def _own(path: str, message: str) -> str:
    # Checks that serve several keys do not know which one they look at.
    general = message.startswith(("a SHA-256", "the text is"))
    return f"{path}: {message}" if general else message


def _path(location: Sequence[int | str]) -> str:
    return ".".join(part for part in location if isinstance(part, str))


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}...")


def _missing(path: str) -> str:
    if path == "mode":
        return f'mode is missing; write mode = "WORD" above the first [section], WORD one of {_MODE_WORDS}'
    if path == "segments.rule.label":
        return 'a [[segments.rule]] has no label; write label = "private" or label = "public"'
    return f"{path} is missing; write it"


def _unknown_word(path: str, found: ErrorDetails) -> str:
    if not isinstance(found["input"], str):
        return f"{path} has the wrong type; write one of the words {_words(path, found)} in quotes"
    return f"{path} = {_shown(found['input'])} is not known; write one of: {_words(path, found)}"


def _words(path: str, found: ErrorDetails) -> str:
    return _MODE_WORDS if path == "mode" else str(found.get("ctx", {}).get("expected", "")).replace("'", "")


def _unknown_key(location: Sequence[int | str]) -> str:
    table, key = _path(location[:-1]), str(location[-1])
    known = tuple(_TABLES[table].model_fields) if table in _TABLES else ()
    where = f"in [{table}]" if table else "at the top"
    near = difflib.get_close_matches(key, known, n=1)
    elsewhere = [name for name, model in _TABLES.items() if name != table and key in model.model_fields]
    if elsewhere:
        home = f"[{elsewhere[0]}]" if elsewhere[0] else "the top of the file, above the first [section]"
        advice = f"move it to {home}"
    elif near:
        advice = f"write {near[0]}"
    else:
        guess = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        advice = f"the nearest known key is {guess[0]}; the known ones are {', '.join(known)}"
    return f"unknown key {_shown(key)} {where}; {advice}"
