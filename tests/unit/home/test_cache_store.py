"""The state folder's store: its key and folder, and the commands that show and empty it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from splitinfer.cli.main import main
from splitinfer.errors import StateError
from splitinfer.home import Home
from splitinfer.home.cache_store import open_store
from tests.support.public_caches import FACTS, BytesPacked, cache_files, get, prefix_of

LIMIT = 1 << 20
ONE = prefix_of(1, 2, 3)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


def test_the_store_key_is_made_once_for_the_owner_alone(home: Home) -> None:
    open_store(home, max_bytes=LIMIT).put(ONE, BytesPacked(b"x" * 9), FACTS)
    path = home.path / "keys" / "store.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((home.path / "store").stat().st_mode) == 0o700
    assert get(open_store(home, max_bytes=LIMIT), ONE, 9).cache == b"x" * 9
    assert home.secret("store") == bytes.fromhex(path.read_text())
    assert Home(home.path.with_name("other")).secret("store") != home.secret("store")


def test_an_unusable_store_key_is_refused_without_showing_it(home: Home) -> None:
    home.secret("store")
    (home.path / "keys" / "store.key").write_text("abcd")
    with pytest.raises(StateError, match=r"store\.key") as caught:
        open_store(home, max_bytes=LIMIT)
    assert "abcd" not in str(caught.value)


def test_a_new_key_finds_nothing_of_the_old_one(home: Home) -> None:
    open_store(home, max_bytes=LIMIT).put(ONE, BytesPacked(b"x" * 9), FACTS)
    (home.path / "keys" / "store.key").unlink()
    assert get(open_store(home, max_bytes=LIMIT), ONE, 9) is None


def command(home: Home, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["--home", str(home.path), "store", *words]) == 0
    return capsys.readouterr().out


def test_commands_show_and_empty_the_store(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(home, capsys, "list") == ""
    store = open_store(home, max_bytes=LIMIT)
    store.put(ONE, BytesPacked(b"x" * 9), FACTS)
    store.put(prefix_of(4, 5, 6), BytesPacked(b"y" * 9), FACTS)
    oldest, newest = cache_files(home.path / "store")
    newest.write_bytes(b"damaged")
    listed = json.loads(command(home, capsys, "list", "--json"))["entries"]
    assert {entry["name"]: entry["facts"] for entry in listed} == {
        oldest.name: FACTS.model_dump(mode="json"),
        newest.name: None,
    }
    lines = sorted(command(home, capsys, "list").splitlines(), key=lambda line: "does not open" in line)
    assert lines[0].startswith(oldest.name[:16])
    assert "2 rows verified" in lines[0]
    assert "does not open with this store's key" in lines[1]
    info = json.loads(command(home, capsys, "info", "--json"))
    assert (info["caches"], info["unreadable"]) == (2, 1)
    assert info["bytes"] == sum(path.stat().st_size for path in cache_files(home.path / "store"))
    assert info["folder"] == str(home.path / "store")
    assert json.loads(command(home, capsys, "clear", "--json")) == {"removed": 2, "bytes": info["bytes"]}
    assert "caches      0" in command(home, capsys, "info")
    assert cache_files(home.path / "store") == []


def test_a_store_that_cannot_be_used_is_one_sentence_and_exit_code_2(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.path / "store").write_text("")
    assert main(["--home", str(home.path), "store", "info"]) == 2
    assert capsys.readouterr().err.startswith("error[store]: ")
