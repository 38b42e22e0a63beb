"""Remotes by name: where a cloud is and which identity is pinned; `remotes/NAME.toml` in the state folder."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from splitinfer.errors import StateError
from splitinfer.home.folder import Home, write_private
from trust_models.remote_url import check_url

__all__ = ["Remote", "load_remote", "save_remote"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PIN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Remote:
    """A cloud: URL, the pinned hex SHA-256 of its identity key, and a CA file for TLS where it is not public."""

    url: str
    identity_sha256: str
    tls_ca: Path | None = None


def load_remote(home: Home, name: str) -> Remote:
    """Read a remote; raises StateError that says how to make one."""
    path = _path(home, name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = f"run `splitinfer keys trust {name} URL`"
        raise StateError(f"there is no remote named {name!r} in the state folder; {hint}") from error
    except (OSError, ValueError) as error:
        raise StateError(f"the remote {name!r} cannot be read") from error
    if not _is_remote(values):
        raise StateError(f"the remote {name!r} must have url and identity_sha256, may have tls_ca, and nothing else")
    tls_ca = values.get("tls_ca")
    return Remote(values["url"], values["identity_sha256"], Path(tls_ca) if tls_ca else None)


def _is_remote(values: dict[str, object]) -> bool:
    texts = all(isinstance(value, str) for value in values.values())
    known = {"url", "identity_sha256"} <= set(values) <= _KEYS
    return texts and known and _PIN.fullmatch(str(values["identity_sha256"])) is not None


_KEYS = {"url", "identity_sha256", "tls_ca"}


def save_remote(home: Home, name: str, remote: Remote) -> None:
    """Write a remote; raises StateError for a name, URL or path that would not read back."""
    path = _path(home, name)
    if not _PIN.fullmatch(remote.identity_sha256):
        raise StateError("an identity is 64 lower-case hexadecimal digits")
    try:
        check_url(remote.url)
    except ValueError as error:
        raise StateError(str(error)) from None
    values = [remote.url, str(remote.tls_ca or "")]
    if any('"' in value or "\\" in value or not value.isprintable() for value in values):
        raise StateError("a remote's url and tls_ca may not contain quotes, backslashes or control characters")
    lines = [f'url = "{remote.url}"', f'identity_sha256 = "{remote.identity_sha256}"']
    lines += [f'tls_ca = "{remote.tls_ca}"'] if remote.tls_ca else []
    write_private(path, "\n".join(lines) + "\n")


def _path(home: Home, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise StateError("a remote's name has letters, digits, dots, dashes and underscores, 64 at most")
    return home.folder("remotes") / f"{name}.toml"
