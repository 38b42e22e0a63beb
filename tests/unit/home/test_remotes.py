from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import StateError
from splitinfer.home import Home
from splitinfer.home.remotes import Remote, load_remote, save_remote

PIN = "ab" * 32
REMOTE = Remote("https://cloud.example:8443", PIN)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    url=st.text(min_size=1, max_size=60),
    tls_ca=st.none() | st.text(min_size=1, max_size=40).map(Path),
)
@settings(deadline=None, max_examples=60)
def test_what_was_saved_comes_back_or_was_refused(
    name: str, url: str, tls_ca: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(tmp_path_factory.mktemp("home") / "state")
    remote = Remote(url, PIN, tls_ca)
    try:
        save_remote(home, name, remote)
    except StateError:
        return
    assert load_remote(home, name) == remote


def test_an_ordinary_remote_is_saved(home: Home) -> None:
    for remote in (REMOTE, Remote("https://[::1]:8443/", PIN, Path("/etc/ssl/our ca.pem"))):
        save_remote(home, "default", remote)
        assert load_remote(home, "default") == remote
    assert (home.path / "remotes" / "default.toml").stat().st_mode & 0o777 == 0o600


@given(name=st.text(max_size=80))
@settings(deadline=None, max_examples=80)
def test_a_name_is_plain_or_refused(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = Home(tmp_path_factory.mktemp("home") / "state")
    try:
        save_remote(home, name, REMOTE)
    except StateError:
        return
    assert name.isascii()
    assert [path.name for path in (home.path / "remotes").iterdir()] == [f"{name}.toml"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-x", "x" * 65, "a b", "x\n", "ä"])
def test_a_name_that_is_a_path_or_odd_is_refused(home: Home, name: str) -> None:
    with pytest.raises(StateError):
        save_remote(home, name, REMOTE)
    with pytest.raises(StateError):
        load_remote(home, name)


@pytest.mark.parametrize("pin", ["", "ab", "AB" * 32, PIN + "\n", PIN + "0", "zz" * 32])
def test_a_pin_that_is_no_fingerprint_is_refused_when_it_is_saved(home: Home, pin: str) -> None:
    with pytest.raises(StateError):
        save_remote(home, "default", Remote("https://cloud.example", pin))


def test_an_unknown_remote_says_how_to_make_one(home: Home) -> None:
    with pytest.raises(StateError, match="splitinfer keys trust other URL"):
        load_remote(home, "other")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "url = 1",
        'url = "https://x"',
        f'identity_sha256 = "{PIN}"',
        f'url = "https://x"\nidentity_sha256 = "{PIN[:-1]}"',
        f'url = "https://x"\nidentity_sha256 = "{PIN.upper()}"',
        f'url = "https://x"\nidentity_sha256 = "{PIN}\\n"',
        f'url = "https://x"\nidentity_sha256 = "{PIN}"\nextra = 1',
        f'url = "https://x"\nidentity_sha256 = "{PIN}"\ntls_ca = 5',
        f'url = "https://x"\nidentity_sha256 = "{PIN}"\ntls_ca = ["/ca.pem"]',
        f'url = "https://x"\nidentity_sha256 = "{PIN}"\ntls_ca = false',
        f'url = "https://x"\nurl = "https://y"\nidentity_sha256 = "{PIN}"',
        "not toml",
    ],
)
def test_a_remote_of_another_form_is_refused(home: Home, text: str) -> None:
    save_remote(home, "default", REMOTE)
    (home.path / "remotes" / "default.toml").write_text(text)
    with pytest.raises(StateError):
        load_remote(home, "default")


def test_bytes_that_are_no_text_are_refused(home: Home) -> None:
    save_remote(home, "default", REMOTE)
    (home.path / "remotes" / "default.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(StateError):
        load_remote(home, "default")


@pytest.mark.parametrize("text", ['https://x"\nextra = "1', "https://x\\u0041", "https://x\n", "https://x\x00"])
def test_a_url_cannot_write_another_line(home: Home, text: str) -> None:
    with pytest.raises(StateError):
        save_remote(home, "default", Remote(text, PIN))
    with pytest.raises(StateError):
        save_remote(home, "default", Remote("https://x", PIN, Path(text)))


def test_a_folder_of_remotes_that_is_no_folder_is_refused_by_a_typed_error(home: Home) -> None:
    (home.path / "remotes").write_text("")
    with pytest.raises(StateError):
        save_remote(home, "default", REMOTE)
    with pytest.raises(StateError):
        load_remote(home, "default")
