from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import StateError
from splitinfer.home import Home
from splitinfer.home.audit_log import open_log, receipt_keeper
from splitinfer.home.folder import read_hex, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_is_made_for_the_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        home = Home(tmp_path / "a" / "state")
        home.key("device")
        open_log(home).close()
        receipt_keeper(home)("0" * 32, b"{}")
    finally:
        os.umask(before)
    for path in [home.path, *home.path.rglob("*")]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("bits", [0o710, 0o701, 0o750, 0o755, 0o777, 0o740, 0o704])
def test_a_folder_that_others_can_read_is_refused(tmp_path: Path, bits: int) -> None:
    tmp_path.joinpath("state").mkdir()
    tmp_path.joinpath("state").chmod(bits)
    with pytest.raises(StateError, match="chmod 700"):
        Home(tmp_path / "state")
    assert mode(tmp_path / "state") == bits, "the folder was changed"


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError):
        Home(tmp_path / "state")
    with pytest.raises(StateError):
        Home(tmp_path / "state" / "below")


def test_the_given_folder_comes_before_the_environments_and_that_before_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path / "environment"))
    assert Home.find(str(tmp_path / "given")).path == tmp_path / "given"
    assert Home.find().path == tmp_path / "environment"
    monkeypatch.delenv("SPLITINFER_HOME")
    assert Home.find().path == tmp_path / "user" / ".splitinfer"


def test_a_key_is_made_once(home: Home) -> None:
    assert not home.has_key("device")
    first = home.key("device").private_bytes_raw()
    assert home.has_key("device")
    assert home.key("device").private_bytes_raw() == first
    assert Home(home.path).key("device").private_bytes_raw() == first
    assert home.key("checkpoint").private_bytes_raw() != first


def test_the_public_half_lies_beside_a_key(home: Home) -> None:
    key = home.key("device")
    assert read_hex(home.path / "keys" / "device.pub", 32) == key.public_key().public_bytes_raw()


def test_a_public_half_that_was_lost_is_written_again(home: Home) -> None:
    """A crash may come between the two files."""
    key = home.key("device")
    (home.path / "keys" / "device.pub").unlink()
    home.key("device")
    assert read_hex(home.path / "keys" / "device.pub", 32) == key.public_key().public_bytes_raw()


def test_two_processes_that_make_a_key_at_once_agree_on_it(tmp_path: Path) -> None:
    """Else one of them would sign the log with a checkpoint key that nobody keeps."""

    def make(home: Home, barrier: threading.Barrier, made: list[bytes]) -> None:
        barrier.wait()
        made.append(home.key("checkpoint").private_bytes_raw())

    for attempt in range(10):
        home, barrier = Home(tmp_path / str(attempt)), threading.Barrier(4)
        made: list[bytes] = []
        threads = [threading.Thread(target=make, args=(home, barrier, made)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        key = home.key("checkpoint")
        assert set(made) == {key.private_bytes_raw()}
        public = read_hex(home.path / "keys" / "checkpoint.pub", 32)
        assert public == key.public_key().public_bytes_raw()


@pytest.mark.parametrize(
    "content", [b"", b"zz", b"ab" * 31, b"ab" * 33, b"\xff" * 32, b"ab" * 32 + b"\nab", bytes(range(32))]
)
def test_a_damaged_key_is_refused_and_never_replaced(home: Home, content: bytes) -> None:
    home.key("device")
    path = home.path / "keys" / "device.key"
    path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        home.key("device")
    assert path.read_bytes() == content
    shown = content[:8].decode("latin-1")
    assert not shown or shown not in str(caught.value)


def test_a_key_that_cannot_be_read_is_refused(home: Home) -> None:
    home.key("device")
    path = home.path / "keys" / "device.key"
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError):
        home.key("device")


def test_a_folder_of_keys_that_is_no_folder_is_refused_by_a_typed_error(home: Home) -> None:
    (home.path / "keys").write_text("")
    with pytest.raises(StateError):
        home.key("device")
    with pytest.raises(StateError):
        home.has_key("device")


def test_a_folder_of_receipts_that_is_no_folder_is_refused_by_a_typed_error(home: Home) -> None:
    (home.path / "receipts").write_text("")
    with pytest.raises(StateError):
        receipt_keeper(home)("0" * 32, b"{}")


def test_the_origin_of_the_log_is_that_of_its_checkpoint_key(home: Home, tmp_path: Path) -> None:
    public = home.key("checkpoint").public_key().public_bytes_raw().hex()
    assert home.log_origin == f"splitinfer/{public[:16]}"
    assert Home(tmp_path / "other").log_origin != home.log_origin


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=200))
@settings(deadline=None, max_examples=20)
def test_a_small_file_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("folder") / "file"
    write_private(path, text)
    assert path.read_text(encoding="utf-8") == text
    assert mode(path) == 0o600


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_private(path, "old")

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(StateError, match="No space left"):
        write_private(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "file", []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        assert self.read_text() == "new"
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_private(path, "new")
    assert order[:2] == ["fsync", "replace"]


def test_a_write_to_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        write_private(tmp_path / "missing" / "file", "text")


@given(data=st.binary(min_size=1, max_size=40))
@settings(deadline=None, max_examples=20)
def test_hexadecimal_comes_back(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("folder") / "file"
    write_private(path, data.hex() + "\n")
    assert read_hex(path, len(data)) == data
    with pytest.raises(StateError):
        read_hex(path, len(data) + 1)
