"""What an attack or a policy is judged by: recovered and true tokens or texts -> figures. Evaluation; no IO.

Recovery is counted in real tokens at their own positions, never in a similarity under another name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from splitinfer.evaluation.intervals import Rate

__all__ = ["TENTHS", "Cost", "Recovery", "by_tenth", "contains", "recovery", "rouge_l"]

TENTHS = 10


@dataclass(frozen=True, slots=True)
class Recovery:
    """How much of one prompt's private part was recovered: tokens, all of them, the personal value, ROUGE-L of text."""

    tokens: Rate
    exact: Rate
    personal_data: Rate
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run cost. `device_cpu_seconds` is all CPU time of the process but that of the cloud's calls."""

    bytes_up: int
    bytes_down: int
    ttft_seconds: float
    tpot_seconds: float
    device_cpu_seconds: float


def recovery(
    found: Sequence[int],
    true: Sequence[int],
    *,
    private: Collection[int],
    found_text: str,
    true_text: str,
    secret: str,
) -> Recovery:
    """Compare at the private positions; a position beyond the end of `found` was not recovered.

    Without private positions the texts alone are compared, and the token rates have no trials.
    `found_text` is the text of what was recovered there, in which the personal value is looked for.
    """
    hits = sum(place < len(found) and found[place] == true[place] for place in private)
    return Recovery(
        tokens=Rate(hits, len(private)),
        exact=Rate(hits == len(private), 1) if private else Rate(0, 0),
        personal_data=Rate(contains(found_text, secret), 1),
        rouge_l=rouge_l(found_text.split(), true_text.split()),
    )


def by_tenth(found: Sequence[int], true: Sequence[int], *, private: Sequence[int]) -> tuple[Rate, ...]:
    """Return the share of tokens recovered in each tenth of the private positions, first to last."""
    tenths = [Rate(0, 0)] * TENTHS
    for index, place in enumerate(private):
        hit = place < len(found) and found[place] == true[place]
        tenths[TENTHS * index // len(private)] += Rate(hit, 1)
    return tuple(tenths)


def contains(text: str, value: str) -> bool:
    """Tell whether a value stands in a text, whatever the white space."""
    return "".join(value.split()) in "".join(text.split())


def rouge_l(found: Sequence[object], true: Sequence[object]) -> float:
    """Return the F1 of the longest common subsequence of two sequences of words (Lin 2004)."""
    if not found or not true:
        return 0.0
    common = _common_subsequence(found, true)
    return 2 * common / (len(found) + len(true))


def _common_subsequence(first: Sequence[object], second: Sequence[object]) -> int:
    lengths = [0] * (len(second) + 1)
    for left in first:
        diagonal = 0
        for place, right in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if left == right else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
