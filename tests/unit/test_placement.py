"""Placement refuses by default and cuts every prompt the same way in every mode."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import EgressDeniedError, EmptyPromptError, PromptError, PromptTooLongError, UsageError
from splitinfer.handoff import Label, PromptTokens
from splitinfer.placement import Plan, place, prefill_steps, prompt_labels
from trust_models.modes import TrustMode
from trust_models.policy import Policy, load_builtin, parse_policy

LENGTHS = st.lists(st.integers(0, 300), max_size=8)
PUB, PRIV = Label.PUBLIC, Label.PRIVATE


def _prompt(*segments: tuple[int, Label]) -> PromptTokens:
    lengths = tuple(length for length, _ in segments)
    return PromptTokens(tuple(range(sum(lengths))), lengths, tuple(label for _, label in segments))


def _place(mode: str | Policy, prompt: PromptTokens) -> Plan:
    policy = load_builtin(mode) if isinstance(mode, str) else mode
    return place(policy, prompt, max_positions=100_000, max_new_tokens=8)


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS.filter(lambda lengths: sum(lengths) >= 2), chunk=st.integers(1, 130))
def test_steps_cover_all_tokens_but_the_last_exactly_once(lengths: list[int], chunk: int) -> None:
    steps = prefill_steps(lengths, chunk)
    covered = [token for start, stop in steps for token in range(start, stop)]
    assert covered == list(range(sum(lengths) - 1))
    assert all(0 < stop - start <= chunk for start, stop in steps)


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS.filter(lambda lengths: sum(lengths) >= 2), chunk=st.integers(1, 130))
def test_steps_end_at_segment_boundaries_and_chunk_multiples_only(lengths: list[int], chunk: int) -> None:
    last = sum(lengths) - 1
    ends = list(itertools.accumulate(lengths))
    starts = [end - length for end, length in zip(ends, lengths, strict=True)]
    multiples = {start + k for start, end in zip(starts, ends, strict=True) for k in range(chunk, end - start, chunk)}
    allowed = {stop for stop in multiples | set(ends) if 0 < stop < last} | {last}
    assert {stop for _, stop in prefill_steps(lengths, chunk)} == allowed


def test_steps_of_a_small_prompt() -> None:
    assert prefill_steps([5, 0, 3, 1], 2) == ((0, 2), (2, 4), (4, 5), (5, 7), (7, 8))
    assert prefill_steps([2], 512) == ((0, 1),)
    assert prefill_steps([1, 1], 512) == ((0, 1),)


@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 1, 0]])
def test_fewer_than_two_tokens_are_refused(lengths: list[int]) -> None:
    with pytest.raises(PromptError, match="at least two tokens"):
        prefill_steps(lengths, 64)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(PromptError, match="negative"):
        prefill_steps([5, -1], 64)
    with pytest.raises(UsageError, match="1 or more"):
        prefill_steps([5], 0)


@settings(deadline=None, max_examples=100)
@given(
    segments=st.lists(st.tuples(st.integers(0, 1500), st.sampled_from([PUB, PRIV])), min_size=1, max_size=6).filter(
        lambda segments: sum(length for length, _ in segments) >= 2
    )
)
def test_every_mode_and_label_gives_the_same_steps_and_public_prefix_sends_public_tokens_only(
    segments: list[tuple[int, Label]],
) -> None:
    prompt = _prompt(*segments)
    expected = prefill_steps(prompt.segment_lengths, 512)
    for mode in TrustMode:
        try:
            plan = _place(mode.value, prompt)
        except EgressDeniedError:
            assert mode is TrustMode.PUBLIC_PREFIX
            assert prompt.leading_public_tokens == 0
            continue
        assert plan.steps == plan.cloud_steps + plan.device_steps == expected
        assert sum(stop - start for start, stop in plan.cloud_steps) == plan.prefix_tokens
        if mode is TrustMode.PUBLIC_PREFIX:
            assert plan.prefix_tokens == min(prompt.leading_public_tokens, plan.total_tokens - 1)


@pytest.mark.parametrize(
    ("mode", "cloud_tokens", "decode_on"),
    [
        ("local", 0, "device"),
        ("public-prefix", 600, "device"),
        ("sealed-prefill", 699, "device"),
        ("sealed-decode", 0, "cloud"),
    ],
)
def test_each_mode_places_prefill_and_decode_by_the_table(mode: str, cloud_tokens: int, decode_on: str) -> None:
    plan = _place(mode, _prompt((600, PUB), (100, PRIV)))
    assert (plan.mode, plan.prefix_tokens, plan.decode_on) == (mode, cloud_tokens, decode_on)
    assert plan.total_tokens == 700
    assert plan.note is None


def test_public_prefix_cuts_at_the_first_private_token() -> None:
    plan = _place("public-prefix", _prompt((600, PUB), (100, PRIV)))
    assert plan.cloud_steps == ((0, 512), (512, 600))
    assert plan.device_steps == ((600, 699),)


def test_wholly_public_prompt_keeps_its_last_token_for_decode() -> None:
    plan = _place("public-prefix", _prompt((10, PUB), (1, PUB)))
    assert plan.cloud_steps == ((0, 10),)
    assert plan.device_steps == ()


@pytest.mark.parametrize("segments", [[(9, PRIV)], [(9, PRIV), (9, PUB)], [(0, PUB), (9, PRIV)]])
def test_public_prefix_without_leading_public_text_is_denied(segments: list[tuple[int, Label]]) -> None:
    with pytest.raises(EgressDeniedError, match=r'public documents .* first, or use mode "local"'):
        _place("public-prefix", _prompt(*segments))


def test_public_text_after_private_text_stays_and_the_user_is_told() -> None:
    plan = _place("public-prefix", _prompt((10, PUB), (10, PRIV), (10, PUB), (10, PUB), (5, PRIV)))
    assert plan.prefix_tokens == 10
    assert plan.note is not None
    assert plan.note.startswith("2 public segment(s) after a private one are treated as private")


@pytest.mark.parametrize("mode", ["local", "sealed-prefill", "sealed-decode"])
def test_order_is_not_noted_where_labels_place_nothing(mode: str) -> None:
    assert _place(mode, _prompt((10, PRIV), (10, PUB))).note is None


def test_labels_after_a_private_one_count_as_private() -> None:
    assert prompt_labels([PUB, PUB, PRIV, PUB]) == (PUB, PUB, PRIV, PRIV)
    assert prompt_labels([]) == ()


def test_chunk_of_the_policy_is_used() -> None:
    policy = parse_policy('mode = "local"\n[transfer]\nchunk_tokens = 64', origin="policy")
    assert _place(policy, _prompt((100, PRIV))).steps == ((0, 64), (64, 99))


def test_prompt_and_answer_fit_the_positions_exactly_or_are_refused() -> None:
    policy, prompt = load_builtin("local"), _prompt((90, PRIV))
    assert place(policy, prompt, max_positions=100, max_new_tokens=10).total_tokens == 90
    with pytest.raises(
        PromptTooLongError, match=r"90 prompt tokens and 11 new ones are 101, more than .* 100 positions"
    ):
        place(policy, prompt, max_positions=100, max_new_tokens=11)


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(EmptyPromptError, match="no text"):
        _place("local", PromptTokens((), (), ()))


@pytest.mark.parametrize(("lengths", "labels"), [((2,), (PRIV,)), ((3,), ()), ((1, 2), (PUB,))])
def test_segments_that_do_not_cover_the_tokens_are_refused(lengths: tuple[int, ...], labels: tuple[Label, ...]) -> None:
    with pytest.raises(PromptError, match="do not cover"):
        _place("local", PromptTokens((1, 2, 3), lengths, labels))


def test_answer_of_no_token_is_refused() -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        place(load_builtin("local"), _prompt((9, PRIV)), max_positions=100, max_new_tokens=0)
