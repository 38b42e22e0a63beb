"""What the device remembers of a session: bases at step ends only, bounded memory, wiped when replaced or closed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.cache.memory import copied, memory_bytes, shares_memory
from splitinfer.cache.snapshot import CacheSnapshot, cut
from splitinfer.conversation import Conversation, Held, Link, Past
from splitinfer.handoff import CacheLayout
from splitinfer.placement import prefill_steps
from tests.support.codec_slabs import bits, normal
from tests.support.layouts import full, sliding
from tests.support.turns import is_wiped

LAYOUT, WINDOWED = CacheLayout((full(),)), CacheLayout((full(), sliding(5)))
IDS = tuple(range(30))
PAST = Past(IDS[:20], ((0, 8), (8, 14), (14, 20)))


def conversation(snapshot: CacheSnapshot, *, limit_bytes: int = 1 << 20) -> Conversation:
    memory = Conversation("6" * 32, limit_bytes=limit_bytes)
    memory.remember(Held(PAST, snapshot, is_exact=True))
    return memory


@pytest.mark.parametrize(
    ("token_ids", "steps", "wanted"),
    [
        (IDS, (*PAST.steps, (20, 29)), 20),
        (IDS, ((0, 8), (8, 14), (14, 29)), 14),
        (IDS, ((0, 7), (7, 14), (14, 20)), 0),
        ((*IDS[:10], 99, *IDS[11:]), PAST.steps, 8),
        ((99, *IDS[1:]), PAST.steps, 0),
        (IDS[:14], ((0, 8), (8, 13)), 8),
    ],
    ids=["longer", "another end", "other steps", "another token", "another first token", "shorter"],
)
def test_the_base_is_the_last_step_end_up_to_which_all_is_the_same(
    token_ids: tuple[int, ...], steps: tuple[tuple[int, int], ...], wanted: int
) -> None:
    memory = conversation(normal(LAYOUT, 20))
    assert memory.base_tokens(token_ids, steps) == wanted
    cache = memory.cache(wanted)
    assert (cache.true_tokens if cache else 0) == wanted


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_the_base_is_a_step_end_of_both_prompts(first: list[int], more: list[int]) -> None:
    total = sum(first) + 1
    old = prefill_steps([*first[:-1], first[-1] + 1], 64)
    new = prefill_steps([*first, *more, 1], 64)
    base = Past(tuple(range(total - 1)), old).common_tokens(tuple(range(total + sum(more))), new, layout=LAYOUT)
    assert base in {0, *(stop for _, stop in old)} & {0, *(stop for _, stop in new)}
    assert base == total - 1


def test_a_cache_with_a_window_is_a_base_whole_or_not_at_all() -> None:
    memory = conversation(normal(WINDOWED, 20))
    assert memory.base_tokens(IDS, (*PAST.steps, (20, 29))) == 20
    assert memory.base_tokens(IDS, ((0, 8), (8, 14), (14, 29))) == 0


def test_a_transfer_goes_on_from_less_than_all_so_that_it_brings_something() -> None:
    memory = Conversation("6" * 32)
    memory.link = Link(PAST, 0, "a" * 64)
    assert memory.linked_tokens(IDS[:21], PAST.steps, layout=LAYOUT) == 14
    assert memory.linked_tokens(IDS, (*PAST.steps, (20, 29)), layout=LAYOUT) == 20
    assert memory.linked_tokens(IDS, (*PAST.steps, (20, 29)), layout=LAYOUT, at_most=15) == 14
    assert memory.linked_tokens(IDS[:21], PAST.steps, layout=WINDOWED) == 0


def test_the_cache_before_is_wiped_unless_it_is_part_of_the_new_one() -> None:
    first, second = normal(LAYOUT, 20), normal(LAYOUT, 20, 1)
    memory = conversation(first)
    memory.remember(Held(PAST, second, is_exact=True))
    assert (is_wiped(first), is_wiped(second)) == (True, False)
    memory.remember(Held(PAST, cut(second, 14), is_exact=True))
    assert not is_wiped(second)


def test_a_cache_above_the_limit_is_not_remembered_and_stays_the_callers() -> None:
    small, large = normal(LAYOUT, 20), normal(LAYOUT, 21)
    memory = conversation(small, limit_bytes=memory_bytes(small))
    assert memory.held is not None
    assert not memory.remember(Held(PAST, large, is_exact=True))
    assert (memory.held, is_wiped(small), is_wiped(large)) == (None, True, False)


def test_what_the_cloud_holds_is_not_known_where_two_transfers_overlapped() -> None:
    memory, link = Conversation("6" * 32), Link(PAST, 0, "a" * 64)
    memory.end_transfer(memory.begin_transfer(), link)
    assert memory.link == link
    first, second = memory.begin_transfer(), memory.begin_transfer()
    assert memory.link is None
    memory.end_transfer(second, link)
    memory.end_transfer(first, link)
    assert memory.link is None


def test_forgetting_wipes_and_can_be_repeated() -> None:
    snapshot = normal(LAYOUT, 20)
    memory = conversation(snapshot)
    memory.link = Link(PAST, 0, "a" * 64)
    memory.forget()
    memory.forget()
    assert is_wiped(snapshot)
    assert (memory.held, memory.link) == (None, None)


def test_no_text_is_in_what_is_printed() -> None:
    memory = conversation(normal(LAYOUT, 20))
    assert "token_ids" not in repr(memory.held)
    assert "snapshot" not in repr(memory.held)


def test_a_copy_has_the_same_bits_and_no_memory_in_common() -> None:
    snapshot = normal(WINDOWED, 20)
    copy = copied(snapshot)
    assert bits(copy) == bits(snapshot)
    assert not shares_memory(copy, snapshot)
    assert shares_memory(cut(normal(LAYOUT, 20), 20), normal(LAYOUT, 20)) is False
    one = normal(LAYOUT, 20)
    assert shares_memory(cut(one, 7), one)
    assert memory_bytes(cut(one, 7)) == memory_bytes(one)
