from __future__ import annotations

import random

import pytest

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.prefix_timing import TimingResult, area_under_curve, probe
from splitinfer.evaluation.attacks.traffic import FEATURES, Message, TopicClassifier, Transcript, features, length_error


def transcript(size: int, *, tokens: int = 4, gap: float = 0.01) -> Transcript:
    frames = tuple(Message("down", 528, 0.1 + gap * place) for place in range(tokens))
    return Transcript((Message("up", size, 0.0), *frames))


def test_features_count_bytes_messages_and_gaps() -> None:
    found = dict(zip(FEATURES, features(transcript(1000)).tolist(), strict=True))
    assert (found["bytes_up"], found["bytes_down"]) == (1000, 4 * 528)
    assert (found["messages_up"], found["messages_down"]) == (1, 4)
    assert found["seconds_to_reply"] == pytest.approx(0.1)
    assert found["spaced_messages"] == 3


def test_a_run_in_which_nothing_crossed_has_no_features() -> None:
    assert features(Transcript(())).tolist() == [0.0] * len(FEATURES)


def test_a_topic_is_read_from_sizes_that_differ_by_topic() -> None:
    draw = random.Random(0)  # noqa: S311
    sizes = {"bank": 900, "clinic": 1500, "staff": 2500}

    def drawn(count: int) -> tuple[list[Transcript], list[str]]:
        topics = [draw.choice(list(sizes)) for _ in range(count)]
        return [transcript(sizes[topic] + draw.randint(-50, 50)) for topic in topics], topics

    classifier = TopicClassifier(*drawn(60))
    tested, topics = drawn(40)
    right = sum(mine == true for mine, true in zip(classifier.predict(tested), topics, strict=True))
    assert right / len(topics) > 0.9


def test_a_topic_is_not_read_from_sizes_that_are_all_one_bucket() -> None:
    draw = random.Random(1)  # noqa: S311
    topics = [draw.choice(["bank", "clinic", "staff", "support"]) for _ in range(80)]
    classifier = TopicClassifier([transcript(4096)] * 40, topics[:40])
    right = sum(
        mine == true for mine, true in zip(classifier.predict([transcript(4096)] * 40), topics[40:], strict=True)
    )
    assert right / 40 < 0.5


def test_a_length_is_guessed_from_sizes() -> None:
    known = [(transcript(100 * tokens), tokens) for tokens in range(20, 60, 2)]
    tested = [(transcript(100 * tokens), tokens) for tokens in range(25, 55, 6)]
    assert length_error(known, tested) < 3
    blind = [(transcript(4096), tokens) for _, tokens in known]
    assert length_error(blind, [(transcript(4096), tokens) for _, tokens in tested]) > 5


def test_a_classifier_of_one_topic_is_refused() -> None:
    with pytest.raises(UsageError, match="two topics"):
        TopicClassifier([transcript(1)], ["bank"])


def test_the_area_counts_pairs_in_order_and_ties_half() -> None:
    assert area_under_curve(lower=[1, 2], higher=[3, 4]) == 1.0
    assert area_under_curve(lower=[3, 4], higher=[1, 2]) == 0.0
    assert area_under_curve(lower=[1, 1], higher=[1, 1]) == 0.5
    assert area_under_curve(lower=[1, 3], higher=[2, 3]) == 0.625


def test_the_interval_of_an_area_holds_it_and_narrows() -> None:
    few, many = (TimingResult(tuple(range(0, 2 * count, 2)), tuple(range(1, 2 * count, 2))) for count in (20, 500))
    for result in (few, many):
        low, high = result.interval
        assert low < 0.5 < high
    assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]
    assert TimingResult((1.0, 1.0), (2.0, 2.0)).interval == (1.0, 1.0)


class Server:
    """Answers sooner where it has the prefix; `salted` keeps what one tenant sent from the other."""

    def __init__(self, *, salted: bool) -> None:
        self._salted = salted
        self._draw = random.Random(0)  # noqa: S311
        self._cached: set[tuple[str, tuple[int, ...]]] = set()

    def seconds(self, tenant: str, prefix: list[int]) -> float:
        key = (tenant if self._salted else "", tuple(prefix))
        is_hit = key in self._cached
        self._cached.add(key)
        return self._draw.gauss(0.01 if is_hit else 0.05, 0.01)


@pytest.mark.parametrize(("salted", "low", "high"), [(False, 0.9, 1.0), (True, 0.35, 0.65)])
def test_a_shared_prefix_cache_shows_in_time_and_a_salted_one_does_not(salted: bool, low: float, high: float) -> None:
    server = Server(salted=salted)
    result = probe(
        victim=lambda prefix: server.seconds("victim", list(prefix)),
        attacker_seconds=lambda prefix: server.seconds("attacker", list(prefix)),
        prefixes=[[place, 1, 2] for place in range(400)],
    )
    assert len(result.hits) == len(result.misses) == 200
    assert low <= result.auc <= high
