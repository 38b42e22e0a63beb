"""A stored cache's name covers all that it depends on, tells nothing, and exists for public tokens only."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import UsageError
from splitinfer.handoff import CacheLayout, Label, PromptTokens
from splitinfer.store import public_prefix
from splitinfer.store.keys import StoreKeys
from tests.support.public_caches import LAYOUT, MODEL, NUMERICS, PIN, STORE_KEY, prefix_of

KEY = StoreKeys.of(STORE_KEY).name_key
TOKENS = (5, 6, 7, 8)
ONE = prefix_of(*TOKENS)
OTHERS = {
    "one token": prefix_of(5, 6, 7, 9),
    "one token less": prefix_of(5, 6, 7),
    "order": prefix_of(6, 5, 7, 8),
    "steps": prefix_of(*TOKENS, steps=[(0, 2), (2, 4)]),
    "weights": prefix_of(*TOKENS, model=replace(MODEL, weights_sha256="0" * 64)),
    "config": prefix_of(*TOKENS, model=replace(MODEL, config_sha256="0" * 64)),
    "tokenizer": prefix_of(*TOKENS, model=replace(MODEL, tokenizer_sha256="0" * 64)),
    "torch": prefix_of(*TOKENS, numerics=replace(NUMERICS, torch="2.14.0")),
    "threads": prefix_of(*TOKENS, numerics=replace(NUMERICS, threads=2)),
    "layout": prefix_of(*TOKENS, layout=CacheLayout(LAYOUT.layers * 2)),
    "codec": prefix_of(*TOKENS, codec="other"),
    "recipient": prefix_of(*TOKENS, recipient_identity_sha256="0" * 64),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_difference_in_anything_is_another_name(what: str) -> None:
    assert OTHERS[what].name(KEY) != ONE.name(KEY)


def test_names_are_equal_for_equal_prefixes_and_64_hex_digits() -> None:
    assert prefix_of(*TOKENS).name(KEY) == ONE.name(KEY)
    assert re.fullmatch(r"[0-9a-f]{64}", ONE.name(KEY))
    assert len({prefix.name(KEY) for prefix in (ONE, *OTHERS.values())}) == len(OTHERS) + 1


def test_another_store_key_gives_other_names() -> None:
    assert ONE.name(StoreKeys.of(b"\x01" * 32).name_key) != ONE.name(KEY)


def test_the_keys_of_a_store_differ_from_its_key_and_each_other() -> None:
    keys = StoreKeys.of(STORE_KEY)
    assert len({keys.name_key, keys.wrap_key, STORE_KEY}) == 3
    assert keys.name_key.hex() not in repr(keys)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5), data=st.data())
def test_private_tokens_are_never_taken(lengths: list[int], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from(Label), min_size=len(lengths), max_size=len(lengths)))
    prompt = PromptTokens(tuple(range(100, 100 + sum(lengths))), tuple(lengths), tuple(labels))
    end = data.draw(st.integers(0, sum(lengths)))
    fields = {"model": MODEL, "numerics": NUMERICS, "layout": LAYOUT, "codec": "raw", "recipient_identity_sha256": PIN}
    steps = [(0, end)] if end else []
    if 0 < end <= prompt.leading_public_tokens:
        taken = public_prefix(prompt, steps=steps, **fields).token_ids
        assert taken == prompt.token_ids[:end]
        owners = [label for label, length in zip(labels, lengths, strict=True) for _ in range(length)]
        assert set(owners[: len(taken)]) == {Label.PUBLIC}
    else:
        with pytest.raises(UsageError):
            public_prefix(prompt, steps=steps, **fields)


def test_a_prefix_does_not_show_its_tokens() -> None:
    assert "token_ids" not in repr(ONE)
