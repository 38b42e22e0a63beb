"""What every codec saves and what it costs the embedded model: size against bfloat16, and the loss that was measured.

Prompts are held-out contexts of the synthetic corpus, whose entities were never trained on, at 512 tokens. Sizes are of
the model's own caches, computed in bfloat16, and compared with the same slabs as they are: before padding, and as they
travel, padded to a size class. Losses are those that `splitinfer model measure` gives (`splitinfer.model.measure`), in
the float32 in which the product computes: divergence, agreement of the most probable next token, perplexity. Answers
are counted besides: how many of the corpus's questions are answered exactly, greedily, after the prompt's cache moved.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, parser, print_report, progress, report
from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.handoff import Role, SamplingParams, Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.measure import Window, measure
from splitinfer.model.prefill import prefill
from splitinfer.model.prompt import tokenize
from splitinfer.schedule import LENGTH_BYTES, padme
from tools.corpus import Context, held_out_context
from trust_models.codecs import Loss

SCORED_TOKENS = 64
SIZE_MARKS = {"lossless": 1.3, "q8": 1.8, "k6v4": 2.7}
UNPADDED_MARKS = {"lossless": 1.4}
AGREEMENT_MARKS = {"q8": 0.995, "k6v4": 0.98}
TRUE_ANSWER_TOKENS = 48


def contexts(loaded: LoadedModel, *, tokens: int, count: int) -> list[Context]:
    """Draw contexts of about this many tokens, a public table and private notes, one question each."""

    def counted(text: str) -> int:
        return len(loaded.tokenizer(text, add_special_tokens=False).input_ids)

    return [
        held_out_context(seed, tokens=tokens, kind="both", questions=1, count_tokens=counted) for seed in range(count)
    ]


def prompt_ids(loaded: LoadedModel, context: Context) -> tuple[int, ...]:
    """Return the prompt's tokens, as the product makes them."""
    segments = [*context.segments, Segment(Role.QUESTION, context.questions[0].text)]
    return tokenize(loaded.tokenizer, segments).token_ids


def scored_windows(loaded: LoadedModel, *, tokens: int, count: int) -> list[Window]:
    """Cut prompts that are longer than `tokens` there: so many are prefilled, the next ones are predicted."""
    found: list[Window] = []
    seed_count = count
    while len(found) < count:
        drawn = contexts(loaded, tokens=tokens + 2 * SCORED_TOKENS, count=seed_count)
        ids = [prompt_ids(loaded, context) for context in drawn]
        size = tokens + SCORED_TOKENS + 1
        found = [Window(one[:size], tokens) for one in ids if len(one) >= size][:count]
        seed_count += count
    return found


# --- sizes ----------------------------------------------------------------------------------------------------------


def sizes(loaded: LoadedModel, windows: list[Window]) -> dict[str, tuple[float, float]]:
    """Return how many times smaller than bfloat16 each codec makes the caches, before and after padding."""
    caches = [prefill(loaded.model, w.token_ids, steps=[(0, w.context_tokens)]) for w in windows]
    return {name: _times_smaller(caches, name) for name in codec.UNCALIBRATED}


def _times_smaller(caches: list[CacheSnapshot], name: str) -> tuple[float, float]:
    raw = coded = wire = 0
    for cache in caches:
        padded = schedule.pad_tokens(cache.true_tokens)
        raw += codec.pack(cache, codec="raw", padded_tokens=cache.true_tokens).size_bytes
        coded += _coded_bytes(cache, name, cache.true_tokens)
        wire += codec.pack(cache, codec=name, padded_tokens=padded).size_bytes
    return raw / coded, raw / wire


def _coded_bytes(cache: CacheSnapshot, name: str, tokens: int) -> int:
    """Return the bytes before padding: of token rows, and of the size class that a variable length is rounded to."""
    packed = codec.pack(cache, codec=name, padded_tokens=tokens)
    total = sum(len(slab) for slab in packed.slabs())
    if not packed.is_variable:
        return total
    count = sum(1 for _ in schedule.slabs(cache.layout, tokens))
    used, slabs = 0, packed.slabs()
    for _ in range(count):
        used += len(next(slabs))
    if padme(used) != total or used < LENGTH_BYTES * count:
        raise RuntimeError("the coded bytes are not the size class of their slabs")
    return used


