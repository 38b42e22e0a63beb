"""Made questions for any model: texts -> needles and digits, token ids with the place of their answer; no model runs.

A needle is one sentence in a long text, whose end is asked again; digits are a list of numbers that the text repeats.
A model that copies at all gives the answer on the exact cache, and what a codec blurred shows in the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

__all__ = ["Question", "digit_copies", "needles"]

_NAMES = ("Alder", "Birch", "Cedar", "Elm", "Hazel", "Juniper", "Larch", "Maple", "Oak", "Pine", "Rowan", "Willow")
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Question:
    """Tokens whose cache moves, tokens fed on it (the first of them ends the prompt), and the answer's tokens."""

    context: tuple[int, ...] = field(repr=False)
    prompt: tuple[int, ...] = field(repr=False)
    answer: tuple[int, ...] = field(repr=False)


def needles(
    tokenizer: PreTrainedTokenizerBase, filler: Sequence[str], *, tokens: int, count: int
) -> tuple[Question, ...]:
    """Make questions about one number each, in fillers of about so many tokens."""
    rng = random.Random(1)  # noqa: S311
    return tuple(_needle(tokenizer, filler[index % len(filler)], tokens, rng) for index in range(count))


def digit_copies(tokenizer: PreTrainedTokenizerBase, *, count: int, lines: int = 12) -> tuple[Question, ...]:
    """Make lists of numbered codes, one of which is to be repeated."""
    rng = random.Random(2)  # noqa: S311
    return tuple(_digits(tokenizer, lines, rng) for _ in range(count))


def _needle(tokenizer: PreTrainedTokenizerBase, filler: str, tokens: int, rng: random.Random) -> Question:
    name, number = rng.choice(_NAMES), _number(rng)
    ids = _ids(tokenizer, filler)
    start = rng.randrange(max(1, len(ids) - tokens))
    cut = ids[start : start + tokens]
    at = rng.randrange(len(cut) + 1)
    fact = _ids(tokenizer, f"\n{name}: Code {number}\n")
    return _question(tokenizer, [*cut[:at], *fact, *cut[at:]], f"\n{name}: Code", number)


def _digits(tokenizer: PreTrainedTokenizerBase, lines: int, rng: random.Random) -> Question:
    names = [f"{name} {index}" for index, name in enumerate(rng.sample(_NAMES, min(lines, len(_NAMES))), start=1)]
    numbers = [_number(rng) for _ in names]
    text = "".join(f"- {name}: Code {number}\n" for name, number in zip(names, numbers, strict=True))
    chosen = rng.randrange(len(names))
    return _question(tokenizer, _ids(tokenizer, text), f"- {names[chosen]}: Code", numbers[chosen])


def _question(tokenizer: PreTrainedTokenizerBase, context: list[int], prompt: str, answer: str) -> Question:
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    whole = _ids(tokenizer, f"{prompt} {answer}")
    asked = _ids(tokenizer, prompt)
    # A tokenizer may join what stands at the seam; the answer is what follows the common part.
    shared = next((i for i, (a, b) in enumerate(zip(whole, asked, strict=False)) if a != b), len(asked))
    shared = min(max(1, shared), len(whole) - 1)
    return Question((*begin, *context), tuple(whole[:shared]), tuple(whole[shared:]))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** (_DIGITS - 1), 10**_DIGITS))
