"""Certificates as data: what was written is read back, anything else is none; a level without one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from splitinfer.errors import PolicyError
from trust_models.certificates import Certificate, Paired
from trust_models.codecs import Loss, require_codec
from trust_models.policy import parse_policy
from trust_models.schema import Transfer

LOSS = Loss(1e-3, 1e-4, 0.99, 1.001, 640)
PAIRED = Paired(100, 0.95, 0.01, 0.005, 0.02, 0.003, 0.001)
FOUND = Certificate(LOSS, None, LOSS, None, PAIRED, PAIRED, 0.001, 447)
LEVEL = "ftc1-0.5"


def test_a_certificate_is_read_back() -> None:
    assert Certificate.from_json(json.loads(json.dumps(FOUND.to_json()))) == FOUND


@pytest.mark.parametrize("change", [{"loss": None}, {"saturation": "x"}, {"more": 1}, {"needles": {"questions": 1}}])
def test_anything_else_is_no_certificate(change: dict[str, Any]) -> None:
    assert Certificate.from_json({**FOUND.to_json(), **change}) is None
    assert Certificate.from_json([]) is None


def test_a_level_without_a_certificate_is_refused_unless_the_policy_says_so() -> None:
    with pytest.raises(PolicyError, match="allow_uncertified = true"):
        require_codec(Transfer(codec=LEVEL), parameters=10, loss=None)
    require_codec(Transfer(codec=LEVEL, allow_uncertified=True), parameters=10, loss=None)
    require_codec(Transfer(codec=LEVEL), parameters=10, loss=LOSS)


def test_the_floor_holds_for_a_certified_level() -> None:
    with pytest.raises(PolicyError, match=r"max_kl is 0\.001"):
        require_codec(Transfer(codec=LEVEL, max_kl=1e-3), parameters=10, loss=LOSS)


@pytest.mark.parametrize(
    "transfer",
    [
        'codec = "raw"\nallow_uncertified = true',
        'codec = "ftc1-1"\nlink_mbit_per_second = 10.0',
        'codec = "auto"\nlink_mbit_per_second = 0.0',
        'codec = "auto"\nverify_rows = 2',
        'codec = "ftc1-3"',
    ],
)
def test_contradictions_are_refused(transfer: str) -> None:
    text = f'mode = "public-prefix"\n[remote]\nname = "default"\n[transfer]\n{transfer}\n'
    with pytest.raises(PolicyError):
        parse_policy(text, origin="test")


def test_the_links_rate_is_no_rule_and_stays_outside_the_digest() -> None:
    text = 'mode = "sealed-decode"\n[remote]\nname = "default"\n[transfer]\ncodec = "auto"\n'
    one, other = (parse_policy(text + more, origin="test") for more in ("", "link_mbit_per_second = 10.0\n"))
    assert one.digest == other.digest
