"""The table of modes is closed, whole and cannot be changed."""

from __future__ import annotations

import dataclasses

import pytest

from trust_models.modes import MODES, TrustMode


def test_every_mode_has_exactly_its_row() -> None:
    assert tuple(MODES) == tuple(TrustMode)
    assert all(MODES[mode].mode is mode for mode in TrustMode)


def test_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        MODES[TrustMode.LOCAL] = MODES[TrustMode.SEALED_DECODE]
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODES[TrustMode.LOCAL].crosses = "everything"


def test_recipient_reads_private_text_wherever_the_cloud_handles_it() -> None:
    for row in MODES.values():
        handles = (row.prefill == "cloud" or row.decode == "cloud") and not row.is_noised
        assert ("recipient" in row.readable_by) == handles
        assert "device" in row.readable_by


def test_noised_modes_tell_what_the_cloud_reads_through_noise_and_what_in_clear() -> None:
    noised = [row for row in MODES.values() if row.is_noised]
    assert noised
    for row in noised:
        assert "through noise" in row.cloud_reads
        assert "formally meaningless, empirical only" in row.guarantee
        assert row.decode == "device" or "answer in clear" in row.cloud_reads


def test_whatever_crosses_is_protected() -> None:
    for row in MODES.values():
        assert (row.protection != "none") == (row.crosses != "nothing")
