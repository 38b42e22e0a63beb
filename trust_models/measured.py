"""What `make bench-homomorphic` measured and kept: measured.json -> Measurement by mode; device side.

The benchmark writes the file; nothing else does, so that what a policy is explained with was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import Field

from trust_models.section import Section

__all__ = ["Measurement", "measurements"]

_Text = Annotated[str, Field(min_length=1, max_length=200)]


class Measurement(Section):
    """Seconds a token of decoding, and on what: model, profile, tokens of the prefix, machine and set-up."""

    seconds_a_token: Annotated[float, Field(gt=0)]
    prefix_tokens: Annotated[int, Field(gt=0)]
    model: _Text
    profile: _Text
    conditions: _Text


@cache
def measurements() -> Mapping[str, Measurement]:
    """Return what was measured of `homomorphic`: on an encrypted prefix, on a public one, with linear layers too."""
    text = resources.files("trust_models").joinpath("measured.json").read_text(encoding="utf-8")
    return {mode: Measurement.model_validate(values) for mode, values in json.loads(text).items()}
