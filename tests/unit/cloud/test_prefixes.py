"""The prefix cache of the cloud: found by its own device for the very same text and steps, bounded, wiped."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Any

import pytest

from splitinfer.cache.memory import memory_bytes, shares_memory
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud.prefixes import Prefixes, PrefixLimits
from splitinfer.handoff import CacheLayout, ModelIdentity
from tests.support.codec_slabs import bits, normal
from tests.support.device_cloud import MODEL, NUMERICS
from tests.support.layouts import full
from tests.support.turns import is_wiped

DEVICE, OTHER = b"d" * 32, b"o" * 32
LAYOUT = CacheLayout((full(),))
IDS, STEPS = tuple(range(20)), ((0, 8), (8, 20))
SIZE = memory_bytes(normal(LAYOUT, 20))


def prefixes_of(*, model: ModelIdentity = MODEL, randomness: Any = os.urandom, **limits: int) -> Prefixes:
    return Prefixes(PrefixLimits(**limits), model=model, numerics=NUMERICS, randomness=randomness)


def keep(prefixes: Prefixes, sender: bytes = DEVICE, *, first: int = 0) -> CacheSnapshot:
    snapshot = normal(LAYOUT, 20, first)
    assert prefixes.put(sender, (first, *IDS[1:]), STEPS, snapshot)
    return snapshot


def test_the_same_text_is_found_as_a_copy() -> None:
    prefixes = prefixes_of()
    snapshot = keep(prefixes)
    found = prefixes.find(DEVICE, IDS, STEPS)
    assert found is not None
    assert bits(found) == bits(snapshot)
    assert not shares_memory(found, snapshot)


def test_a_longer_text_finds_what_it_begins_with() -> None:
    prefixes = prefixes_of()
    keep(prefixes)
    found = prefixes.find(DEVICE, (*IDS, 7, 8), (*STEPS, (20, 22)))
    assert found is not None
    assert found.true_tokens == 20


@pytest.mark.parametrize(
    ("token_ids", "steps"),
    [
        ((1, *IDS[1:]), STEPS),
        ((*IDS[:-1], 99), STEPS),
        (IDS, ((0, 20),)),
        (IDS, ((0, 7), (7, 20))),
        (IDS[:8], STEPS[:1]),
    ],
    ids=["first token", "last token", "one step", "other steps", "shorter"],
)
def test_another_text_or_other_steps_find_nothing(token_ids: tuple[int, ...], steps: Any) -> None:
    prefixes = prefixes_of()
    keep(prefixes)
    assert prefixes.find(DEVICE, token_ids, steps) is None


def test_no_device_finds_what_another_one_sent() -> None:
    prefixes = prefixes_of()
    keep(prefixes)
    assert prefixes.find(OTHER, IDS, STEPS) is None


def test_names_are_of_the_secret_the_device_the_model_and_the_text() -> None:
    def names(prefixes: Prefixes, sender: bytes = DEVICE, token_ids: Any = IDS) -> list[bytes]:
        return list(prefixes._names(sender, token_ids, STEPS))

    one = names(prefixes_of(randomness=bytes))
    assert one == names(prefixes_of(randomness=bytes))
    others = [
        names(prefixes_of(randomness=os.urandom)),
        names(prefixes_of(randomness=bytes), OTHER),
        names(prefixes_of(randomness=bytes, model=replace(MODEL, weights_sha256="9" * 64))),
    ]
    assert all(not set(one) & set(other) for other in others)
    assert names(prefixes_of(randomness=bytes), token_ids=(*IDS[:-1], 9))[0] == one[0]
    text = b"".join(token.to_bytes(4, "big") for token in IDS)
    assert hashlib.sha256(text).digest() not in one


def test_each_device_stays_within_its_quota_and_pushes_out_its_own_alone() -> None:
    prefixes = prefixes_of(max_device_bytes=2 * SIZE)
    theirs = keep(prefixes, OTHER)
    mine = [keep(prefixes, first=first) for first in range(3)]
    assert [is_wiped(snapshot) for snapshot in (theirs, *mine)] == [False, True, False, False]


def test_all_together_stay_within_the_quota_of_all() -> None:
    prefixes = prefixes_of(max_bytes=2 * SIZE)
    snapshots = [keep(prefixes, sender) for sender in (b"1", b"2", b"3")]
    assert prefixes.size_bytes == 2 * SIZE
    assert [is_wiped(snapshot) for snapshot in snapshots] == [True, False, False]


def test_what_was_used_last_is_kept_longest() -> None:
    prefixes = prefixes_of(max_device_bytes=2 * SIZE)
    first, second = keep(prefixes, first=0), keep(prefixes, first=1)
    assert prefixes.find(DEVICE, IDS, STEPS) is not None
    keep(prefixes, first=2)
    assert (is_wiped(first), is_wiped(second)) == (False, True)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_bytes": 10}, {"max_device_bytes": 10}])
def test_what_has_no_room_stays_the_callers(limits: dict[str, int]) -> None:
    prefixes, snapshot = prefixes_of(**limits), normal(LAYOUT, 20)
    assert not prefixes.put(DEVICE, IDS, STEPS, snapshot)
    assert prefixes.find(DEVICE, IDS, STEPS) is None
    assert not is_wiped(snapshot)


def test_the_same_text_again_replaces_its_cache() -> None:
    prefixes = prefixes_of()
    old, new = keep(prefixes), keep(prefixes)
    assert (is_wiped(old), is_wiped(new), len(prefixes)) == (True, False, 1)


def test_a_closed_store_is_wiped_and_keeps_nothing_more() -> None:
    prefixes = prefixes_of()
    snapshot = keep(prefixes)
    prefixes.close()
    assert is_wiped(snapshot)
    assert not prefixes.put(DEVICE, IDS, STEPS, normal(LAYOUT, 20))
