"""The prompts that attacks are played on: a seed -> public document, private note with a personal value, question.

Evaluation; no IO. Every prompt has one personal value, and look-alikes of it for closed-set confirmation. The topic is
the kind of record: notes of different topics have different lengths, as real ones have.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from splitinfer.handoff import Label, Role, Segment

__all__ = ["TOPICS", "EvaluationPrompt", "lookalikes", "make_prompts"]

_FIRST = ("Maria", "Noah", "Amara", "Liam", "Ines", "Kenji", "Olga", "Samir", "Tessa", "Bruno", "Priya", "Jonas")
_LAST = ("Lopez", "Okafor", "Lindholm", "Tanaka", "Moreau", "Petrov", "Haddad", "Novak", "Silva", "Keller", "Rossi")
_THINGS = ("kettle", "lamp", "router", "heater", "printer", "blender", "drill", "camera", "scale", "fan")
_SYLLABLES = ("tor", "van", "bel", "sa", "kar", "imo", "dan", "ora", "vel", "mo", "rin", "zet", "pol", "nu", "fex")

# Topic: title, its prefix, and labels with patterns; 9 stands for a digit, A for a letter. The first is the value.
TOPICS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "support": ("Support ticket", "TCK", (("Phone", "999-999-9999"), ("Order", "ORD-99999"))),
    "clinic": (
        "Patient record",
        "PAT",
        (
            ("Phone", "+49 999 999 999"),
            ("Date of birth", "1999-09-19"),
            ("Insurance number", "AA-9999999"),
            ("Room", "A99"),
            ("Next visit", "2029-01-19"),
        ),
    ),
    "bank": (
        "Bank record",
        "ACC",
        (("Card number", "9999 9999 9999 9999"), ("Account number", "KX-9999999"), ("Balance", "$9,999.99")),
    ),
    "staff": (
        "Employee record",
        "EMP",
        (
            ("Salary", "$99,999"),
            ("Badge", "A-9999"),
            ("Phone", "0999 999999"),
            ("Desk", "A99"),
            ("Started", "2019-09-19"),
            ("Locker", "999"),
            ("Parking space", "A9"),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One prompt: its segments, the right answer, which is the personal value, and its topic."""

    segments: tuple[Segment, ...] = field(repr=False)
    secret: str = field(repr=False)
    topic: str

    def with_secret(self, value: str) -> EvaluationPrompt:
        """Return the same prompt with another personal value in it."""
        segments = tuple(Segment(x.role, x.text.replace(self.secret, value), x.label, x.source) for x in self.segments)
        return EvaluationPrompt(segments, value, self.topic)


def make_prompts(count: int, *, seed: int, document_rows: int = 3) -> list[EvaluationPrompt]:
    """Draw prompts, the topics in turn; the same seed gives the same prompts."""
    draw = random.Random(f"splitinfer evaluation {seed}")
    topics = list(TOPICS)
    return [_prompt(draw, topics[place % len(topics)], document_rows) for place in range(count)]


def lookalikes(prompt: EvaluationPrompt, count: int, *, seed: int) -> list[str]:
    """Return `count` values of the same form, the true one at a random place among them."""
    draw = random.Random(f"splitinfer look-alikes {seed} {prompt.topic}")
    found = {prompt.secret}
    while len(found) < count:
        found.add("".join(draw.choice("0123456789") if letter.isdigit() else letter for letter in prompt.secret))
    values = sorted(found)
    draw.shuffle(values)
    return values


def _prompt(draw: random.Random, topic: str, document_rows: int) -> EvaluationPrompt:
    title, prefix, fields = TOPICS[topic]
    name = f"{draw.choice(_FIRST)} {draw.choice(_LAST)}"
    values = [(label, _filled(draw, pattern)) for label, pattern in fields]
    lines = [f"{title} {prefix}-{_filled(draw, '99999')}", f"Name: {name}"]
    lines += [f"{label}: {value}" for label, value in values]
    label, secret = values[0]
    segments = (
        Segment(Role.DOCUMENT, _document(draw, document_rows), Label.PUBLIC),
        Segment(Role.NOTE, "\n".join(lines), Label.PRIVATE),
        Segment(Role.QUESTION, f"What is the {label[0].lower()}{label[1:]} of {name}?", Label.PRIVATE),
    )
    return EvaluationPrompt(segments, secret, topic)


def _document(draw: random.Random, rows: int) -> str:
    lines = [f"Price list of {_word(draw)} Systems"]
    for _ in range(rows):
        thing, price, stock = draw.choice(_THINGS), draw.randint(5, 300), draw.randint(2, 150)
        lines.append(f"- {_word(draw)} {thing}: price ${price}.{_filled(draw, '99')}, stock {stock} units")
    return "\n".join(lines)


def _word(draw: random.Random) -> str:
    return "".join(draw.sample(_SYLLABLES, draw.randint(2, 3))).capitalize()


def _filled(draw: random.Random, pattern: str) -> str:
    letters = {"9": "0123456789", "A": "ABCDEFGHKLMNPRSTVXZ"}
    return "".join(draw.choice(letters[sign]) if sign in letters else sign for sign in pattern)
