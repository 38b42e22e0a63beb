from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.metrics import by_tenth, contains, recovery, rouge_l


def compared(found: list[int], true: list[int], private: set[int]) -> tuple[float, float]:
    result = recovery(found, true, private=private, found_text="a", true_text="a", secret="x")
    return result.tokens.share, result.exact.share


def test_only_private_positions_count() -> None:
    assert compared([1, 9, 9], [1, 2, 3], {0}) == (1.0, 1.0)
    assert compared([1, 9, 3], [1, 2, 3], {1, 2}) == (0.5, 0.0)


def test_a_right_token_at_a_wrong_position_is_not_recovered() -> None:
    assert compared([2, 1], [1, 2], {0, 1}) == (0.0, 0.0)


def test_what_was_not_reached_was_not_recovered() -> None:
    assert compared([1], [1, 2, 3, 4], {0, 1, 2, 3}) == (0.25, 0.0)


def test_a_personal_value_is_found_whatever_the_white_space() -> None:
    assert contains("call 415 - 203-7786 now", "415-203-7786")
    assert not contains("call 415-203-7787", "415-203-7786")


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l(["a", "b", "c", "d"], ["a", "c", "d"]) == 6 / 7
    assert rouge_l([], ["a"]) == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_rouge_l_is_symmetric_and_one_for_equals(first: list[int], second: list[int]) -> None:
    assert rouge_l(first, second) == rouge_l(second, first)
    assert rouge_l(first, first) == 1.0


def test_recovery_is_counted_by_tenth_of_the_private_text() -> None:
    true = list(range(100, 130))
    found = [*true[:15], *[-1] * 15]
    tenths = by_tenth(found, true, private=range(10, 30))
    assert [rate.trials for rate in tenths] == [2] * 10
    assert [rate.share for rate in tenths] == [1.0, 1.0, 0.5, *[0.0] * 7]


def test_a_text_without_positions_is_judged_as_a_text_alone() -> None:
    result = recovery([5, 6], [5, 6], private=(), found_text="call 555-1", true_text="x", secret="555-1")
    assert (result.tokens, result.exact) == (Rate(0, 0), Rate(0, 0))
    assert result.personal_data == Rate(1, 1)
