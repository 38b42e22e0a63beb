"""No numbered check without a frozen vector that it refuses, and none that the format's page does not name."""

from __future__ import annotations

import re

import pytest

from splitinfer.errors import SplitInferError, error_for_code
from splitinfer.receive.checks import CHECKS, Check
from splitinfer.sealing.heads import PublicManifest, RequestHead
from tests.support.vectors import FOLDER, all_vectors

# docs/format.md section 11: who the recipient is comes before the numbers, the receipt after them.
_UNNUMBERED = {(None, None), (0, "recipient_mismatch"), (0, "authentication"), (0, "verification")}
PAGE = FOLDER.parent.parent / "docs" / "format.md"


def _sides(check: Check) -> set[str]:
    return {"cloud", "device"} if check.side == "both" else {check.side}


@pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in CHECKS])
def test_check_has_a_refusing_vector_on_each_of_its_sides(check: Check) -> None:
    refusing = {vector.says["side"] for vector in all_vectors() if vector.says["check"] == check.number}
    assert refusing >= _sides(check)


def test_vector_names_the_error_and_a_side_of_its_check() -> None:
    checks = {check.number: check for check in CHECKS}
    for vector in all_vectors():
        number = vector.says["check"]
        if number in checks:
            # Two checks have a second code: a session of which nothing is held, an artefact that is not the same.
            is_second = (number, vector.says["error"]) in ((16, "session_lost"), (17, "artefact_mismatch"))
            assert is_second or error_for_code(vector.says["error"]) is checks[number].error, vector.name
        else:
            assert (number, vector.says["error"]) in _UNNUMBERED, vector.name


def test_page_has_a_row_for_every_check() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(str(check.number), check.name, check.side, check.error.code) for check in CHECKS]


def test_numbers_run_from_one_without_a_gap() -> None:
    assert [check.number for check in CHECKS] == list(range(1, len(CHECKS) + 1))


def test_page_names_every_error_code() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## 14. Error codes")[1].split("\n## ")[0]
    listed = set(re.findall(r"`([a-z_]+)`", section.split("Of the HTTP door alone")[0]))
    assert listed == _codes(SplitInferError)


def _codes(error: type[SplitInferError]) -> set[str]:
    return {error.code}.union(*(_codes(kind) for kind in error.__subclasses__()))


def test_every_member_of_a_request_head_was_flipped() -> None:
    members = {*RequestHead.model_fields, *PublicManifest.model_fields} - {"manifest"}
    names = {vector.name[5:] for vector in all_vectors()}
    assert {f"flipped-{member.replace('_', '-')}" for member in members} <= names
