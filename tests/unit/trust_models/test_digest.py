"""The policy digest names the rules and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust_models.policy import builtin_names, load_builtin, parse_policy

HEX = "ab" * 32
BASE = 'mode = "public-prefix"\n[remote]\nname = "default"\n'


def _digest(text: str) -> str:
    return parse_policy(text, origin="policy").digest


def _toml(fields: dict[str, Any], order: list[str], comment: str) -> str:
    lines = [f"# {comment}", f"mode = {json.dumps(fields['mode'])}  # {comment}"]
    for section in order:
        lines.append(f"[{section}] # {comment}")
        lines += [f"{key} = {json.dumps(value)}" for key, value in reversed(fields[section].items())]
    return "\n".join(lines)


def test_digest_is_sha256_of_the_canonical_json() -> None:
    canonical = (
        '{"audit":{},"fallback":{"on_remote_failure":"refuse"},"mode":"local","model":{"source":"embedded"},'
        '"segments":{"default":"private","rule":[]},'
        '"transfer":{"allow_q4_small_models":false,"allow_uncertified":false,"chunk_tokens":512,"codec":"raw","pad":"padme",'
        '"resume_attempts":2,"verify_rows":0}}'
    )
    assert _digest('mode = "local"') == hashlib.sha256(canonical.encode()).hexdigest()


@settings(deadline=None, max_examples=50)
@given(
    order=st.permutations(["model", "segments", "remote", "transfer", "store", "fallback"]),
    comment=st.text("abc xyz", max_size=20),
)
def test_digest_is_the_same_with_defaults_written_out_in_any_order(order: list[str], comment: str) -> None:
    policy = parse_policy(BASE, origin="policy")
    fields = policy.model_dump(mode="json", exclude_none=True)
    fields["segments"].pop("rule")
    assert _digest(_toml(fields, order, comment)) == policy.digest


def test_every_seed_that_a_policy_may_state_has_a_digest_of_its_own() -> None:
    noise = '[noise]\nadjacency = 1\nsigma = 1.0\nsubject = "s"\nbudget_epsilon = 9.0\n'
    texts = [
        f'mode = "noised-decode"\n[remote]\nname = "default"\n{noise}[sampling]\nseed = {seed}\n'
        for seed in (0, 2**53, 2**53 + 1, 2**63 - 1)
    ]
    assert len({_digest(text) for text in texts}) == len(texts)


def test_builtin_policies_have_different_digests() -> None:
    assert len({load_builtin(name).digest for name in builtin_names()}) == len(builtin_names())


@pytest.mark.parametrize(
    "change",
    [
        f'[model]\nweights_sha256 = "{HEX}"',
        '[model]\nsource = "other"',
        '[[segments.rule]]\nsource = "a"\nlabel = "public"',
        "[transfer]\nchunk_tokens = 64",
        "[transfer]\nverify_rows = 1",
        "[transfer]\nresume_attempts = 1",
        "[store]\nenabled = false",
        '[fallback]\non_remote_failure = "local"',
    ],
)
def test_digest_changes_with_every_rule(change: str) -> None:
    assert _digest(f"{BASE}{change}") != _digest(BASE)


def test_digest_changes_with_the_recipient() -> None:
    inline = 'mode = "sealed-decode"\n[remote]\nurl = "https://a"\nidentity_sha256 = "{}"'
    assert _digest(inline.format(HEX)) != _digest(inline.format("cd" * 32))
    named = 'mode = "sealed-decode"\n[remote]\nname = "{}"'
    assert _digest(named.format("a")) != _digest(named.format("b"))


def test_digest_leaves_places_out() -> None:
    inline = f'mode = "sealed-decode"\n[remote]\nidentity_sha256 = "{HEX}"\nurl = "https://{{}}"\n'
    moved = inline.format("b.example:8443") + 'tls_ca = "ca.pem"\n[audit]\npath = "elsewhere"'
    assert _digest(inline.format("a")) == _digest(moved)
    assert _digest(f"{BASE}[store]\nmax_bytes = 2000000") == _digest(BASE)


def test_digest_ignores_the_order_and_repetition_of_rules() -> None:
    one, two = (
        '[[segments.rule]]\nsource = "a"\nlabel = "public"\n',
        '[[segments.rule]]\npattern="*"\nlabel="private"\n',
    )
    assert _digest(BASE + one + two) == _digest(BASE + two + one + two)
