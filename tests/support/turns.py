"""Conversations of several turns: what is asked, what each turn's answer was, and what a cloud holds in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from splitinfer.answer import Answer
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.cloud import CloudService
from splitinfer.handoff import Segment
from splitinfer.model.engine import Engine
from splitinfer.segments import answered, note, public, question
from splitinfer.session import Session
from tests.support.memory_clouds import Paired, policy_of
from trust_models.policy import Policy

FIRST = (public("lamp 5, kettle 7"), note("Zoe"), question("which?"))
QUESTIONS = ("why?", "who?", "when?")
# The generation prompt is one token, so that a prompt's cache, without its last token, ends where its text ends.
SHORT_TAIL = (
    "{% for m in messages %}{{ ('<|im_end|>' if m['role'] == 'assistant' else '<|im_start|>') + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_end|>' }}{% endif %}"
)
SEEDED = {"temperature": 1.5, "top_p": 0.95, "seed": 7}


def keeping(mode: str, **sections: Any) -> Policy:
    """Return a policy under which the cloud may keep the session."""
    return policy_of(mode, session={"keep": True}, **sections)


def following(segments: list[Segment], said: Answer, turn: int) -> list[Segment]:
    """Return the conversation with this answer and the next question."""
    return [*segments, answered(said.text), question(QUESTIONS[turn])]


def talk(session: Session, *, turns: int = 3, **sampling: object) -> list[Answer]:
    """Run a conversation in one session."""
    segments, answers = list(FIRST), []
    for turn in range(turns):
        answers.append(session.run(segments, max_new_tokens=6, **sampling))
        segments = following(segments, answers[-1], turn)
    return answers


def talk_anew(pair: Paired, engine: Engine, *, turns: int = 3, **sampling: object) -> list[Answer]:
    """Run the same in mode `local` with a session for each turn, so that nothing is remembered."""
    segments, answers = list(FIRST), []
    for turn in range(turns):
        answers.append(pair.run("local", segments, engine, max_new_tokens=6, **sampling))
        segments = following(segments, answers[-1], turn)
    return answers


@contextmanager
def after_first_turn(
    pair: Paired, policy: str | Policy, engine: Engine, cloud: Any
) -> Iterator[tuple[Session, list[Segment]]]:
    """Yield a session after its first turn, and the prompt of the second."""
    with pair.session(policy, engine, cloud) as session:
        said = session.run(FIRST, max_new_tokens=6)
        yield session, following(list(FIRST), said, 0)


def held_by(cloud: CloudService) -> list[CacheSnapshot]:
    """Return the caches that a cloud keeps between turns."""
    return [held.snapshot for held in cloud._sessions._held.values()]


def is_wiped(snapshot: CacheSnapshot) -> bool:
    """Tell whether a snapshot's memory holds zeros only."""
    with torch.inference_mode():
        return not any(bool(tensor.any()) for layer in snapshot.layers for tensor in layer.values())


def codes(pair: Paired) -> list[tuple[str, str]]:
    """Return status and code of every outcome in the device's log."""
    return [(str(r["status"]), str(r.get("code", ""))) for r in pair.records() if r["type"] == "outcome"]
