"""Remotes by name: where a cloud is and which identity is pinned; `remotes/NAME.toml` in the state folder."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from splitinfer.errors import StateError
from splitinfer.home.folder import Home, write_private

__all__ = ["Remote", "load_remote", "save_remote"]

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
_PIN = re.compile(r"^[0-9a-f]{64}$")


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
    url, pin, tls_ca = values.get("url"), values.get("identity_sha256"), values.get("tls_ca")
    if not isinstance(url, str) or not isinstance(pin, str) or not _PIN.match(pin) or set(values) - _KEYS:
        raise StateError(f"the remote {name!r} must have url and identity_sha256, may have tls_ca, and nothing else")
    return Remote(url, pin, Path(tls_ca) if isinstance(tls_ca, str) else None)


_KEYS = {"url", "identity_sha256", "tls_ca"}


def save_remote(home: Home, name: str, remote: Remote) -> None:
    """Write a remote; raises StateError for a name, URL or path that would not read back."""
    path = _path(home, name)
    values = [remote.url, remote.identity_sha256, str(remote.tls_ca or "")]
    if any('"' in value or "\\" in value or not value.isprintable() for value in values):
        raise StateError("a remote's url and tls_ca may not contain quotes, backslashes or control characters")
    lines = [f'url = "{remote.url}"', f'identity_sha256 = "{remote.identity_sha256}"']
    lines += [f'tls_ca = "{remote.tls_ca}"'] if remote.tls_ca else []
    write_private(path, "\n".join(lines) + "\n")


def _path(home: Home, name: str) -> Path:
    if not _NAME.match(name):
        raise StateError("a remote's name has letters, digits, dots, dashes and underscores, 64 at most")
    folder = home.path / "remotes"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{name}.toml"
