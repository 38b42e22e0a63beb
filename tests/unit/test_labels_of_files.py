"""A rule for private finds a file however the caller spelt its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.errors import PolicyError
from splitinfer.flow import _labelled
from splitinfer.handoff import Label
from splitinfer.segments import document, public
from trust_models.policy import Policy, parse_policy


def policy_with(rule: str) -> Policy:
    return parse_policy(f'mode = "local"\n[[segments.rule]]\n{rule}\n', origin="test")


@pytest.fixture
def contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "contracts" / "acme.md"
    path.parent.mkdir()
    path.write_text("terms")
    monkeypatch.chdir(path.parent)
    return path


@pytest.mark.parametrize("spelt", ["acme.md", "./acme.md", "../contracts/acme.md"])
def test_a_pattern_for_private_cannot_be_walked_round_by_a_relative_path(contract: Path, spelt: str) -> None:
    policy = policy_with('pattern = "contracts/*"\nlabel = "private"')
    assert _labelled(policy, public(path=spelt)).label is Label.PRIVATE
    absolute = policy_with(f'pattern = "{contract.parent}/*"\nlabel = "private"')
    assert _labelled(absolute, public(path=spelt)).label is Label.PRIVATE


def test_what_no_rule_finds_keeps_the_callers_label(contract: Path) -> None:
    policy = policy_with('pattern = "notes/*"\nlabel = "private"')
    assert _labelled(policy, public(path="acme.md")).label is Label.PUBLIC


def test_a_named_source_is_promoted_by_its_literal_name_only(contract: Path) -> None:
    policy = policy_with('source = "acme.md"\nlabel = "public"')
    assert _labelled(policy, document(path="acme.md")).label is Label.PUBLIC
    assert _labelled(policy, document(path="./acme.md")).label is Label.PRIVATE


def test_a_pattern_with_a_tilde_matches_nothing_and_is_refused() -> None:
    with pytest.raises(PolicyError, match="not expanded"):
        policy_with('pattern = "~/nda/*"\nlabel = "private"')
