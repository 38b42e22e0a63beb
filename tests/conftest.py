"""What all tests share: anchors of mask pools go to a folder of the run, never to that of whoever runs the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def anchors() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("SPLITINFER_ANCHORS")
        os.environ["SPLITINFER_ANCHORS"] = folder
        yield
        if before is None:
            del os.environ["SPLITINFER_ANCHORS"]
        else:
            os.environ["SPLITINFER_ANCHORS"] = before
