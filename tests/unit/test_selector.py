"""The rule of codec "auto": the fastest, or what loses less and is hardly slower, or the device itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.selector import LOCAL, Speeds, choose

SIZES = {"raw": 1_572_864, "ftc1-2": 200_000, "ftc1-0.5": 51_000}
CALIBRATED = ("ftc1-2", "ftc1-0.5")


def chosen(mbit: float, *, device: float = 100.0, local: int | None = 512) -> str:
    speeds = Speeds(link_bytes_per_second=mbit * 125_000, device_tokens_per_second=device, round_trip_seconds=0.001)
    return choose(SIZES, padded_tokens=512, local_tokens=local, speeds=speeds, calibrated=CALIBRATED).codec


def test_a_fast_link_takes_what_loses_nothing() -> None:
    assert chosen(100_000) == "raw"


def test_a_slow_link_takes_what_is_small() -> None:
    assert chosen(1) == "ftc1-0.5"


def test_a_fast_device_computes_itself() -> None:
    assert chosen(1, device=50_000) == LOCAL


def test_where_the_device_is_no_choice_it_is_not_taken() -> None:
    assert chosen(1, device=50_000, local=None) == "ftc1-0.5"


@settings(deadline=None, max_examples=60)
@given(st.floats(0.5, 2000), st.floats(10, 1e6), st.booleans())
def test_what_is_chosen_is_expected_within_the_slack_of_the_best(mbit: float, device: float, has_local: bool) -> None:
    speeds = Speeds(link_bytes_per_second=mbit * 125_000, device_tokens_per_second=device)
    local = 512 if has_local else None
    found = choose(SIZES, padded_tokens=512, local_tokens=local, speeds=speeds, calibrated=CALIBRATED)
    assert found.expected_seconds == pytest.approx(found.expected[found.codec])
    assert found.expected_seconds <= 1.05 * min(found.expected.values()) + 1e-9
