"""Single values of a policy file and the sentences that refuse them: TOML value -> checked value; device side, no IO.

What contradicts another value is `schema`'s to find.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from trust_models.labels import LabelName
from trust_models.modes import TrustMode
from trust_models.remote_url import check_url
from trust_models.section import refuse as _refuse

__all__ = [
    "MAX_VERIFY_ROWS",
    "ChunkTokens",
    "DefaultLabel",
    "Megabits",
    "ModeWord",
    "Nats",
    "RemoteName",
    "ResumeAttempts",
    "Sha256",
    "StoreBytes",
    "Text",
    "Url",
    "VerifyRows",
]

_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHUNK_UNIT, _MAX_CHUNK, MAX_VERIFY_ROWS = 64, 4096, 64
_MAX_RESUMES = 5
_MIN_STORE_BYTES = 1024 * 1024
_MAX_NATS = 10.0
_MAX_MBIT = 1e6


def _hex_digest(value: str) -> str:
    if not _HEX.fullmatch(value.lower()):
        _refuse("a SHA-256 digest is expected; write its 64 hex digits")
    return value.lower()


def _some_text(value: str) -> str:
    if not value.strip() or not value.isprintable():
        _refuse("the text is empty or holds control characters; write a name, or leave the key out")
    return value


def _not_public(value: LabelName) -> LabelName:
    if value == "public":
        _refuse(
            'segments.default = "public" would publish every text that nobody labelled; write default = "private" '
            "and name each public source in a [[segments.rule]] or with --public"
        )
    return value


def _chunk(value: int) -> int:
    if value % _CHUNK_UNIT or not _CHUNK_UNIT <= value <= _MAX_CHUNK:
        _refuse(
            f"transfer.chunk_tokens is not a multiple of {_CHUNK_UNIT} from {_CHUNK_UNIT} to {_MAX_CHUNK}; "
            "write 512 unless you measured a better one"
        )
    return value


def _rows(value: int) -> int:
    if not 0 <= value <= MAX_VERIFY_ROWS:
        _refuse(f"transfer.verify_rows is outside 0 to {MAX_VERIFY_ROWS}; write a number of rows in that range")
    return value


def _resumes(value: int) -> int:
    if not 0 <= value <= _MAX_RESUMES:
        _refuse(
            f"transfer.resume_attempts is outside 0 to {_MAX_RESUMES}; write how often a lost connection may be made "
            "again in one transfer"
        )
    return value


def _store_limit(value: int) -> int:
    if value < _MIN_STORE_BYTES:
        _refuse(
            f"store.max_bytes is below {_MIN_STORE_BYTES}, too little for any cache; write a larger limit, "
            "or enabled = false"
        )
    return value


def _rate(value: float) -> float:
    if not 0 < value <= _MAX_MBIT:
        _refuse(
            f"transfer.link_mbit_per_second is outside 0 to {_MAX_MBIT:g}; write the link's rate in megabits a second"
        )
    return value


def _nats(value: float) -> float:
    if not 0 < value <= _MAX_NATS:
        _refuse(
            f"transfer.max_kl is outside 0 to {_MAX_NATS:g} nats; write 0.001, which no reader notices, or leave it out"
        )
    return value


def _mode_word(value: object) -> object:
    # Enum would format whatever it is given, and a hostile file can nest deeper than that bears.
    if not isinstance(value, str):
        _refuse(f"mode has the wrong type; write one of the words {', '.join(TrustMode)} in quotes")
    return value


def _remote_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        _refuse(
            "remote.name is not the name of an entry of the state folder; write letters, digits, '.', '_' and '-' "
            "only (at most 64), the first a letter or digit"
        )
    return value


def _url(value: str) -> str:
    try:
        return check_url(value)
    except ValueError as error:
        _refuse(str(error))


Sha256 = Annotated[str, AfterValidator(_hex_digest)]
Text = Annotated[str, AfterValidator(_some_text)]
# Lax, so that the word from the file becomes a TrustMode; other words are still refused.
ModeWord = Annotated[TrustMode, Field(strict=False), BeforeValidator(_mode_word)]
DefaultLabel = Annotated[LabelName, AfterValidator(_not_public)]
RemoteName = Annotated[str, AfterValidator(_remote_name)]
Url = Annotated[str, AfterValidator(_url)]
ChunkTokens = Annotated[int, AfterValidator(_chunk)]
VerifyRows = Annotated[int, AfterValidator(_rows)]
ResumeAttempts = Annotated[int, AfterValidator(_resumes)]
StoreBytes = Annotated[int, AfterValidator(_store_limit)]
Nats = Annotated[float, AfterValidator(_nats)]
Megabits = Annotated[float, AfterValidator(_rate)]
