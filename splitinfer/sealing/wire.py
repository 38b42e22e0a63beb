"""What everything parsed from the wire has in common: canonical JSON into frozen, strict models; both sides."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from splitinfer.errors import ManifestError
from splitinfer.sealing.encoding import canonical, parse_canonical

__all__ = [
    "VERSION",
    "Count",
    "Decimals",
    "Hex16",
    "Hex32",
    "Hex64",
    "Seconds",
    "Short",
    "Version",
    "WireModel",
    "parse_wire",
]

VERSION = 1

Hex16 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Version = Annotated[int, Field(ge=0, le=2**16)]
Seconds = Annotated[int, Field(ge=0, le=2**53 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Short = Annotated[str, StringConstraints(max_length=64)]
Decimals = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}(\.[0-9]{1,20})?$")]


class WireModel(BaseModel):
    """Base of everything that is parsed from the wire: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_bytes(self) -> bytes:
        """Encode as canonical JSON."""
        return canonical(self.model_dump(mode="json"))

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the canonical encoding."""
        return hashlib.sha256(self.to_bytes()).digest()


W = TypeVar("W", bound=WireModel)
_FIELD = re.compile(r"[a-z0-9_.()]{1,80}")


def parse_wire(model: type[W], data: bytes, *, what: str) -> W:
    """Parse canonical JSON into a wire model; raises ManifestError, naming the field and never its value."""
    _check_versions(parse_canonical(data, what=what), what)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "(whole)"
        # An unknown member's name is the sender's own text, which may not reach a terminal.
        shown = field if _FIELD.fullmatch(field) else "(unknown)"
        raise ManifestError(f"the {what} has a wrong or unknown field: {shown}") from None


def _check_versions(value: dict[str, object], what: str) -> None:
    """Refuse another version before its fields, which may be unknown here, are looked at."""
    version = value.get("version", VERSION)
    if isinstance(version, int) and version != VERSION:
        raise ManifestError(f"the {what} is of another protocol version than {VERSION}; update the older side")
    for member in value.values():
        if isinstance(member, dict):
            _check_versions(member, what)
