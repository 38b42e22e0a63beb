"""Files of real questions -> token ids with the place of their answer; no model runs.

One JSON object a line: `segments`, a list of objects with `role` (document, note or question) and `text`, the question
last, and `answer`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from splitinfer.calibration.needles import Question
from splitinfer.errors import UsageError
from splitinfer.handoff import Role, Segment
from splitinfer.model.loading import LoadedModel
from splitinfer.model.prompt import tokenize

__all__ = ["QUESTIONS_NAME", "read_questions"]

QUESTIONS_NAME = "held_out_questions.jsonl"


def read_questions(loaded: LoadedModel, paths: Sequence[Path]) -> tuple[Question, ...]:
    """Read question files; the cache of all tokens but a prompt's last is what moves. Raises UsageError."""
    found = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [_question(loaded, json.loads(line)) for line in lines if line.strip()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f'{path} is not a file of questions; write {{"segments": [...], "answer": "..."}} a line'
            ) from error
    return tuple(question for question in found if _fits(question, loaded.max_positions))


def _question(loaded: LoadedModel, row: dict[str, object]) -> Question:
    segments, answer = row["segments"], row["answer"]
    if not isinstance(segments, list) or not isinstance(answer, str):
        raise TypeError("segments and answer")
    ids = tokenize(loaded.tokenizer, [Segment(Role(one["role"]), one["text"]) for one in segments]).token_ids
    # A blank, the text, the end: as the template of the embedded model writes an answer.
    wanted = loaded.tokenizer.encode(f" {answer}", add_special_tokens=False)
    end = loaded.tokenizer.eos_token_id
    return Question(ids[:-1], ids[-1:], (*wanted, *([end] if end is not None else [])))


def _fits(question: Question, max_positions: int) -> bool:
    return len(question.context) + len(question.prompt) + len(question.answer) <= max_positions
