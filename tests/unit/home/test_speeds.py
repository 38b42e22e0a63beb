"""Measured speeds: a faster one is believed at once, a slower one little by little, nonsense not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.home import Home
from splitinfer.home.speeds import SpeedFile
from splitinfer.selector import Speeds


def test_nothing_measured_gives_the_defaults(tmp_path: Path) -> None:
    assert SpeedFile(Home(tmp_path / "h")).get("a" * 64) == Speeds()


def test_speeds_belong_to_a_recipient(tmp_path: Path) -> None:
    file = SpeedFile(Home(tmp_path / "h"))
    file.put("a" * 64, link_bytes_per_second=5.0)
    assert file.get("a" * 64).link_bytes_per_second == 5.0
    assert file.get("b" * 64) == Speeds()


def test_a_faster_link_is_believed_at_once_and_a_slower_one_by_a_fifth(tmp_path: Path) -> None:
    file = SpeedFile(Home(tmp_path / "h"))
    for measured in (100.0, 200.0, 100.0):
        file.put("a" * 64, link_bytes_per_second=measured)
    assert file.get("a" * 64).link_bytes_per_second == pytest.approx(180.0)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"%s": {"link_bytes_per_second": -1}}' % ("a" * 64)])
def test_a_file_that_says_nothing_sensible_counts_as_empty(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path / "h")
    (home.path / "speeds.json").write_text(text, encoding="utf-8")
    assert SpeedFile(home).get("a" * 64) == Speeds()
