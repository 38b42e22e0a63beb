"""Write what `splitinfer model measure embedded` measures on, besides plain prose: held-out contexts and questions.

    python tools/write_held_out_text.py

Tables and notes of the synthetic corpus whose entities were never trained on, and questions about such ones with their
answers; the same every time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer import embedded
from splitinfer.calibration.questions import QUESTIONS_NAME
from tools.corpus import Kind, held_out_context

CONTEXTS, CONTEXT_TOKENS = 8, 700
QUESTIONS, QUESTION_TOKENS, FIRST_SEED = 96, 480, 9000
KINDS: tuple[Kind, ...] = ("notes", "table", "both")


def text() -> str:
    """Return the contexts one after another, a line between them."""
    contexts = [
        held_out_context(
            seed, tokens=CONTEXT_TOKENS, kind="both", questions=1, count_tokens=lambda piece: len(piece) // 2
        )
        for seed in range(CONTEXTS)
    ]
    return "\n\n".join("\n".join(segment.text.strip() for segment in context.segments) for context in contexts) + "\n"


def questions() -> str:
    """Return questions with their prompts and answers, one JSON object a line."""
    lines = []
    for index in range(QUESTIONS):
        context = held_out_context(
            FIRST_SEED + index,
            tokens=QUESTION_TOKENS,
            kind=KINDS[index % len(KINDS)],
            questions=1,
            count_tokens=lambda piece: len(piece) // 2,
        )
        asked = context.questions[0]
        segments = [{"role": segment.role.value, "text": segment.text} for segment in context.segments]
        segments.append({"role": "question", "text": asked.text})
        lines.append(json.dumps({"segments": segments, "answer": asked.answer}, ensure_ascii=False))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (embedded.path() / QUESTIONS_NAME).write_text(questions(), encoding="utf-8")
    (embedded.path() / "held_out.txt").write_text(text(), encoding="utf-8")
