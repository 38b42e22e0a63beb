"""Requests that name an artefact which they must not, or not the one that the cloud holds (check 17)."""

from __future__ import annotations

from dataclasses import replace

from cases_honest import DECODE
from vector import Vector

VECTORS = [
    Vector(
        17,
        "artefact-for-raw",
        replace(DECODE, sealed={"artefact_sha256": "a" * 64}),
        "An artefact is named for a codec that has none.",
    ),
    Vector(
        17,
        "artefact-not-named",
        replace(DECODE, sealed={"codec": "ftc1-1"}),
        "A calibrated codec without the artefact that both sides must hold.",
    ),
    Vector(
        17,
        "artefact-differs",
        replace(DECODE, sealed={"codec": "ftc1-1", "artefact_sha256": "a" * 64}),
        "An artefact that the cloud does not hold: it would decode to other numbers.",
        error="artefact_mismatch",
    ),
]
