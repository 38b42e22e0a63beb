"""The bars of the attacks, each with its mark: what unprotected, rounded, obfuscated and noised caches give away.

Every bar names its attack, what is attacked, the figure, the mark and whether it was reached. `--only` plays some of
them, `--quick` plays them on fewer and shorter prompts, which says whether they run and not whether they are reached.
Times are CPU seconds of one thread, so that waiting for a core does not count. Exits 1 where a mark is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer import codec, schedule
from splitinfer.errors import SplitInferError
from splitinfer.evaluation.attacks.chosen_plaintext import probe_tokens, recover_secrets
from splitinfer.evaluation.attacks.collision import calibrate, collide
from splitinfer.evaluation.attacks.dictionary import LayerZeroDictionary
from splitinfer.evaluation.attacks.embedding_inversion import embedding_table, invert_embeddings
from splitinfer.evaluation.attacks.likelihood import (
    CacheLikelihood,
    EmbeddingLikelihood,
    codec_variances,
    rounding_variances,
)
from splitinfer.evaluation.attacks.observed import CapturedCache
from splitinfer.evaluation.attacks.posterior import Beam, recover
from splitinfer.evaluation.attacks.prefixes import caching_layers, rows_of
from splitinfer.evaluation.attacks.traffic import TopicClassifier, unpadded
from splitinfer.evaluation.attacks.vocabulary import Matching, match_vocabulary
from splitinfer.evaluation.audit.mechanisms import clipped_cache, embedding_noise
from splitinfer.evaluation.audit.one_run import audit_one_run
from splitinfer.evaluation.capture import Captured, Seat, Stage
from splitinfer.evaluation.playbook import Attacker
from splitinfer.evaluation.prompts import TOPICS, make_prompts
from splitinfer.evaluation.targets.obfuscator import BLOCK_ROWS, MatrixObfuscator
from splitinfer.evaluation.targets.permutation import permute_states
from splitinfer.evaluation.tenants import time_prefixes
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import prefill
from splitinfer.noise.embedding import noise_embeddings
from splitinfer.noise.stream import NoiseKey, NoiseStream
from trust_models.policy import parse_policy

FORMAT = "splitinfer-attacks/1"
NOISE_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
RANDOM_MODELS: dict[str, dict[str, object]] = {
    "qwen3": {},
    "gemma3_text": {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "mistral": {"sliding_window": 512},
}


@dataclass(frozen=True)
class Bar:
    """One figure against its mark; `is_reached` is None where it could not be measured here."""

    name: str
    figure: str
    mark: str
    is_reached: bool | None


@dataclass(frozen=True)
class Scale:
    """How much is played."""

    prompts: int
    tokens: int
    noised_prompts: int
    noised_tokens: int
    releases: int
    observed: int
    calibration: int = 64
    prefix_tokens: int = 560

    @classmethod
    def of(cls, quick: bool) -> Scale:
        """Return the sizes of the bars, or small ones."""
        return cls(1, 32, 2, 8, 2_000, 8, prefix_tokens=64) if quick else cls(3, 256, 20, 64, 100_000, 200)


def prompts_of(loaded: LoadedModel, count: int, tokens: int, *, seed: int = 1) -> Iterator[list[int]]:
    """Yield token ids of exactly this length, of prompts in the product's form."""
    engine = Engine(loaded)
    for prompt in make_prompts(count, seed=seed, document_rows=2 + tokens // 20):
        ids = list(engine.tokenize(prompt.segments).token_ids)
        # The private end is what matters; a prompt that is too long loses the beginning of its document, and keeps the
        # start token, which the model expects there.
        yield ids if len(ids) <= tokens else [ids[0], *ids[len(ids) - tokens + 1 :]]


def captured(model: PreTrainedModel, ids: Sequence[int]) -> CapturedCache:
    """Return everything that a reader of the whole cache sees."""
    return CapturedCache.of(prefill(model, list(ids), steps=[(0, len(ids))]))


def by_rows(model: PreTrainedModel, capture: CapturedCache) -> tuple[int, ...]:
    """Attack a capture to which nothing was added."""
    likelihood = CacheLikelihood(capture, rounding_variances(capture))
    return recover(model, likelihood, tokens=capture.tokens).token_ids


def share(found: Sequence[int], true: Sequence[int]) -> float:
    """Return the share of tokens at their places."""
    return sum(mine == theirs for mine, theirs in zip(found, true, strict=False)) / len(true)


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def unprotected(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Attack 1 on the first layer, attack 2 on each of first, middle and last."""
    model = loaded.model
    dictionary = LayerZeroDictionary(model)
    ids = list(prompts_of(loaded, scale.prompts, scale.tokens))
    captures = [captured(model, one) for one in ids]
    dictionary.recover(captures[0])
    began = time.process_time()
    shares = [share(dictionary.recover(capture).token_ids, one) for capture, one in zip(captures, ids, strict=True)]
    seconds = (time.process_time() - began) / len(ids)
    reached = min(shares) == 1 and seconds <= 1
    yield Bar("dictionary, unprotected", f"{mean(shares):.2%} in {seconds:.3f} s", "100 % in 1 s", reached)
    last = caching_layers(model) - 1
    for layer in (0, last // 2, last):
        began = time.process_time()
        found = [by_rows(model, capture.only(layers=[layer])) for capture in captures]
        seconds = (time.process_time() - began) / len(ids)
        got = mean([share(mine, one) for mine, one in zip(found, ids, strict=True)])
        reached = got >= 0.995 and seconds <= 60
        yield Bar(f"posterior, layer {layer} alone", f"{got:.2%} in {seconds:.1f} s", "99.5 % in 60 s", reached)


def architectures(_: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Attack 2 on the last layer of small random models of other architectures."""
    for kind, own in RANDOM_MODELS.items():
        common = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        shape = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
        }
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**common, **({} if kind == "gpt2" else shape), **own})
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
        ids = torch.randint(3, 512, (scale.tokens,), generator=torch.Generator().manual_seed(1)).tolist()
        capture = captured(model, ids)
        got = share(by_rows(model, capture.only(layers=[2])), ids)
        yield Bar(f"posterior, random {kind}", f"{got:.2%}", "99 %", got >= 0.99)


