"""Measure exact match of the embedded model, greedy, through the product's own prompt building.

An answer counts as exact where greedy decoding gives its tokens and then the end, and nothing else. Teacher forcing
decides that in one forward: every token of the answer must be the most likely one after the tokens before it. Every
question stands alone on its context; the questions of one context share a prefill and form one batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
import transformers
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer import embedded
from splitinfer.handoff import Role, Segment
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prompt import tokenize
from tools.corpus import Context, Kind, held_out_context

LENGTHS = (64, 128, 256, 512, 1024, 2048)
KINDS: tuple[Kind, ...] = get_args(Kind)
QUESTIONS_A_CONTEXT = 8
START, END = "<!-- bench-model:start -->", "<!-- bench-model:end -->"

Cell = tuple[int, int]
Results = dict[str, dict[str, Cell]]


def _count_tokens(loaded: LoadedModel, text: str) -> int:
    return len(loaded.tokenizer(text, add_special_tokens=False).input_ids)


def _answer_ids(loaded: LoadedModel, answer: str) -> list[int]:
    # The template writes an answer this way: a blank, the text, the end.
    ids = loaded.tokenizer(f" {answer}", add_special_tokens=False).input_ids
    return [*ids, loaded.tokenizer.eos_token_id]


def exact(loaded: LoadedModel, context: Context) -> list[bool]:
    """Return for each question of the context whether greedy decoding gives its answer."""
    prompts = [
        tokenize(loaded.tokenizer, [*context.segments, Segment(Role.QUESTION, q.text)]) for q in context.questions
    ]
    shared = sum(prompts[0].segment_lengths[:-1])
    cache = DynamicCache(config=loaded.model.config)
    loaded.model.base_model(torch.tensor([prompts[0].token_ids[:shared]]), past_key_values=cache)
    cache.batch_repeat_interleave(len(prompts))
    questions = [list(prompt.token_ids[shared:]) for prompt in prompts]
    answers = [_answer_ids(loaded, question.answer) for question in context.questions]
    rows = _padded([question + answer for question, answer in zip(questions, answers, strict=True)])
    guesses = loaded.model(rows, past_key_values=cache).logits.argmax(-1)
    return [
        guesses[index, len(question) - 1 : len(question) + len(answer) - 1].tolist() == answer
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]


def _padded(rows: Sequence[list[int]]) -> torch.Tensor:
    # Padding stands on the right, so that attention from earlier tokens never reaches it.
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def measure(loaded: LoadedModel, *, tokens: int, kind: Kind, questions: int) -> Cell:
    """Return how many answers were exactly right, and of how many: at least `questions`."""
    right = total = seed = 0
    while total < questions:
        context = held_out_context(
            seed,
            tokens=tokens,
            kind=kind,
            questions=QUESTIONS_A_CONTEXT,
            count_tokens=lambda text: _count_tokens(loaded, text),
        )
        verdicts = exact(loaded, context)
        right, total, seed = right + sum(verdicts), total + len(verdicts), seed + 1
    return right, total


def measure_all(loaded: LoadedModel, *, questions: int) -> Results:
    """Measure every length and kind; one line a cell goes to stderr."""
    results: Results = {}
    with torch.inference_mode():
        for length in LENGTHS:
            results[str(length)] = {}
            for kind in KINDS:
                started = time.perf_counter()
                right, total = measure(loaded, tokens=length, kind=kind, questions=questions)
                results[str(length)][kind] = (right, total)
                seconds = time.perf_counter() - started
                print(f"{length} {kind}: {right} of {total} in {seconds:.1f} s", file=sys.stderr, flush=True)
    return results


def table(results: Results) -> str:
    """Return the results and the conditions as Markdown."""
    lines = ["| context tokens | notes | table | both |", "|---|---|---|---|"]
    for length, cells in results.items():
        shown = [f"{right / total:.3f} ({right} of {total})" for right, total in (cells[kind] for kind in KINDS)]
        lines.append(f"| {int(length):,} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", conditions()])


def conditions() -> str:
    """Return how and on what the figures were measured."""
    return (
        f"Greedy, float32, entities that were never trained on, up to {QUESTIONS_A_CONTEXT} questions a context, each "
        f"alone on it; {platform.system()} {platform.machine()}, 1 thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}."
    )


def write(card: Path, text: str) -> None:
    """Put the table between the model card's two marks."""
    before, rest = card.read_text(encoding="utf-8").split(START)
    card.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """Measure every cell; print the table, and with --write put it into the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into splitinfer/embedded/MODEL_CARD.md")
    parser.add_argument("--questions", type=int, default=400, help="least number of questions a cell (default 400)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    results = measure_all(load("embedded", threads=1), questions=args.questions)
    text = table(results)
    print(json.dumps({"results": results, "conditions": conditions()}) if args.json else text)
    if args.write:
        write(embedded.path() / "MODEL_CARD.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
