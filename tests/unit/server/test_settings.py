"""Settings are a closed table, and a public address needs TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import ServerSettings, load_settings, make_settings
from splitinfer.errors import UsageError


@pytest.mark.parametrize("head", ["", "[server]\n"])
def test_table_and_top_level_are_read(tmp_path: Path, head: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(head + "port = 0\nmax_transfers = 2\n")
    assert load_settings(path) == ServerSettings(port=0, max_transfers=2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "prot"),
        ("port = 70000", "port"),
        ("max_transfers = 0", "max_transfers"),
        ("[server]\nport = 1\n[other]\nx = 1", "other"),
        ('host = "0.0.0.0"', "TLS"),
        ('host = "cloud.example"', "TLS"),
        ('tls_certificate = "c.pem"', "together"),
        ("port =", "TOML"),
    ],
)
def test_unusable_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=named):
        load_settings(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FileNotFoundError"):
        load_settings(tmp_path / "none.toml")


def test_value_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        make_settings({"port": "value-canary"})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert make_settings({"host": host}).host == host


def test_public_address_with_tls_is_accepted() -> None:
    values = {"host": "0.0.0.0", "tls_certificate": "c.pem", "tls_private_key": "k.pem"}  # noqa: S104
    assert make_settings(values).tls_certificate == Path("c.pem")
