"""Several real processes on one store: what one finds is right whatever the others write, remove and leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.public_caches import FACTS, BytesPacked, cache_files, get, open_store, prefix_of

ROOT = Path(__file__).resolve().parents[3]


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.store_process", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_store_read_and_remove_at_once_find_only_what_is_right(tmp_path: Path) -> None:
    processes = [_start("exercise", str(tmp_path / "store"), str(seed), "40") for seed in range(3)]
    ended = [process.communicate(timeout=200) for process in processes]
    assert [errors for _, errors in ended] == ["", "", ""]
    assert sum(int(found) for found, _ in ended) > 10
    names = [path.name for path in cache_files(tmp_path / "store")]
    assert names
    assert all(len(name) == 64 for name in names)


def test_what_a_living_process_writes_is_left_alone_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    process = _start("hold", str(tmp_path / "store"))
    try:
        assert process.stdout.readline().strip() == "holding"
        store = open_store(tmp_path / "store")
        store.put(prefix_of(7, 7, 7), BytesPacked(b"x" * 50), FACTS)
        assert [path.suffix for path in cache_files(tmp_path / "store")].count(".part") == 1
        assert get(store, prefix_of(1, 2, 3), 50) is None
    finally:
        process.kill()
        process.communicate()
    open_store(tmp_path / "store")
    assert [len(path.name) for path in cache_files(tmp_path / "store")] == [64]
