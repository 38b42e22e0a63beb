from __future__ import annotations

from splitinfer.evaluation.prompts import TOPICS, lookalikes, make_prompts
from splitinfer.handoff import Label, Role


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others() -> None:
    assert make_prompts(6, seed=1) == make_prompts(6, seed=1)
    assert make_prompts(6, seed=1) != make_prompts(6, seed=2)


def test_the_topics_come_in_turn() -> None:
    assert [prompt.topic for prompt in make_prompts(2 * len(TOPICS), seed=0)] == [*TOPICS, *TOPICS]


def test_the_personal_value_stands_in_private_text_only() -> None:
    for prompt in make_prompts(8, seed=3):
        holding = [segment for segment in prompt.segments if prompt.secret in segment.text]
        assert [segment.role for segment in holding] == [Role.NOTE]
        assert all(segment.label is Label.PRIVATE for segment in holding)


def test_lookalikes_have_the_form_of_the_value_and_hold_it_once() -> None:
    for prompt in make_prompts(4, seed=4):
        values = lookalikes(prompt, 100, seed=0)
        assert len(set(values)) == len(values) == 100
        assert values.count(prompt.secret) == 1
        forms = {"".join("9" if letter.isdigit() else letter for letter in value) for value in values}
        assert len(forms) == 1


def test_another_value_changes_nothing_else() -> None:
    (prompt,) = make_prompts(1, seed=5)
    other = prompt.with_secret("000-000-0000")
    assert other.with_secret(prompt.secret) == prompt
    assert prompt.secret not in "".join(segment.text for segment in other.segments)
