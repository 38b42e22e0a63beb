"""Measure the embedded model: exact match by length and kind, prompts written by hand, float32 weights, speed.

An answer counts as exact where greedy decoding gives its tokens and then the end, and nothing else. Teacher forcing
decides that in one forward: every token of the answer must be the most likely one after the tokens before it. Every
question stands alone on its context; the questions of one context share a prefill and form one batch. Prompts written
by hand are decoded token by token.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer import embedded
from splitinfer.handoff import Label, Role, SamplingParams, Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prompt import tokenize
from tools.corpus import Context, Kind, held_out_context

LENGTHS = (64, 128, 256, 512, 1024, 2048)
KINDS: tuple[Kind, ...] = ("notes", "table", "both")
QUESTIONS_A_CONTEXT = 8
TRAINED_LENGTHS = (128, 256, 512)
SPEED_LENGTHS = (128, 512, 2048)
DECODED_TOKENS = 64
HAND_WRITTEN = Path(__file__).resolve().parents[1] / "tests" / "support" / "hand_written_prompts.toml"
START, END = "<!-- bench-model:start -->", "<!-- bench-model:end -->"

Cell = tuple[int, int]
Cells = dict[str, dict[str, Cell]]


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second at one prompt length."""

    prompt_tokens: int
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured; `wrong` are hand-written prompts with (question, wanted, got)."""

    cells: Cells
    trained: Cells
    hand_written: Cell
    wrong: list[tuple[str, str, str]]
    speeds: list[Speed]


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


def measure_all(loaded: LoadedModel, *, lengths: Sequence[int], questions: int) -> Cells:
    """Measure every length and kind; one line a cell goes to stderr."""
    results: Cells = {}
    with torch.inference_mode():
        for length in lengths:
            results[str(length)] = {}
            for kind in KINDS:
                started = time.perf_counter()
                right, total = measure(loaded, tokens=length, kind=kind, questions=questions)
                results[str(length)][kind] = (right, total)
                seconds = time.perf_counter() - started
                print(f"{length} {kind}: {right} of {total} in {seconds:.1f} s", file=sys.stderr, flush=True)
    return results


def segments_of(prompt: dict[str, Any]) -> list[Segment]:
    """Return a hand-written prompt as segments."""
    document = [Segment(Role.DOCUMENT, prompt["document"], Label.PUBLIC)] if "document" in prompt else []
    notes = [Segment(Role.NOTE, text) for text in prompt.get("notes", ())]
    return [*document, *notes, Segment(Role.QUESTION, prompt["question"])]


def answer(engine: Engine, segments: Sequence[Segment], *, tokens: int = DECODED_TOKENS) -> str:
    """Decode one prompt greedily."""
    ids = engine.tokenize(segments).token_ids
    snapshot = engine.prefill(ids, steps=[(0, len(ids) - 1)])
    decoding = engine.decode(snapshot, last_token=ids[-1], params=SamplingParams(max_new_tokens=tokens))
    list(decoding)
    return decoding.text


def hand_written(loaded: LoadedModel) -> tuple[Cell, list[tuple[str, str, str]]]:
    """Answer the prompts that were written by hand; return how many were right, and the wrong ones."""
    prompts = tomllib.loads(HAND_WRITTEN.read_text(encoding="utf-8"))["prompt"]
    engine = Engine(loaded)
    given = [(prompt["question"], prompt["answer"], answer(engine, segments_of(prompt))) for prompt in prompts]
    wrong = [(question, wanted, got) for question, wanted, got in given if wanted != got]
    return (len(given) - len(wrong), len(given)), wrong


def speed(loaded: LoadedModel, prompt_tokens: int, *, rounds: int = 5) -> Speed:
    """Time prefill and decode at one length; the best of several rounds."""
    engine, ids = Engine(loaded), [7 + index % 2000 for index in range(prompt_tokens)]
    prefills, decodes = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        snapshot = engine.prefill(ids, steps=[(0, prompt_tokens)])
        prefills.append(prompt_tokens / (time.perf_counter() - started))
        decoding = engine.decode(snapshot, last_token=7, params=SamplingParams(max_new_tokens=DECODED_TOKENS))
        started = time.perf_counter()
        made = len(list(decoding))
        decodes.append(max(made, 1) / (time.perf_counter() - started))
    return Speed(prompt_tokens, max(prefills), max(decodes))


def rows_of(cells: Cells) -> list[str]:
    """Return a Markdown table of shares by length and kind."""
    lines = ["| context tokens | notes | table | both |", "|---|---|---|---|"]
    for length, kinds in cells.items():
        shown = [f"{right / total:.3f} ({right} of {total})" for right, total in (kinds[kind] for kind in KINDS)]
        lines.append(f"| {int(length):,} | {' | '.join(shown)} |")
    return lines


def table(report: Report) -> str:
    """Return the report and its conditions as Markdown."""
    right, total = report.hand_written
    lines = [*rows_of(report.cells), "", conditions(), ""]
    if report.trained:
        lines += ["The float32 weights as trained, before they were stored in bf16:", "", *rows_of(report.trained), ""]
    lines += [f"Prompts written by hand, not by the generator: {right} of {total} right.", ""]
    lines += [f"- {question} Right: `{wanted}`; answered: `{got}`." for question, wanted, got in report.wrong]
    lines += ["", "| prompt tokens | prefill, tokens/s | decode, tokens/s |", "|---|---|---|"]
    lines += [f"| {s.prompt_tokens:,} | {s.prefill:,.0f} | {s.decode:,.0f} |" for s in report.speeds]
    return "\n".join([*lines, "", f"One thread, float32, best of 5, {DECODED_TOKENS} tokens decoded."])


def conditions() -> str:
    """Return how and on what the figures were measured."""
    return (
        f"Greedy, float32, entities that were never trained on, up to {QUESTIONS_A_CONTEXT} questions a context, each "
        f"alone on it; {platform.system()} {platform.machine()}, 1 thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}."
    )


def write(card: Path, text: str) -> None:
    """Put the text between the model card's two marks."""
    before, rest = card.read_text(encoding="utf-8").split(START)
    card.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _trained(folder: str | None, questions: int) -> Cells:
    if folder is None:
        return {}
    return measure_all(load(folder, threads=1), lengths=TRAINED_LENGTHS, questions=questions)


def main() -> int:
    """Measure everything; print the tables, and with --write put them into the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into splitinfer/embedded/MODEL_CARD.md")
    parser.add_argument("--model", default="embedded", help="another folder with such a model (default: embedded)")
    parser.add_argument("--trained", help="folder with the same weights in float32, to be measured beside")
    parser.add_argument("--questions", type=int, default=400, help="least number of questions a cell (default 400)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    loaded = load(args.model, threads=1)
    (right, total), wrong = hand_written(loaded)
    report = Report(
        measure_all(loaded, lengths=LENGTHS, questions=args.questions),
        _trained(args.trained, args.questions),
        (right, total),
        wrong,
        [speed(loaded, length) for length in SPEED_LENGTHS],
    )
    text = table(report)
    if args.json:
        speeds = [(s.prompt_tokens, s.prefill, s.decode) for s in report.speeds]
        facts = {
            "exact": report.cells,
            "trained": report.trained,
            "hand_written": report.hand_written,
            "speeds": speeds,
        }
        print(json.dumps(facts | {"conditions": conditions()}))
    else:
        print(text)
    if args.write:
        write(embedded.path() / "MODEL_CARD.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
