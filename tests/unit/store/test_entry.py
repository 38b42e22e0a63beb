"""One stored file: whole or refused, whatever was changed in it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitinfer.egress.files import OpenMode
from splitinfer.errors import AuthenticationError, ManifestError, StoreError, TruncatedError, VerificationError
from splitinfer.store import entry
from splitinfer.store.entry import CHUNK_BYTES, FACTS_BYTES, HEAD_BYTES, TAG_BYTES
from splitinfer.store.files import OsStoreFiles
from tests.support.public_caches import FACTS, LARGE, BytesPacked, BytesSink

FILES = OsStoreFiles()
KEY, NAME = bytes(32), "ab" * 32
SMALL_CHUNK = 256
HEADS = HEAD_BYTES + FACTS_BYTES + TAG_BYTES


def write(path: Path, data: bytes, *, slab_bytes: int = 100, max_bytes: int = LARGE, name: str = NAME) -> int:
    handle = FILES.open(path, OpenMode.FRESH)
    try:
        slabs = BytesPacked(data, slab_bytes=slab_bytes).slabs()
        return entry.write(
            FILES, handle, slabs, name=name, wrap_key=KEY, facts=FACTS, max_bytes=max_bytes, randomness=os.urandom
        )
    finally:
        FILES.close(handle)


def read(path: Path, size: int, *, name: str = NAME, key: bytes = KEY, slab_bytes: int = 77) -> bytes:
    handle = FILES.open(path, OpenMode.READ)
    try:
        opened = entry.open_entry(FILES, handle, name=name, wrap_key=key)
        assert opened.facts == FACTS
        sink = BytesSink(size, slab_bytes=slab_bytes)
        entry.fill(sink, opened.chunks(FILES, handle))
        return sink.finish()
    finally:
        FILES.close(handle)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "CHUNK_BYTES", SMALL_CHUNK)


@pytest.mark.parametrize(
    "size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7]
)
def test_what_was_written_is_read_back(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    written = write(tmp_path / "a", data, slab_bytes=300_000)
    assert written == (tmp_path / "a").stat().st_size
    assert read(tmp_path / "a", size, slab_bytes=123_457) == data
    assert data[:64] not in (tmp_path / "a").read_bytes() or size < 16


@pytest.mark.usefixtures("small_chunks")
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=2000), out=st.integers(1, 900), into=st.integers(1, 900))
def test_any_cut_into_slabs_is_read_back_by_any_other(tmp_path: Path, data: bytes, out: int, into: int) -> None:
    write(tmp_path / "a", data, slab_bytes=out)
    assert read(tmp_path / "a", len(data), slab_bytes=into) == data


@pytest.mark.usefixtures("small_chunks")
def test_a_changed_byte_anywhere_is_refused(tmp_path: Path) -> None:
    data = os.urandom(3 * SMALL_CHUNK + 10)
    write(tmp_path / "a", data)
    whole = (tmp_path / "a").read_bytes()
    places = [*range(0, HEAD_BYTES, 3), 79, *range(HEAD_BYTES, HEADS, 397), *range(HEADS - 20, len(whole), 5)]
    for at in places:
        changed = bytearray(whole)
        changed[at] ^= 1
        (tmp_path / "b").write_bytes(changed)
        with pytest.raises(VerificationError):
            read(tmp_path / "b", len(data))
    assert read(tmp_path / "a", len(data)) == data


@pytest.mark.usefixtures("small_chunks")
def test_a_shorter_or_longer_file_is_refused(tmp_path: Path) -> None:
    data = os.urandom(2 * SMALL_CHUNK + 10)
    write(tmp_path / "a", data)
    whole = (tmp_path / "a").read_bytes()
    for size in [*range(0, HEADS, 61), *range(HEADS, len(whole))]:
        (tmp_path / "b").write_bytes(whole[:size])
        with pytest.raises(TruncatedError):
            read(tmp_path / "b", len(data))
    (tmp_path / "b").write_bytes(whole + b"x")
    with pytest.raises(TruncatedError):
        read(tmp_path / "b", len(data))


@pytest.mark.usefixtures("small_chunks")
def test_chunks_in_another_order_are_refused(tmp_path: Path) -> None:
    data = os.urandom(4 * SMALL_CHUNK)
    write(tmp_path / "a", data)
    whole = (tmp_path / "a").read_bytes()
    sealed = SMALL_CHUNK + TAG_BYTES
    chunks = [whole[HEADS + at * sealed : HEADS + (at + 1) * sealed] for at in range(4)]
    orders = [order for order in itertools.permutations(range(4)) if order != (0, 1, 2, 3)]
    for order in [*orders, (0, 0, 2, 3), (0, 1, 1, 3)]:
        (tmp_path / "b").write_bytes(whole[:HEADS] + b"".join(chunks[at] for at in order))
        with pytest.raises(AuthenticationError):
            read(tmp_path / "b", len(data))


@pytest.mark.usefixtures("small_chunks")
def test_parts_of_two_files_do_not_fit_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, os.urandom(2 * SMALL_CHUNK))
    first, second = ((tmp_path / name).read_bytes() for name in ("a", "b"))
    for cut in (HEAD_BYTES, HEADS, HEADS + SMALL_CHUNK + TAG_BYTES):
        (tmp_path / "c").write_bytes(first[:cut] + second[cut:])
        with pytest.raises(AuthenticationError):
            read(tmp_path / "c", 2 * SMALL_CHUNK)


def test_another_name_or_key_does_not_open(tmp_path: Path) -> None:
    write(tmp_path / "a", b"x" * 10)
    with pytest.raises(AuthenticationError):
        read(tmp_path / "a", 10, name="ab" * 31 + "ac")
    with pytest.raises(AuthenticationError):
        read(tmp_path / "a", 10, key=b"\x01" * 32)


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a", b"x" * 10)
    whole = bytearray((tmp_path / "a").read_bytes())
    whole[19] = 2
    (tmp_path / "a").write_bytes(whole)
    with pytest.raises(ManifestError, match="version 1"):
        read(tmp_path / "a", 10)


def test_two_files_of_the_same_cache_share_no_bytes_but_the_preamble(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, b"x" * 1000)
    first, second = ((tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first[:20] == second[:20]
    runs = {first[at : at + 12] for at in range(20, len(first) - 12)}
    assert not any(second[at : at + 12] in runs for at in range(20, len(second) - 12))


def test_a_cache_over_the_limit_is_given_up_while_it_is_written(tmp_path: Path) -> None:
    size = write(tmp_path / "a", b"x" * 10_000)
    assert write(tmp_path / "a", b"x" * 10_000, max_bytes=size) == size
    with pytest.raises(StoreError, match="max_bytes"):
        write(tmp_path / "a", b"x" * 10_000, max_bytes=size - 1)


def test_no_cache_at_all_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        write(tmp_path / "a", b"")


@pytest.mark.parametrize("size", [999, 1001])
def test_a_sink_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path / "a", b"x" * 1000)
    with pytest.raises(VerificationError):
        read(tmp_path / "a", size)
