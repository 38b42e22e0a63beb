"""`[session] keep`: off by default, only where the cloud can hold a session, in the digest, said in plain words."""

from __future__ import annotations

import pytest

from splitinfer.errors import PolicyError
from trust_models.explain import explain
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy, load_builtin, parse_policy

KEEPING = ("sealed-prefill", "sealed-decode")
NOISED = tuple(mode.value for mode in TrustMode if MODES[mode].is_noised)
TITLE = "Between the turns of a session"


def policy(mode: str, keep: str = "") -> Policy:
    remote = "" if mode == "local" else '[remote]\nname = "default"\n'
    noise = '[noise]\nadjacency = 1\nsigma = 1.0\nsubject = "s"\nbudget_epsilon = 1.0\n' if mode in NOISED else ""
    return parse_policy(f'mode = "{mode}"\n{remote}{noise}{keep}', origin="test")


def said(rules: Policy) -> str:
    """Return what the explanation says of the time between turns, on one line."""
    return " ".join(explain(rules).partition(TITLE)[2].partition("\n\n")[0].split())


@pytest.mark.parametrize("mode", [mode.value for mode in TrustMode])
def test_nothing_is_kept_unless_the_policy_says_so(mode: str) -> None:
    assert not policy(mode).session.keep
    assert not load_builtin(mode).session.keep


@pytest.mark.parametrize("mode", KEEPING)
def test_leave_to_keep_is_another_policy(mode: str) -> None:
    kept = policy(mode, "[session]\nkeep = true\n")
    assert kept.session.keep
    assert kept.digest != policy(mode).digest == policy(mode, "[session]\nkeep = false\n").digest


@pytest.mark.parametrize("mode", ["local", "public-prefix", *NOISED])
def test_leave_where_no_session_can_be_kept_is_refused(mode: str) -> None:
    with pytest.raises(PolicyError, match=r"leave session\.keep out"):
        policy(mode, "[session]\nkeep = true\n")


@pytest.mark.parametrize("value", ['"yes"', "1", '"true"'])
def test_leave_is_true_or_false(value: str) -> None:
    with pytest.raises(PolicyError, match="true or false"):
        policy("sealed-decode", f"[session]\nkeep = {value}\n")


@pytest.mark.parametrize("mode", KEEPING)
def test_the_explanation_says_who_holds_what_between_turns(mode: str) -> None:
    assert "The recipient keeps nothing" in said(policy(mode))
    kept = said(policy(mode, "[session]\nkeep = true\n"))
    assert "The recipient keeps the cache of the whole prompt in its memory" in kept
    assert "can read the prompt" in kept


def test_the_explanation_says_what_stays_of_public_text_and_in_mode_local() -> None:
    assert "for requests of this device alone" in said(policy("public-prefix"))
    assert "recipient" not in said(policy("local"))
