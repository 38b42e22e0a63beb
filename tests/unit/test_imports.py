from __future__ import annotations

from importlib import metadata

import pytest

import splitinfer
from splitinfer.handoff import Label, Role


def test_every_public_name_resolves() -> None:
    for name in splitinfer.__all__:
        assert getattr(splitinfer, name) is not None


def test_public_names_are_sorted_and_once() -> None:
    assert sorted(set(splitinfer.__all__)) == splitinfer.__all__


def test_masks_can_be_prepared_from_python() -> None:
    assert splitinfer.prepare_pool.__module__ == "splitinfer.joint.offline"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="decrypt_everything"):
        _ = splitinfer.decrypt_everything


def test_a_name_is_the_same_object_each_time() -> None:
    assert splitinfer.Segment is splitinfer.Segment
    assert splitinfer.SplitInferError is not Exception


def test_the_version_is_that_of_the_package() -> None:
    try:
        installed = metadata.version("splitinfer")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert splitinfer.__version__ == installed


def test_the_five_lines_of_the_readme_name_what_there_is() -> None:
    assert splitinfer.public("text").label is Label.PUBLIC
    assert splitinfer.note("text").label is Label.PRIVATE
    assert splitinfer.question("text").role is Role.QUESTION
