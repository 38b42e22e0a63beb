"""What noise on embeddings leaves of the embedded model's answers: right answers by sigma and post-processing.

Everything runs on the device; what a cloud would decode from is the same cache. Prints one row a noise level with its
epsilon between texts that differ in one token, the bound on the chance that a token is recovered from a prior of 10 %,
and the share of private tokens whose own row is the nearest one to the noised row.
The bound holds for every attacker; taking the nearest row is the simplest one.

    python benchmarks/noise.py [--prompts 20] [--seed 1] [--json build/noise.json]
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer.cache.snapshot import wipe
from splitinfer.handoff import Label, PromptTokens, SamplingParams, Segment
from splitinfer.model.embeddings import Rows
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.noise.embedding import PostProcessing, TextRows, noise_embeddings
from splitinfer.noise.gaussian import epsilon_of, recovery_bound
from splitinfer.noise.sensitivity import largest_distance
from splitinfer.noise.stream import NoiseKey, NoiseStream
from splitinfer.placement import prefill_steps
from tools.corpus import held_out_prompts

FORMAT = "splitinfer-noise/1"
DELTA = 1e-5
SIGMAS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0)
POSTS: tuple[PostProcessing, ...] = ("none", "nearest", "posterior")
PARAMS = SamplingParams(max_new_tokens=24)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sigmas", type=float, nargs="+", default=list(SIGMAS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured here")
    args = parser.parse_args()
    engine = Engine(load("embedded"))
    cases = held_out_prompts(args.prompts, args.seed)
    table = engine.embedding_rows(engine.text_token_ids)
    distance = largest_distance(table)
    print(f"{len(cases)} prompts, {distance.rows} rows, largest distance {distance.value:.4f}")
    without = sum(_is_right(engine, segments, text, rows=None) for segments, text in cases)
    print(f"right without noise: {without}")
    print("sigma    epsilon (1 token)  bound from 10 %  nearest row  right answers: " + "  ".join(POSTS))
    levels = []
    for sigma in args.sigmas:
        mu = distance.value / sigma
        epsilon = epsilon_of(mu, DELTA)
        counted = {post: _right(engine, cases, TextRows(table), sigma=sigma, post=post) for post in POSTS}
        rights = {post: right for post, (right, _) in counted.items()}
        counts = "  ".join(f"{right:>{len(post)}}" for post, right in rights.items())
        share = counted["nearest"][1]
        cost = f"{epsilon:17.1f}  {100 * recovery_bound(0.1, mu):13.1f} %"
        print(f"{sigma:<7g}  {cost}  {100 * share:9.1f} %                 {counts}", flush=True)
        levels.append({"sigma": sigma, "epsilon": epsilon, "own_row_share": share, **rights})
    if args.json:
        facts = {
            "format": FORMAT,
            "weights_sha256": engine.identity.weights_sha256,
            "prompts": len(cases),
            "distance": distance.value,
            "right": without,
            "levels": levels,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _right(
    engine: Engine,
    cases: Sequence[tuple[list[Segment], str]],
    table: TextRows,
    *,
    sigma: float,
    post: PostProcessing,
) -> tuple[int, float]:
    """Return the right answers, and the share of private tokens whose rows come out as they were."""
    total, found, private = 0, 0, 0
    for segments, text in cases:
        prompt = _private(engine, segments)
        rows = engine.embedding_rows(prompt.token_ids)
        positions = list(prompt.private_positions)
        stream = NoiseStream(NoiseKey(secrets.token_bytes))
        exact = rows[positions]
        rows[positions] = noise_embeddings(exact, sigma=sigma, stream=stream, post=post, table=table).rows
        found += int((rows[positions] == exact).all(axis=1).sum())
        private += len(positions)
        total += _is_right(engine, segments, text, rows=rows)
    return total, found / private


def _private(engine: Engine, segments: list[Segment]) -> PromptTokens:
    """Tokenise with the labels that the prompt's segments have; a segment without one is private."""
    prompt = engine.tokenize(segments)
    if Label.PRIVATE not in prompt.labels:
        raise SystemExit("a prompt has no private text")
    return prompt


def _is_right(engine: Engine, segments: list[Segment], text: str, *, rows: Rows | None) -> bool:
    prompt = engine.tokenize(segments)
    steps = prefill_steps(prompt.segment_lengths, 512)
    snapshot = engine.prefill(prompt.token_ids, steps=steps, rows=rows)
    decoding = engine.decode(snapshot, last_token=prompt.token_ids[-1], params=PARAMS)
    for _ in decoding:
        pass
    wipe(snapshot)
    return decoding.text.strip() == text


if __name__ == "__main__":
    main()
