"""Canonical JSON (RFC 8785) and length-prefixed framing of everything that is signed, hashed or sealed; both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping

import rfc8785

from splitinfer.errors import ManifestError

__all__ = ["canonical", "parse_canonical", "prefixed"]


def canonical(value: Mapping[str, object]) -> bytes:
    """Encode as RFC 8785 canonical JSON; non-integers must already be decimal strings."""
    return rfc8785.dumps(dict(value))  # type: ignore[arg-type]


def parse_canonical(data: bytes, *, what: str) -> dict[str, object]:
    """Parse one JSON object and refuse any encoding of it but the canonical one.

    Raises:
        ManifestError: not UTF-8 JSON, not an object, or not canonical (duplicate keys included).
    """
    try:
        value = json.loads(data.decode("utf-8"))
        again = rfc8785.dumps(value)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ManifestError(f"the {what} is not JSON") from error
    if not isinstance(value, dict) or again != data:
        raise ManifestError(f"the {what} is not canonical JSON (RFC 8785)")
    return value


def prefixed(data: bytes) -> bytes:
    """Put the 4-byte big-endian length in front."""
    return len(data).to_bytes(4, "big") + data
