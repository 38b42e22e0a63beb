"""The artefact's file: what it gives back, and what is refused before anything of it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.codec.transform import Artefact
from splitinfer.errors import ArtefactError
from splitinfer.handoff import ModelIdentity
from tests.support.artefacts import artefact


def test_a_file_gives_the_artefact_back_with_its_digest(tmp_path: Path) -> None:
    made = artefact()
    path = tmp_path / "ftc1.safetensors"
    path.write_bytes(made.to_bytes())
    found = Artefact.read(path)
    assert found.digest == made.digest
    assert found.facts == made.facts
    for one, other in zip(found.groups, made.groups, strict=True):
        assert torch.equal(one.basis, other.basis)
        assert torch.equal(one.bits, other.bits)
    assert found.to_bytes() == made.to_bytes()


def test_an_artefact_of_another_model_is_refused() -> None:
    artefact().require_model(ModelIdentity("1" * 64, "2" * 64, "3" * 64))
    with pytest.raises(ArtefactError, match="another model"):
        artefact().require_model(ModelIdentity("1" * 64, "2" * 64, "4" * 64))


def changed(name: str, value: Any) -> bytes:
    group = artefact().groups[0]
    tensor = getattr(group, name).clone()
    tensor.view(-1)[0] = value
    return replace(artefact(), groups=(replace(group, **{name: tensor}), *artefact().groups[1:])).to_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", float("nan")), ("scale", 0.0), ("scale", -1.0), ("deviation", float("inf")), ("unit", 1e30), ("bits", 8)],
)
def test_numbers_that_no_calibration_makes_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ArtefactError, match="shapes or numbers"):
        Artefact.parse(changed(name, value))


def test_bits_that_do_not_fall_are_refused() -> None:
    group = artefact().groups[0]
    bits = group.bits.clone()
    bits[0, -1] = bits[0, 0] + 1
    data = replace(artefact(), groups=(replace(group, bits=bits), *artefact().groups[1:])).to_bytes()
    with pytest.raises(ArtefactError):
        Artefact.parse(data)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_mutated_and_cut_files_are_refused_or_parse(data: st.DataObject) -> None:
    good = artefact().to_bytes()
    if data.draw(st.booleans()):
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    try:
        found = Artefact.parse(bad)
    except ArtefactError:
        return
    assert found.digest != artefact().digest or bad == good


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        Artefact.read(tmp_path / "absent")
