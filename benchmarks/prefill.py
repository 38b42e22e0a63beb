"""Prefill that ends where the cache is complete against the whole forward, in the same run, one thread.

The embedded model, and a model of 8 layers with random weights. Time is this thread's CPU time, so that waiting for a
core does not count. Rounds are interleaved, which case goes first alternates, and the best of each counts, because
other work on the machine can only add time. The caches are compared as well. Exits 1 where a ratio is below the mark or
a cache differs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, parser, print_report, report
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.model.loading import load
from splitinfer.model.prefill import prefill
from splitinfer.model.probe import prefill_ends_early

MARK = 1.1
WARM_UP_ROUNDS = 1


@dataclass(frozen=True)
class Row:
    """The best CPU milliseconds of one model with and without the early end."""

    model: str
    layers: int
    whole_ms: float
    early_ms: float
    identical: bool

    @property
    def ratio(self) -> float:
        """Return how many times faster the prefill is that ends early."""
        return self.whole_ms / self.early_ms

    @property
    def is_good(self) -> bool:
        """Tell whether the mark is reached by caches that are equal."""
        return self.identical and self.ratio >= MARK


def random_model(layers: int) -> PreTrainedModel:
    """Make a Llama of this many layers with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").requires_grad_(False).eval()


def measure(name: str, model: PreTrainedModel, *, tokens: int, rounds: int) -> Row:
    """Time both cases in turn."""
    if not prefill_ends_early(model):
        sys.exit(f"{name}: prefill does not end early here")
    vocabulary = model.get_input_embeddings().num_embeddings
    token_ids = [3 + index * 7919 % (vocabulary - 3) for index in range(tokens)]
    best = {False: float("inf"), True: float("inf")}
    caches: dict[bool, CacheSnapshot] = {}
    for number in range(WARM_UP_ROUNDS + rounds):
        for ends_early in (False, True) if number % 2 else (True, False):
            began = time.thread_time()
            caches[ends_early] = prefill(model, token_ids, steps=[(0, tokens)], ends_early=ends_early)
            seconds = time.thread_time() - began
            if number >= WARM_UP_ROUNDS:
                best[ends_early] = min(best[ends_early], seconds)
    layers = len(caches[True].layers)
    return Row(name, layers, best[False] * 1e3, best[True] * 1e3, _is_identical(caches[False], caches[True]))


def _is_identical(ours: CacheSnapshot, theirs: CacheSnapshot) -> bool:
    pairs = zip(ours.layers, theirs.layers, strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or JSON; returns 0 where every ratio reaches the mark and no cache differs, else 1."""
    made = parser(__doc__, "python benchmarks/prefill.py --tokens 256")
    made.add_argument("--tokens", type=int, default=512, metavar="N", help="prompt tokens (default 512)")
    made.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds that count (default 40)")
    args = made.parse_args(argv)
    if args.quick:
        args.tokens, args.rounds = 64, 2
    models = {"embedded": load("embedded", threads=1).model, "random": random_model(8)}
    rows = [measure(name, model, tokens=args.tokens, rounds=args.rounds) for name, model in models.items()]
    marks = [Mark(f"{row.model}: whole to early", row.ratio, MARK, "at least") for row in rows]
    marks += [Mark(f"{row.model}: caches that differ", not row.identical, 0, "at most") for row in rows]
    found = report(
        "prefill",
        setting=(
            f"{args.tokens} tokens in one step, float32, CPU time of one thread, best of {args.rounds} interleaved "
            "rounds"
        ),
        rows=[
            {
                "model": row.model,
                "layers": row.layers,
                "whole_ms": row.whole_ms,
                "early_ms": row.early_ms,
                "ratio": row.ratio,
                "caches_identical": row.identical,
            }
            for row in rows
        ],
        marks=marks,
    )
    print_report(found, as_json=args.json)
    return 0 if args.quick or all(row.is_good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
