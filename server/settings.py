"""How the door is opened: a TOML file or values in, frozen ServerSettings out; cloud side."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitinfer.errors import UsageError
from trust_models.remote_url import is_loopback

__all__ = ["ServerSettings", "load_settings", "make_settings", "require_safe_address"]


class ServerSettings(BaseModel):
    """Address, TLS files and limits.

    `port` 0 lets the system choose; `max_transfers` run at one time and further ones are refused;
    `read_timeout_seconds` bounds every silence of a client, `drain_seconds` the end of the server.
    `max_rounds` sessions of rounds (`homomorphic`, `masked`) are served at one time, 0 for none.
    `max_sessions`, `session_bytes` and `session_idle_seconds` bound what is kept between turns for devices that let it,
    `prefix_bytes` and `prefix_device_bytes` the caches of public text, in all and of one device; 0 keeps nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8471, ge=0, le=65535)
    tls_certificate: Path | None = None
    tls_private_key: Path | None = None
    max_transfers: int = Field(default=4, ge=1, le=1024)
    max_rounds: int = Field(default=2, ge=0, le=64)
    max_connections: int = Field(default=256, ge=1, le=65536)
    max_body_bytes: int = Field(default=8 << 30, ge=1)
    read_timeout_seconds: float = Field(default=30.0, gt=0, le=3600)
    drain_seconds: float = Field(default=30.0, ge=0, le=3600)
    max_sessions: int = Field(default=64, ge=0, le=65536)
    session_bytes: int = Field(default=4 << 30, ge=0)
    session_idle_seconds: float = Field(default=600.0, gt=0, le=86400)
    prefix_bytes: int = Field(default=1 << 30, ge=0)
    prefix_device_bytes: int = Field(default=256 << 20, ge=0)


def make_settings(values: Mapping[str, object]) -> ServerSettings:
    """Return checked settings; raises UsageError that names every wrong key, never its value."""
    try:
        settings = ServerSettings.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(f"{_key(item['loc'])}: {item['msg']}" for item in error.errors(include_input=False))
        raise UsageError(f"the server's settings cannot be used: {wrong}") from None
    require_safe_address(settings)
    return settings


def load_settings(path: Path) -> ServerSettings:
    """Read settings from a TOML file, from its `[server]` table or its top level; raises UsageError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the settings file cannot be read ({type(error).__name__})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise UsageError("the settings file is not TOML") from None
    nested = table.get("server")
    if isinstance(nested, dict) and len(table) == 1:
        table = nested
    return make_settings(table)


def require_safe_address(settings: ServerSettings) -> None:
    """Refuse half a TLS set-up, and a public address without TLS; raises UsageError."""
    if (settings.tls_certificate is None) != (settings.tls_private_key is None):
        raise UsageError("tls_certificate and tls_private_key belong together; give both files or neither")
    if settings.tls_certificate is None and not is_loopback(settings.host):
        raise UsageError(
            "the server would listen to other machines without TLS; give tls_certificate and tls_private_key, "
            'or write host = "127.0.0.1"'
        )


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
