"""Write the public text on which the embedded model's artefact of `ftc1` is calibrated.

    python tools/write_calibration_text.py --out build/calibration.txt

Whole prompts of the synthetic corpus, of the entities that the model was trained on, with questions and answers, a form
feed between two; contexts of 64 to 1,024 tokens. A record separator says where a cache ends: before the first question,
as where public text is prefilled, or behind it, as where the whole prompt is. The same text every time.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.corpus import Context, Kind
from tools.corpus.prompts import make_context

LENGTHS = (64, 128, 128, 256, 256, 512, 512, 512, 768, 1024)
KINDS: tuple[Kind, ...] = ("mixed", "both", "notes", "table")
QUESTIONS = 6
QUESTION_SHARE = 0.7
END_OF_CACHE = "\x1e"


def prompt(context: Context, rng: random.Random) -> str:
    """Return a prompt with answers as the embedded model's template writes it."""
    marks = {"document": "<|doc|>", "note": "<|note|>"}
    parts = ["<|bos|>", *(f"{marks[segment.role.value]}{segment.text}\n" for segment in context.segments)]
    has_question = rng.random() < QUESTION_SHARE
    for index, question in enumerate(rng.sample(context.questions, len(context.questions))):
        before, behind = ("", END_OF_CACHE) if has_question else (END_OF_CACHE, "")
        marks_here = (before, behind) if not index else ("", "")
        parts.append(f"{marks_here[0]}<|user|> {question.text}{marks_here[1]}<|assistant|> {question.answer}<|end|>")
    return "".join(parts)


def text(count: int, *, kinds: Sequence[Kind] = KINDS) -> str:
    """Return so many prompts of these kinds, a form feed between two."""
    prompts = []
    for index in range(count):
        rng = random.Random(f"calibration/{index}")
        context = make_context(
            rng,
            tokens=LENGTHS[index % len(LENGTHS)],
            kind=kinds[index // len(LENGTHS) % len(kinds)],
            questions=QUESTIONS,
            count_tokens=lambda piece: len(piece) // 2,
            split="train",
        )
        prompts.append(prompt(context, rng))
    return "\f".join(prompts)


def main() -> int:
    """Write the file."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="file to write")
    made.add_argument("--prompts", type=int, default=480, help="how many prompts (default 480)")
    args = made.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text(args.prompts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