def quantised(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Attack 2 on caches that went through the product's lossy codecs."""
    model, texts = loaded.model, Attacker(loaded).texts
    own = [one for ids in prompts_of(loaded, 1, scale.calibration, seed=99) for one in ids]
    for name, mark in (("q8", 0.995), ("q4", 0.95)):
        variances = codec_variances(model, name, token_ids=own)
        shares = []
        for ids in prompts_of(loaded, scale.prompts, scale.tokens):
            moved = codec.move(prefill(model, ids, steps=[(0, len(ids))]), codec=name)
            likelihood = CacheLikelihood(CapturedCache.of(moved), variances)
            found = recover(model, likelihood, tokens=len(ids), beam=Beam(width=4), texts=texts)
            shares.append(share(found.token_ids, ids))
        yield Bar(f"posterior, {name}", f"{mean(shares):.2%}", f"{mark:.1%}", mean(shares) >= mark)


def obfuscated(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Attack 7 on the obfuscator with reused secrets, attack 5 on permuted hidden states."""
    model = loaded.model
    vocabulary = model.get_input_embeddings().num_embeddings
    table = captured_values(model, range(vocabulary))
    right = total = 0
    for head in range(table.shape[0]):
        target = MatrixObfuscator.make(dim=table.shape[2], threshold=float(table.norm(dim=2).max()), seed=head)
        secrets = recover_secrets(target.protect(table[head, 7].expand(probe_tokens(), -1)), table[head, 7])
        for ids in prompts_of(loaded, scale.prompts, scale.tokens):
            for place, block in enumerate(target.protect(table[head, ids])):
                true = Counter(ids[place * BLOCK_ROWS : (place + 1) * BLOCK_ROWS])
                right += sum((true & Counter(secrets.open(block, table[head]))).values())
            total += len(ids)
    yield Bar("chosen plaintext, obfuscator", f"{right / total:.2%} of head-tokens", "99 %", right / total >= 0.99)
    tokens = min(50, scale.tokens)
    for rows, columns in ((True, False), (False, True), (True, True)):
        exact = []
        for ids in prompts_of(loaded, max(2, scale.noised_prompts), tokens):
            with torch.inference_mode():
                states = model.base_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
            shuffled, _order = permute_states(states, rows=rows, columns=columns, seed=len(exact))
            matching = Matching(2, rows_permuted=rows, columns_permuted=columns)
            exact.append(match_vocabulary(model, shuffled, matching).token_ids == tuple(ids))
        got = mean([float(one) for one in exact])
        what = " and ".join(word for word, on in (("rows", rows), ("columns", columns)) if on)
        yield Bar(f"vocabulary, permuted {what}", f"{got:.1%} of prompts exact", "97 %", got >= 0.97)


def captured_values(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Return the first layer's values [heads, tokens, dim] of every token."""
    parts = [rows_of(model, list(ids)[at : at + 256], last_layer=0)[0][1][0] for at in range(0, len(ids), 256)]
    return torch.cat(parts, 1).float()


def noised(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Attack 2 against nearest neighbour and collision+ on caches of noised embeddings, at five levels."""
    model = loaded.model
    table, attacker = embedding_table(model), Attacker(loaded)
    ids = list(prompts_of(loaded, scale.noised_prompts, scale.noised_tokens, seed=5))
    own = next(prompts_of(loaded, 1, scale.noised_tokens, seed=6))
    for level, target in enumerate(NOISE_LEVELS):
        sigma = sigma_for(table, [one for prompt in ids for one in prompt], target)
        ours, nearest, collisions, residuals = [], [], [], []
        for number, prompt in enumerate(ids):
            rows = noised_rows(table[prompt], sigma, name=f"level {level}, prompt {number}")
            capture = CapturedCache.of_rows(rows_of(model, rows, last_layer=caching_layers(model) - 1))
            inverted = invert_embeddings(model, capture)
            residuals.append(inverted.residual)
            likelihood = EmbeddingLikelihood(inverted.rows, table, sigma=sigma)
            found = recover(model, likelihood, tokens=len(prompt), beam=Beam(width=16), texts=attacker.texts)
            ours.append(share(found.token_ids, prompt))
            nearest.append(share(torch.cdist(rows, table).argmin(1).tolist(), prompt))
            collisions.append(share(collided(model, capture, table, own, sigma), prompt))
        yield compared(f"noised to {target:.0%}, against nearest neighbour", ours, nearest, level, residuals)
        yield compared(f"noised to {target:.0%}, against collision+", ours, collisions, level, residuals)


def collided(
    model: PreTrainedModel, capture: CapturedCache, table: torch.Tensor, own: list[int], sigma: float
) -> tuple[int, ...]:
    """Play collision+ on the first layer, calibrated on a noised release of the attacker's own, never stopping."""
    rows = noised_rows(table[own], sigma, name="the attacker's own")
    released = CapturedCache.of_rows(rows_of(model, rows, last_layer=0))
    thresholds = calibrate(model, released, layer=0, token_ids=own)
    return collide(model, capture, layer=0, thresholds=thresholds, never_stops=True).token_ids


def noised_rows(rows: torch.Tensor, sigma: float, *, name: str) -> torch.Tensor:
    """Noise rows as the product does, but from a key that `name` stands for, so that all can be repeated."""
    key = NoiseKey(lambda count: hashlib.sha256(name.encode()).digest()[:count])
    noised = noise_embeddings(rows.double().numpy(), sigma=sigma, stream=NoiseStream(key))
    return torch.from_numpy(noised.rows).float()


def sigma_for(table: torch.Tensor, ids: Sequence[int], target: float) -> float:
    """Return the noise at which the nearest neighbour recovers this share of these tokens."""
    rows = table[list(ids)]
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, 20 * float(table.std())
    for _ in range(18):
        middle = (low + high) / 2
        got = share(torch.cdist(rows + middle * noise, table).argmin(1).tolist(), list(ids))
        low, high = (middle, high) if got > target else (low, middle)
    return (low + high) / 2


def compared(name: str, ours: Sequence[float], theirs: Sequence[float], level: int, residuals: Sequence[float]) -> Bar:
    """Compare prompt by prompt: strictly more at the three middle levels, not less at the ends."""
    gaps = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    average = mean(gaps)
    spread = math.sqrt(sum((gap - average) ** 2 for gap in gaps) / max(1, len(gaps) - 1) / len(gaps))
    half = NormalDist().inv_cdf(0.975) * spread
    is_middle = 0 < level < len(NOISE_LEVELS) - 1
    reached = average - half > 0 if is_middle else average >= 0
    figure = f"{mean(ours):.1%} to {mean(theirs):.1%}, by {average:+.1%} +- {half:.1%}, residual {max(residuals):.0e}"
    return Bar(name, figure, "more, interval above 0" if is_middle else "not less", reached)


def audited(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Audit both formal mechanisms through the product's own release functions, honest and with planted bugs."""
    engine = Engine(loaded)
    for mu in (0.5, 1.0, 3.0):
        for mechanism in (embedding_noise(engine, mu=mu), clipped_cache(mu=mu)):
            result = mechanism.audit(releases=scale.releases)
            share_of_claim = result.lower_mu / result.claimed_mu
            is_close = 0.85 <= share_of_claim <= 1 and not result.is_refuted
            yield Bar(
                f"audit, {mechanism.name}, mu {mu:g}", f"{share_of_claim:.3f}", "0.85 to 1.0 of the claim", is_close
            )
            for bug in mechanism.planted_bugs:
                planted = mechanism.audit(releases=max(2_000, scale.releases // 10), bug=bug)
                figure = "repeats itself" if planted.is_repeating else f"{planted.lower_mu / planted.claimed_mu:.3f}"
                yield Bar(f"audit, {mechanism.name}, {bug}, mu {mu:g}", figure, "refuted", planted.is_refuted)
    yield one_run(engine, scale)


def one_run(engine: Engine, scale: Scale) -> Bar:
    """Audit one release of many slots; its bound is looser, and it needs no second release."""
    mechanism = embedding_noise(engine, mu=3.0, adjacency=1)
    pair = mechanism.pair[0][0], mechanism.pair[1][0]
    found = audit_one_run(mechanism.release, pair, slots=scale.releases // 5, claimed_mu=mechanism.claimed_mu)
    figure = f"epsilon at least {found.lower_epsilon:.2f} of {found.claimed_epsilon:.2f}"
    return Bar("audit in one run, embedding noise, mu 3", figure, "not refuted", not found.is_refuted)


def traffic(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """The network observer of `sealed-decode`: the topic with padding, and what it would be without."""
    policy = parse_policy('mode = "sealed-decode"\n[remote]\nname = "default"\n', origin="the benchmark's policy")
    with Stage.open(policy, Engine(loaded)) as stage:
        runs = [stage.run(prompt) for prompt in make_prompts(2 * scale.observed, seed=7)]
    order = list(range(len(runs)))
    random.Random(0).shuffle(order)  # noqa: S311
    half = len(order) // 2
    chance = 1 / len(TOPICS)
    for name, is_padded in (("with padding", True), ("without padding", False)):
        seen = [seen_of(run, is_padded=is_padded) for run in runs]
        topics = [run.prompt.topic for run in runs]
        classifier = TopicClassifier([seen[i] for i in order[:half]], [topics[i] for i in order[:half]])
        found = classifier.predict([seen[i] for i in order[half:]])
        got = mean([float(mine == topics[i]) for mine, i in zip(found, order[half:], strict=True)])
        figure = f"{got:.1%}, chance {chance:.0%}"
        if is_padded:
            yield Bar(f"topic of sealed-decode, {name}", figure, "printed: what sizes and times still show", None)
        else:
            yield Bar(f"topic of sealed-decode, {name}", figure, "0.2 above chance", got >= chance + 0.2)
    sizes = {}
    for run in runs:
        bucket = schedule.pad_tokens(len(run.tokens.token_ids) - 1)
        sizes.setdefault(bucket, set()).add(run.exposures[Seat.NETWORK].transcript.bytes("up"))
    is_bucket = all(len(found) == 1 for found in sizes.values())
    yield Bar("length of sealed-decode, sizes", f"{len(sizes)} buckets", "one size a bucket", is_bucket)


def seen_of(run: Captured, *, is_padded: bool) -> object:
    """Return the transcript of a run, or what it would have been without padding."""
    transcript = run.exposures[Seat.NETWORK].transcript
    if is_padded:
        return transcript
    true = len(run.tokens.token_ids) - 1
    exact = run.cost.bytes_up * true // schedule.pad_tokens(true)
    return unpadded(transcript, bytes_up=exact, frames=len(run.answer.token_ids) + 1)


def prefix_timing(loaded: LoadedModel, scale: Scale) -> Iterator[Bar]:
    """Two tenants of the product's cloud: its prefix cache as it is, and without the secret of each device."""
    for is_isolating in (False, True):
        result = time_prefixes(
            Engine(loaded), texts=10 * scale.observed, tokens=scale.prefix_tokens, seed=3, is_isolating=is_isolating
        )
        low, high = result.interval
        name, mark = ("with", "AUC at most 0.55") if is_isolating else ("without", "AUC at least 0.9")
        reached = result.auc <= 0.55 if is_isolating else result.auc >= 0.9
        yield Bar(
            f"prefix timing, {name} each device's secret",
            f"AUC {result.auc:.3f} [{low:.3f}, {high:.3f}]",
            mark,
            reached,
        )


BARS: dict[str, Callable[[LoadedModel, Scale], Iterator[Bar]]] = {
    "unprotected": unprotected,
    "architectures": architectures,
    "quantised": quantised,
    "obfuscated": obfuscated,
    "noised": noised,
    "audit": audited,
    "traffic": traffic,
    "prefix-timing": prefix_timing,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print each bar as it is measured; returns 0 where every measured mark is reached, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(BARS), help="play these bars; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter prompts: does it run?")
    parser.add_argument("--model", default="embedded", metavar="SOURCE", help="the model that is attacked")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the bars here")
    args = parser.parse_args(argv)
    loaded, scale = load(args.model, threads=1), Scale.of(args.quick)
    bars: list[Bar] = []
    try:
        for name in args.only or BARS:
            for bar in BARS[name](loaded, scale):
                bars.append(bar)
                verdict = {True: "reached", False: "MISSED", None: "not judged"}[bar.is_reached]
                print(f"{bar.name:<46} {bar.figure:<58} mark: {bar.mark:<26} {verdict}", flush=True)
    except SplitInferError as error:
        sys.exit(f"{name}: {error}")
    if args.json:
        facts = {
            "format": FORMAT,
            "weights_sha256": loaded.identity.weights_sha256,
            "is_quick": args.quick,
            "bars": [asdict(bar) for bar in bars],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 1 if any(bar.is_reached is False for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