# --- answers --------------------------------------------------------------------------------------------------------


def answers_right(loaded: LoadedModel, drawn: list[Context]) -> dict[str, int]:
    """Return for each codec how many questions are answered exactly after the prompt's cache moved through it."""
    engine = Engine(loaded)
    right = dict.fromkeys(codec.UNCALIBRATED, 0)
    for context in drawn:
        ids = prompt_ids(loaded, context)
        cache = engine.prefill(ids, steps=[(0, len(ids) - 1)])
        for name in right:
            right[name] += _answer(engine, codec.move(cache, codec=name), ids[-1]) == context.questions[0].answer
    return right


def _answer(engine: Engine, cache: CacheSnapshot, last_token: int) -> str:
    decoding = engine.decode(cache, last_token=last_token, params=SamplingParams(max_new_tokens=TRUE_ANSWER_TOKENS))
    for _ in decoding:
        pass
    return decoding.text.strip()


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure every codec and return the report."""
    in_bfloat16, loaded = load("embedded", dtype="bfloat16"), load("embedded")
    windows = scored_windows(loaded, tokens=args.tokens, count=args.windows)
    progress("sizes")
    smaller = sizes(in_bfloat16, windows[: args.caches])
    losses: dict[str, Loss] = {}
    for name in codec.UNCALIBRATED:
        progress(f"loss of {name}")
        losses[name] = measure(loaded, windows, through=partial(codec.move, codec=name))
    progress("answers")
    drawn = contexts(loaded, tokens=args.tokens, count=args.questions)
    right = answers_right(loaded, drawn)
    rows = [_row(name, smaller[name], losses[name], right[name] / len(drawn)) for name in codec.UNCALIBRATED]
    return report(
        "loss",
        setting=(
            f"the embedded model, prompts of {args.tokens} tokens: {min(args.caches, len(windows))} caches in bfloat16 "
            f"for sizes, {len(windows)} windows of {SCORED_TOKENS} scored tokens, {len(drawn)} questions"
        ),
        rows=rows,
        marks=_marks(smaller, losses),
        prompt_tokens=args.tokens,
    )


def _row(name: str, smaller: tuple[float, float], loss: Loss, accuracy: float) -> dict[str, object]:
    return {
        "codec": name,
        "times_smaller": smaller[0],
        "times_smaller_padded": smaller[1],
        "kl_nats": loss.kl_nats,
        "kl_error_nats": loss.kl_error_nats,
        "top1_agreement": loss.top1_agreement,
        "perplexity_ratio": loss.perplexity_ratio,
        "answers_right": accuracy,
        "scored_tokens": loss.tokens,
    }


def _marks(smaller: dict[str, tuple[float, float]], losses: dict[str, Loss]) -> list[Mark]:
    marks = [
        Mark(f"{name}: times smaller than bfloat16, before padding", smaller[name][0], bar, "at least")
        for name, bar in UNPADDED_MARKS.items()
    ]
    marks += [
        Mark(f"{name}: times smaller than bfloat16, padded", smaller[name][1], bar, "at least")
        for name, bar in SIZE_MARKS.items()
    ]
    marks += [
        Mark(f"{name}: the same most probable token", losses[name].top1_agreement, bar, "at least")
        for name, bar in AGREEMENT_MARKS.items()
    ]
    return marks


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    made = parser(__doc__, "python benchmarks/loss.py --windows 16 --questions 20 --json > loss.json")
    made.add_argument("--tokens", type=int, default=512, help="prompt tokens (default 512)")
    made.add_argument("--windows", type=int, default=48, help="prompts that are scored (default 48)")
    made.add_argument("--caches", type=int, default=16, help="caches that are measured for size (default 16)")
    made.add_argument("--questions", type=int, default=100, help="questions that are answered (default 100)")
    args = made.parse_args(argv)
    if args.quick:
        args.tokens, args.windows, args.caches, args.questions = 128, 2, 2, 2
    torch.set_num_threads(1)
    print_report(run(args), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
