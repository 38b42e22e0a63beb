"""The store: what was stored is found, what does not open counts as not there, old ones go, failures leave nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitinfer.errors import StoreError, UsageError
from splitinfer.store.files import OsStoreFiles
from tests.support.lossy_files import LossyDisk, PowerLoss, Survivors
from tests.support.lossy_store_files import LossyStoreFiles
from tests.support.public_caches import (
    FACTS,
    BytesPacked,
    BytesSink,
    FullDisk,
    cache_files,
    get,
    open_store,
    prefix_of,
)

ONE, TWO, THREE = prefix_of(1, 2, 3), prefix_of(1, 2, 4), prefix_of(2, 2, 3)
DATA = bytes(range(256)) * 20
ENTRY_BYTES = 4192 + len(DATA) + 16


def put(store, prefix=ONE, data: bytes = DATA, facts=FACTS) -> None:
    store.put(prefix, BytesPacked(data), facts)


def test_what_was_stored_is_found_with_its_facts_by_any_process(tmp_path: Path) -> None:
    put(open_store(tmp_path / "store"))
    stored = get(open_store(tmp_path / "store"), ONE, len(DATA))
    assert (stored.cache, stored.facts) == (DATA, FACTS)


def test_what_was_not_stored_is_not_found_and_no_memory_is_made_for_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    put(store)
    made: list[BytesSink] = []
    assert store.get(TWO, lambda: made.append(BytesSink(1)) or made[0]) is None
    assert made == []


def test_storing_again_replaces(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    put(store)
    again = FACTS.model_copy(update={"verified_rows": 40})
    put(store, data=DATA[::-1], facts=again)
    stored = get(store, ONE, len(DATA))
    assert (stored.cache, stored.facts) == (DATA[::-1], again)
    assert len(cache_files(tmp_path / "store")) == 1


def test_everything_is_for_the_owner_alone_and_names_tell_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        put(open_store(tmp_path / "store"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()} == {0o600}
    assert sorted(map(len, os.listdir(tmp_path / "store"))) == [len("lock"), 64]


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 17, 25, 60, 90, 4000, 4191, 4192, 6000, -1])
def test_a_damaged_cache_is_not_found_and_is_removed(tmp_path: Path, at: int) -> None:
    store = open_store(tmp_path / "store")
    put(store)
    (path,) = cache_files(tmp_path / "store")
    damage(path, at)
    sink = BytesSink(len(DATA))
    assert store.get(ONE, lambda: sink) is None
    assert sink.is_wiped
    assert cache_files(tmp_path / "store") == []
    put(store)
    assert get(store, ONE, len(DATA)).cache == DATA


@pytest.mark.parametrize("size", [0, 10, 4192, 4193, ENTRY_BYTES - 1])
def test_a_truncated_cache_is_not_found_and_is_removed(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path / "store")
    put(store)
    (path,) = cache_files(tmp_path / "store")
    os.truncate(path, size)
    assert get(store, ONE, len(DATA)) is None
    assert cache_files(tmp_path / "store") == []


def test_swapped_files_are_not_found(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    put(store, ONE)
    put(store, TWO, DATA[::-1])
    first, second = cache_files(tmp_path / "store")
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert get(store, ONE, len(DATA)) is None
    assert get(store, TWO, len(DATA)) is None


def test_a_file_of_another_model_under_this_ones_name_is_not_found(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    other = prefix_of(1, 2, 3, recipient_identity_sha256="0" * 64)
    put(store, other)
    (path,) = cache_files(tmp_path / "store")
    put(store, ONE)
    target = next(found for found in cache_files(tmp_path / "store") if found != path)
    target.write_bytes(path.read_bytes())
    assert get(store, ONE, len(DATA)) is None
    assert get(store, other, len(DATA)).cache == DATA


def test_another_store_key_finds_nothing_and_removes_nothing(tmp_path: Path) -> None:
    put(open_store(tmp_path / "store"))
    other = open_store(tmp_path / "store", key=b"\x07" * 32)
    assert get(other, ONE, len(DATA)) is None
    assert [entry.facts for entry in other.entries()] == [None]
    assert get(open_store(tmp_path / "store"), ONE, len(DATA)).cache == DATA


def test_a_link_in_a_files_place_is_not_followed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    put(store)
    (path,) = cache_files(tmp_path / "store")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert get(store, ONE, len(DATA)) is None
    put(store)
    assert not path.is_symlink()
    assert (tmp_path / "elsewhere").exists()


def test_a_cache_of_another_number_of_tokens_is_not_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    with pytest.raises(UsageError):
        store.put(ONE, BytesPacked(DATA, true_tokens=4), FACTS)
    assert cache_files(tmp_path / "store") == []


# --- the limit --------------------------------------------------------------------------------------------------


def test_the_least_recently_used_cache_goes_first(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", max_bytes=2 * ENTRY_BYTES)
    put(store, ONE)
    put(store, TWO)
    assert get(store, ONE, len(DATA)) is not None
    put(store, THREE)
    assert get(store, TWO, len(DATA)) is None
    assert get(store, ONE, len(DATA)) is not None
    assert get(store, THREE, len(DATA)) is not None


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=12))
def test_the_store_never_exceeds_its_limit_and_keeps_the_newest(tmp_path: Path, sizes: list[int]) -> None:
    limit = 40_000
    store = open_store(tmp_path / "store", max_bytes=limit)
    store.clear()
    for token, size in enumerate(sizes):
        put(store, prefix_of(token, 0, 0), b"x" * size)
        entries = store.entries()
        assert sum(entry.size_bytes for entry in entries) <= limit
        assert get(store, prefix_of(token, 0, 0), size) is not None


def test_a_cache_larger_than_the_limit_is_refused_and_removes_no_other(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", max_bytes=2 * ENTRY_BYTES)
    put(store, ONE)
    with pytest.raises(StoreError, match="max_bytes"):
        put(store, TWO, b"x" * 3 * ENTRY_BYTES)
    assert [path.stat().st_size for path in cache_files(tmp_path / "store")] == [ENTRY_BYTES]


def test_entries_are_listed_the_least_recently_used_first_and_cleared(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    put(store, ONE)
    put(store, TWO, facts=FACTS.model_copy(update={"tokens": 99}))
    get(store, ONE, len(DATA))
    entries = store.entries()
    assert [entry.facts.tokens for entry in entries] == [99, 3]
    assert [entry.size_bytes for entry in entries] == [ENTRY_BYTES] * 2
    assert store.clear() == entries
    assert store.entries() == []
    assert cache_files(tmp_path / "store") == []


def test_one_cache_is_forgotten_and_the_other_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    put(store, ONE)
    put(store, TWO)
    store.forget(ONE)
    store.forget(ONE)
    assert get(store, ONE, len(DATA)) is None
    assert get(store, TWO, len(DATA)) is not None


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 1000, len(DATA), len(DATA) + 100, ENTRY_BYTES - 1])
def test_a_full_disk_leaves_no_part_and_the_cache_of_before(tmp_path: Path, room: int) -> None:
    put(open_store(tmp_path / "store"))
    full = open_store(tmp_path / "store", files=FullDisk(room))
    with pytest.raises(StoreError, match="No space left on device"):
        put(full, data=DATA[::-1])
    with pytest.raises(StoreError):
        put(full, TWO)
    assert [path.stat().st_size for path in cache_files(tmp_path / "store")] == [ENTRY_BYTES]
    assert get(full, ONE, len(DATA)).cache == DATA


@pytest.mark.parametrize("operation", ["fsync", "rename", "touch"])
def test_a_failure_of_any_step_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    store = open_store(tmp_path / "store")

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(OsStoreFiles, operation, fail)
    with pytest.raises(StoreError, match="Input/output"):
        put(store)
    assert cache_files(tmp_path / "store") == []


def test_an_interrupt_while_storing_leaves_no_part(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")

    class Interrupted(BytesPacked):
        def slabs(self):
            yield memoryview(DATA)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put(ONE, Interrupted(DATA), FACTS)
    assert cache_files(tmp_path / "store") == []


@pytest.mark.parametrize("bits", [0o755, 0o710, 0o701])
def test_a_folder_that_others_can_read_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(bits)
    with pytest.raises(StoreError, match="chmod 700"):
        open_store(tmp_path / "store")


def test_a_file_or_nothing_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError):
        open_store(tmp_path / "store")
    with pytest.raises(StoreError):
        open_store(tmp_path / "missing" / "store")


def test_a_store_key_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_store(tmp_path / "store", key=b"short")


@pytest.mark.parametrize("kind", ["none", "all", "torn", "zeros", "random 1", "random 2"])
def test_after_a_loss_of_power_anywhere_a_cache_is_right_or_not_there(kind: str) -> None:
    """Every operation of storing once, then again; what is found afterwards is whole, and the store goes on."""
    path, point = Path("/home/store"), 0
    is_over = False
    while not is_over:
        point += 1
        disk = LossyDisk()
        disk.power_loss_at = point
        stored: list[bytes] = []
        try:
            store = open_store(path, files=LossyStoreFiles(disk))
            for data in (DATA, DATA[::-1]):
                put(store, data=data)
                stored.append(data)
            is_over = True
        except PowerLoss:
            pass
        again = open_store(path, files=LossyStoreFiles(disk.after_power_loss(Survivors(kind))))
        found = get(again, ONE, len(DATA))
        assert found is not None or not stored, "what was stored durably is there"
        assert found is None or found.cache in {DATA, DATA[::-1]}
        put(again, TWO)
        assert get(again, TWO, len(DATA)).cache == DATA
        assert not [name for name in again._files.names(path) if name.endswith(".part")]
    assert point > 12
