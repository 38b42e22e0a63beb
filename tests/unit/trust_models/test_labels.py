"""Policy rules demote what the caller asked for and promote only what the caller left unlabelled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust_models.policy import Policy, parse_policy

RULES = """
mode = "public-prefix"
[remote]
name = "default"
[[segments.rule]]
source = "manual.md"
label = "public"
[[segments.rule]]
source = "docs/both.secret"
label = "public"
[[segments.rule]]
source = "contracts/nda.md"
label = "private"
[[segments.rule]]
pattern = "*.secret"
label = "private"
[[segments.rule]]
pattern = "hr/*"
label = "private"
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return parse_policy(RULES, origin="policy")


TABLE = [
    ("manual.md", None, "public"),
    ("manual.md", "public", "public"),
    ("manual.md", "private", "private"),
    ("other.md", None, "private"),
    ("other.md", "public", "public"),
    ("other.md", "private", "private"),
    ("contracts/nda.md", None, "private"),
    ("contracts/nda.md", "public", "private"),
    ("contracts/nda.md", "private", "private"),
    ("key.secret", None, "private"),
    ("key.secret", "public", "private"),
    ("docs/both.secret", None, "private"),
    ("docs/both.secret", "public", "private"),
    ("", None, "private"),
    ("", "public", "public"),
    ("manual.md", "PUBLIC", "private"),
    ("manual.md", "", "private"),
]


@pytest.mark.parametrize(("source", "caller", "label"), TABLE)
def test_label_table(policy: Policy, source: str, caller: str | None, label: str) -> None:
    assert policy.label_of(source, caller) == label


@pytest.mark.parametrize(
    "spelling", ["./manual.md", "Manual.md", "x/../manual.md", "/manual.md", "manual.md ", "a/manual.md"]
)
def test_another_spelling_of_a_name_does_not_promote(policy: Policy, spelling: str) -> None:
    assert policy.label_of(spelling, None) == "private"


@pytest.mark.parametrize(
    "spelling",
    [
        "./contracts/nda.md",
        "contracts//nda.md",
        "contracts/x/../nda.md",
        "contracts\\nda.md",
        "Contracts/NDA.md",
        "/home/me/contracts/nda.md",
        "../contracts/nda.md",
        "nda.md",
        "KEY.SECRET",
        "/home/me/hr/plan.md",
        "./hr/plan.md",
    ],
)
def test_another_spelling_of_a_name_still_demotes(policy: Policy, spelling: str) -> None:
    assert policy.label_of(spelling, "public") == "private"


def test_unnamed_text_can_be_demoted_by_a_pattern() -> None:
    everything = parse_policy(
        'mode = "public-prefix"\n[remote]\nname = "a"\n[[segments.rule]]\npattern = "*"\nlabel = "private"', origin="p"
    )
    assert everything.label_of("", "public") == "private"


def test_letters_composed_differently_still_demote() -> None:
    remote = 'mode = "public-prefix"\n[remote]\nname = "a"\n'
    rules = f'{remote}[[segments.rule]]\nsource = "r\u00e9sum\u00e9"\nlabel = "private"'
    assert parse_policy(rules, origin="p").label_of("re\u0301sume\u0301", "public") == "private"


@settings(deadline=None, max_examples=200)
@given(source=st.text(max_size=30))
def test_no_rule_overrules_a_private_caller(source: str) -> None:
    policy = parse_policy(RULES, origin="policy")
    assert policy.label_of(source, "private") == "private"


@settings(deadline=None, max_examples=200)
@given(source=st.text(max_size=30))
def test_unlabelled_text_is_private_unless_named_exactly(source: str) -> None:
    policy = parse_policy(RULES, origin="policy")
    assert policy.label_of(source, None) == ("public" if source == "manual.md" else "private")
