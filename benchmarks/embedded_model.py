"""Measure exact match of the embedded model, greedy, through the product's own prompt building.

Every question stands alone on its context; the questions of one context are batched on one shared cache.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer import embedded
from splitinfer.handoff import PromptTokens, Role, Segment
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prompt import tokenize
from tools.corpus import Context, held_out_context

LENGTHS = (64, 128, 256, 512, 1024, 2048)
KINDS = ("notes", "table", "both")
START, END = "<!-- bench-model:start -->", "<!-- bench-model:end -->"
ANSWER_TOKENS = 40


def _prompts(loaded: LoadedModel, context: Context) -> list[PromptTokens]:
    return [tokenize(loaded.tokenizer, [*context.segments, Segment(Role.QUESTION, q.text)]) for q in context.questions]


def _greedy(loaded: LoadedModel, prompts: list[PromptTokens]) -> list[str]:
    """Decode all prompts greedily on the cache of the tokens that they share."""
    shared = sum(prompts[0].segment_lengths[:-1])
    prefix = torch.tensor([prompts[0].token_ids[:shared]])
    cache = DynamicCache(config=loaded.model.config)
    loaded.model(prefix, past_key_values=cache, logits_to_keep=1)
    return [_answer(loaded, prompt.token_ids[shared:], cache) for prompt in prompts]


def _answer(loaded: LoadedModel, ids: tuple[int, ...], shared: DynamicCache) -> str:
    cache, step, answer = copy.deepcopy(shared), list(ids), []
    while len(answer) < ANSWER_TOKENS:
        token = int(loaded.model(torch.tensor([step]), past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax())
        if token in loaded.eos_token_ids:
            break
        answer.append(token)
        step = [token]
    return str(loaded.tokenizer.decode(answer)).strip()


def measure(loaded: LoadedModel, *, tokens: int, kind: str, questions: int) -> tuple[int, int]:
    """Return how many of at least `questions` answers were exactly right, and of how many."""
    per_context = min(60, max(8, tokens // 16))
    right = total = seed = 0
    while total < questions:
        context = held_out_context(
            seed,
            tokens=tokens,
            kind=kind,
            questions=min(per_context, questions - total),
            count_tokens=lambda text: len(loaded.tokenizer(text, add_special_tokens=False).input_ids),
        )
        answers = _greedy(loaded, _prompts(loaded, context))
        right += sum(a == q.answer for a, q in zip(answers, context.questions, strict=True))
        total, seed = total + len(answers), seed + 1
    return right, total


def _table(results: dict[str, dict[str, tuple[int, int]]], machine: str) -> str:
    rows = ["| context tokens | notes | table | both |", "|---|---|---|---|"]
    for length, cells in results.items():
        shown = [f"{r / n:.3f} ({r}/{n})" if n else "-" for r, n in (cells.get(kind, (0, 0)) for kind in KINDS)]
        rows.append(f"| {length} | {' | '.join(shown)} |")
    return "\n".join([*rows, "", machine])


def main() -> int:
    """Measure every cell; print the table, and with --write put it into the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into splitinfer/embedded/MODEL_CARD.md")
    parser.add_argument("--questions", type=int, default=400, help="questions a cell (default 400)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    loaded = load("embedded")
    results: dict[str, dict[str, tuple[int, int]]] = {}
    with torch.inference_mode():
        for length in LENGTHS:
            kinds = [kind for kind in KINDS if kind != "both" or length >= 128]
            results[str(length)] = {}
            for kind in kinds:
                cell = measure(loaded, tokens=length, kind=kind, questions=args.questions)
                results[str(length)][kind] = cell
                print(length, kind, *cell, file=sys.stderr, flush=True)
    machine = (
        f"Exact match, greedy, held-out entities; {platform.machine()}, 1 thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}."
    )
    print(json.dumps({"results": results, "machine": machine}) if args.json else _table(results, machine))
    if args.write:
        card = embedded.path() / "MODEL_CARD.md"
        before, rest = card.read_text(encoding="utf-8").split(START)
        card.write_text(f"{before}{START}\n{_table(results, machine)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
