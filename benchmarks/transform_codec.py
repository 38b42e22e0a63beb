"""The codec `ftc1` against its marks and its peers: size against loss, lengths, speed, mutations, domains, choice.

    quality     answers on the exact and on the moved cache, the same questions, 512-token prompts of the embedded model
    lengths     one length for every text of a class
    mutations   changed payloads are refused or give a cache of the right shapes
    speed       tokens a second of one core, both ways; at the shapes of Llama-3.2-1B, beside its prefill
    domains     calibrated on one kind of text, measured on another
    selector    simulated links of 1 to 1,000 Mb/s
    leakage     the share of tokens that two attackers read from a cache at each level

Peers are calibrated on the same text and given the same bits: one basis for each head, and keys and values apart (both
without weights, as published); int4, int3 and a Hadamard turn with 4 bits have sizes of their own.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, best_of, parser, print_report, progress, report
from splitinfer import codec, embedded, schedule
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.calibration import Calibration, calibrate
from splitinfer.calibration.certify import paired
from splitinfer.calibration.needles import Question
from splitinfer.calibration.sequences import read_corpus
from splitinfer.chooser import wire_bytes
from splitinfer.codec.transform import LEVELS, Artefact
from splitinfer.codec.transform.artefact import FILE_NAME, GroupFacts
from splitinfer.codec.transform.basis import Group
from splitinfer.codec.transform.slabs import TransformSlabs
from splitinfer.errors import LayoutMismatchError
from splitinfer.handoff import CacheLayout, LayerLayout, Role, Segment, TensorLayout
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import prefill
from splitinfer.model.prompt import tokenize
from splitinfer.selector import LOCAL, Speeds, choose, opening_seconds, seconds_of
from tools.corpus import Kind, held_out_context
from tools.write_calibration_text import text as calibration_text
from trust_models.certificates import Paired
from trust_models.codecs import CALIBRATED

PARTS = ("quality", "lengths", "mutations", "speed", "domains", "selector", "leakage")
KINDS: tuple[Kind, ...] = ("notes", "table", "both")
# Head, receipt block and what else a reply has besides its slabs.
REPLY_BYTES = 2_048 + 512
PEER_LEVELS = ("ftc1-2", "ftc1-1", "ftc1-0.5", "ftc1-0.375")
LLAMA_1B = {"layers": 16, "heads": 8, "dim": 64, "group_layers": 4, "components": 1024}
Through = Callable[[CacheSnapshot], CacheSnapshot]


def questions_of(loaded: LoadedModel, *, tokens: int, count: int, kinds: Sequence[Kind] = KINDS) -> list[Question]:
    """Draw questions of held-out contexts, each in a prompt of its own, so that every cache is another."""

    def counted(text: str) -> int:
        return len(loaded.tokenizer(text, add_special_tokens=False).input_ids)

    found: list[Question] = []
    for seed in range(count):
        context = held_out_context(
            50_000 + seed, tokens=tokens - 24, kind=kinds[seed % len(kinds)], questions=1, count_tokens=counted
        )
        asked = context.questions[0]
        ids = tokenize(loaded.tokenizer, [*context.segments, Segment(Role.QUESTION, asked.text)]).token_ids
        answer = loaded.tokenizer(f" {asked.answer}", add_special_tokens=False).input_ids
        found.append(Question(ids[:-1], ids[-1:], (*answer, loaded.tokenizer.eos_token_id)))
    return found


# --- peers ----------------------------------------------------------------------------------------------------------


def by_head(layout: CacheLayout, group: GroupFacts) -> torch.Tensor:
    """Number channels by layer, kind and head."""
    numbers: list[int] = []
    for layer in group.layers:
        for tensor in layout.layers[layer].tensors:
            for _ in range(tensor.before[0]):
                numbers += [max(numbers, default=-1) + 1] * tensor.after[0]
    return torch.tensor(numbers)


def by_kind(layout: CacheLayout, group: GroupFacts) -> torch.Tensor:
    """Number channels by kind: keys 0, values 1."""
    numbers: list[int] = []
    for layer in group.layers:
        for kind, tensor in enumerate(layout.layers[layer].tensors):
            numbers += [kind] * (tensor.before[0] * tensor.after[0])
    return torch.tensor(numbers)


def rounded(bits: int, *, turned: bool = False) -> Through:
    """Return int rounding as published: keys by channel in groups of 64 rows, values by row (KIVI).

    Or both by row, after a Hadamard turn of each head (QuaRot).
    """

    def through(snapshot: CacheSnapshot) -> CacheSnapshot:
        layers = [
            {
                name: _turned(tensor, bits) if turned else _grouped(tensor, bits, 2 if name == "keys" else 3)
                for name, tensor in layer.items()
            }
            for layer in snapshot.layers
        ]
        return replace(snapshot, layers=tuple(layers))

    return through


def _grouped(tensor: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    pieces = [_rounded_group(part, bits, axis) for part in tensor.split(64, dim=axis)]
    return torch.cat(pieces, axis)


def _rounded_group(part: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    low, high = part.amin(axis, keepdim=True), part.amax(axis, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    return ((part - low) / scale).round() * scale + low


def _turned(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < tensor.shape[-1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = matrix / math.sqrt(len(matrix))
    return _rounded_group(tensor @ matrix, bits, 3) @ matrix


def moved_by(name: str, artefact: Artefact) -> Through:
    """Return what moving through a calibrated codec does."""
    return lambda snapshot: codec.move(snapshot, codec=name, artefact=artefact)


# --- the parts ------------------------------------------------------------------------------------------------------


def quality(loaded: LoadedModel, shipped: Artefact, corpus: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Answer the same questions on every moved cache."""
    asked = questions_of(loaded, tokens=args.tokens, count=args.questions)
    settings = Calibration(limit_tokens=args.corpus_tokens, first_tokens=1, is_weighted=False, levels=PEER_LEVELS)
    text = read_corpus([corpus])
    progress("calibrating the peers")
    cases: dict[str, tuple[float, Through]] = {}
    layout, padded = _layout(loaded), schedule.pad_tokens(args.tokens)
    for name in LEVELS:
        cases[name] = (_wire(layout, name, padded, shipped), moved_by(name, shipped))
    for label, parts_of in (("each head", by_head), ("keys, values apart", by_kind), ("joint, unweighted", None)):
        peer = calibrate(loaded, text, settings, parts_of=parts_of)
        for name in PEER_LEVELS:
            cases[f"{label} {LEVELS[name]:g}"] = (_wire(layout, name, padded, peer), moved_by(name, peer))
    raw_bits = _raw_bytes(layout, padded) / 16
    for label, through, bits in (
        ("int4", rounded(4), 4.5),
        ("int3", rounded(3), 3.5),
        ("hadamard 4", rounded(4, turned=True), 5.0),
    ):
        cases[label] = (raw_bits * bits + REPLY_BYTES, through)
    rows = []
    for name, (size, through) in cases.items():
        found = paired(loaded, asked, through)
        rows.append(_quality_row(name, _raw_bytes(layout, padded) / size, found))
        progress(str(rows[-1]))
    return {"rows": rows, "marks": _quality_marks(rows)}


def _quality_row(name: str, times_smaller: float, found: Paired) -> dict[str, object]:
    return {
        "codec": name,
        "times_smaller": times_smaller,
        "accuracy": found.accuracy - found.accuracy_drop,
        "drop_points": 100 * found.accuracy_drop,
        "drop_error": 100 * found.accuracy_drop_error,
        "nll_rise": found.nll_rise,
        "nll_error": found.nll_rise_error,
        "questions": found.questions,
    }


def _quality_marks(rows: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Return the largest saving among levels that keep the floors."""
    own = [row for row in rows if row["codec"] in LEVELS]
    good = [row["times_smaller"] for row in own if row["drop_points"] <= 1 and row["nll_rise"] <= 0.01]
    best = [row["times_smaller"] for row in own if row["drop_points"] <= 0.3]
    return [
        Mark("times smaller at 1 point and .01 nats", max(good, default=0.0), 24.0, "at least"),
        Mark("times smaller at .3 point", max(best, default=0.0), 14.0, "at least"),
    ]


def _layout(loaded: LoadedModel) -> CacheLayout:
    return prefill(loaded.model, [1, 2], steps=[(0, 2)]).layout


def _wire(layout: CacheLayout, name: str, padded: int, artefact: Artefact) -> float:
    size = codec.size_bytes(layout, codec=name, padded_tokens=padded, artefact=artefact)
    return wire_bytes(size + REPLY_BYTES, is_small=True)


def _raw_bytes(layout: CacheLayout, padded: int) -> float:
    """Return the cache's bytes in bfloat16."""
    return sum(
        2.0 * padded * math.prod(tensor.before) * math.prod(tensor.after)
        for layer in layout.layers
        for tensor in layer.tensors
    )


def lengths(loaded: LoadedModel, shipped: Artefact, args: argparse.Namespace) -> dict[str, Any]:
    """Pack caches of random, repeated and extreme tokens of one class."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    found: dict[str, set[int]] = {name: set() for name in LEVELS}
    for index in range(args.texts):
        tokens = 33 + index % 32
        ids = torch.randint(0, vocabulary, (tokens,), generator=generator)
        if index % 4 == 0:
            ids[:] = ids[0]
        snapshot = prefill(loaded.model, ids.tolist(), steps=[(0, tokens)])
        name = list(LEVELS)[index % len(LEVELS)]
        packed = codec.pack(snapshot, codec=name, padded_tokens=64, artefact=shipped)
        found[name].add(sum(len(slab) for slab in packed.slabs()))
    rows = [{"codec": name, "lengths": len(seen), "bytes": max(seen, default=0)} for name, seen in found.items()]
    most = max(len(seen) for seen in found.values())
    return {"rows": rows, "marks": [Mark("lengths of one class and level", most, 1, "at most")]}


def mutations(loaded: LoadedModel, shipped: Artefact, args: argparse.Namespace) -> dict[str, Any]:
    """Change payloads of the smallest class at random places."""
    layout, generator = _layout(loaded), torch.Generator().manual_seed(1)
    snapshot = prefill(loaded.model, list(range(1, 61)), steps=[(0, 60)])
    name = "ftc1-0.5"
    packed = codec.pack(snapshot, codec=name, padded_tokens=64, artefact=shipped)
    good = b"".join(map(bytes, packed.slabs()))
    slabs = TransformSlabs(shipped, name, layout)
    refused = wrong = 0
    for _ in range(args.mutations):
        data = torch.frombuffer(bytearray(good), dtype=torch.uint8)
        places = torch.randint(0, len(good), (4,), generator=generator)
        data[places] = torch.randint(0, 256, (4,), generator=generator, dtype=torch.uint8)
        try:
            rows = _decoded(slabs, data, layout)
        except LayoutMismatchError:
            refused += 1
            continue
        wrong += not all(bool(part.isfinite().all()) for part in rows.values())
    row = {"payloads": args.mutations, "refused": refused, "decoded": args.mutations - refused, "wrong": wrong}
    return {"rows": [row], "marks": [Mark("payloads that were neither refused nor decoded", wrong, 0, "at most")]}


def _decoded(slabs: TransformSlabs, data: torch.Tensor, layout: CacheLayout) -> dict[Any, torch.Tensor]:
    rows: dict[Any, torch.Tensor] = {}

    def rows_of(spec: Any) -> torch.Tensor:
        tensor = next(x for x in layout.layers[spec.layer].tensors if x.name == spec.part)
        return rows.setdefault((spec.layer, spec.part), torch.zeros(tensor.before[0], 60, tensor.after[0]))

    at = 0
    for spec in slabs.specs(64):
        size = slabs.size_bytes(spec)
        slabs.decode(spec, data[at : at + size], rows_of=rows_of, true_tokens=60)
        at += size
    return rows


def speed(loaded: LoadedModel, shipped: Artefact, args: argparse.Namespace) -> dict[str, Any]:
    """Time both ways in CPU-seconds; with --large also at the shapes of Llama-3.2-1B, against a prefill of them."""
    tokens = args.tokens
    snapshot = prefill(loaded.model, [7 + i % 2000 for i in range(tokens)], steps=[(0, tokens)])
    rows = [_timed(f"embedded, {name}", snapshot, name, shipped, args.rounds) for name in ("ftc1-0.5", "ftc1-2")]
    slowest = min(min(row["encoded_tokens_per_second"], row["decoded_tokens_per_second"]) for row in rows)
    marks = [Mark("tokens a second, the slower way", slowest, 20_000, "at least")]
    if args.large:
        artefact, large = large_artefact(), large_snapshot(tokens)
        row = _timed("Llama-3.2-1B shapes, ftc1-1", large, "ftc1-1", artefact, args.rounds)
        prefilled = large_prefill_seconds(tokens)
        rows.append({**row, "prefill_tokens_per_second": tokens / prefilled})
        share = tokens / min(row["encoded_tokens_per_second"], row["decoded_tokens_per_second"]) / prefilled
        marks.append(Mark("of a prefill of Llama-3.2-1B shapes, the slower way", share, 0.05, "at most"))
    return {"rows": rows, "marks": marks}


def _timed(label: str, snapshot: CacheSnapshot, name: str, artefact: Artefact, rounds: int) -> dict[str, Any]:
    tokens, padded = snapshot.true_tokens, schedule.pad_tokens(snapshot.true_tokens)
    data: list[bytes] = []

    def encode() -> float:
        packed = codec.pack(snapshot, codec=name, padded_tokens=padded, artefact=artefact, is_shared=True)
        began = time.thread_time()
        data[:] = [bytes(slab) for slab in packed.slabs()]
        return time.thread_time() - began

    def decode() -> float:
        sink = codec.sink(snapshot.layout, codec=name, true_tokens=tokens, padded_tokens=padded, artefact=artefact)
        began = time.thread_time()
        for slab in data:
            sink.slab()[:] = slab
        sink.finish()
        return time.thread_time() - began

    found = best_of({"encode": encode, "decode": decode}, rounds=rounds) if encode() else {}
    return {
        "case": label,
        "encoded_tokens_per_second": tokens / min(found["encode"]),
        "decoded_tokens_per_second": tokens / min(found["decode"]),
    }


def large_layout() -> CacheLayout:
    """Return the layout of Llama-3.2-1B in float32."""
    heads, dim = (LLAMA_1B["heads"],), (LLAMA_1B["dim"],)
    tensors = tuple(TensorLayout(name, "float32", "tokens", heads, dim) for name in ("keys", "values"))  # type: ignore[arg-type]
    return CacheLayout((LayerLayout("full", tensors),) * LLAMA_1B["layers"])


def large_artefact() -> Artefact:
    """Make an artefact of those shapes with random numbers, at one bit an element."""
    shipped = Artefact.read(embedded.path() / FILE_NAME)
    generator = torch.Generator().manual_seed(0)
    size, count = LLAMA_1B["group_layers"], LLAMA_1B["components"]
    channels = size * 2 * LLAMA_1B["heads"] * LLAMA_1B["dim"]
    bits = torch.full((1, count), channels // count, dtype=torch.uint8)
    groups, facts = [], []
    for first in range(0, LLAMA_1B["layers"], size):
        layers = tuple(range(first, first + size))
        basis = torch.randint(-127, 128, (channels, count), generator=generator, dtype=torch.int8)
        ones = torch.ones(count)
        groups.append(Group(layers, torch.zeros(channels), torch.ones(channels), basis, ones / 5000, ones, bits))
        facts.append(GroupFacts(layers=list(layers), rows="tokens"))
    rotation = next(iter(shipped.rotations.values()))
    rotation = replace(rotation, inverse_frequencies=torch.linspace(1.0, 1e-4, LLAMA_1B["dim"] // 2))
    rotations = dict.fromkeys(range(LLAMA_1B["layers"]), rotation)
    named = shipped.facts.model_copy(update={"groups": facts, "levels": ["ftc1-1"]})
    return Artefact(named, tuple(groups), shipped.centroids, rotations, "0" * 64)


def large_snapshot(tokens: int) -> CacheSnapshot:
    """Draw a cache of those shapes."""
    layout, shape = large_layout(), (1, LLAMA_1B["heads"], tokens, LLAMA_1B["dim"])
    return CacheSnapshot(
        layout, tokens, tuple({"keys": torch.randn(shape), "values": torch.randn(shape)} for _ in layout.layers)
    )


def large_prefill_seconds(tokens: int) -> float:
    """Time a prefill of Llama-3.2-1B's shapes with random weights, one layer of sixteen times sixteen."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
    )
    model = LlamaModel(config).eval()
    ids = torch.randint(0, 256, (1, tokens))
    with torch.inference_mode():
        model(ids)
        began = time.perf_counter()
        model(ids)
    return LLAMA_1B["layers"] * (time.perf_counter() - began)


def domains(loaded: LoadedModel, corpus: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Calibrate on one kind of text and measure on another; bytes at equal nll, by the line between levels."""
    settings = Calibration(limit_tokens=args.corpus_tokens, first_tokens=1)
    prose = Path(__file__).resolve().parents[1] / "splitinfer" / "model" / "prose.txt"
    sources = {"all": (corpus, None), "notes": (corpus, "notes"), "tables": (corpus, "table"), "prose": (prose, None)}
    artefacts = {name: _calibrated_on(loaded, path, kind, settings, args) for name, (path, kind) in sources.items()}
    rows, worst = [], 0.0
    tests: dict[str, tuple[Kind, ...]] = {"notes": ("notes",), "tables": ("table",)}
    for name, kinds in tests.items():
        asked = questions_of(loaded, tokens=args.tokens, count=args.domain_questions, kinds=kinds)
        curves = {
            source: {
                level: paired(loaded, asked, moved_by(codec_id, artefact)).nll_rise
                for codec_id, level in LEVELS.items()
            }
            for source, artefact in artefacts.items()
        }
        for source, curve in curves.items():
            ratio = _bits_ratio(curve, curves[name])
            worst = max(worst, ratio if source != name else 0.0)
            rows.append(
                {"calibrated_on": source, "measured_on": name, "bits_at_equal_nll": ratio}
                | {f"nll {level:g}": rise for level, rise in curve.items()}
            )
    return {"rows": rows, "marks": [Mark("bytes at equal nll, the worst domain", worst, 1.3, "at most")]}


def _calibrated_on(
    loaded: LoadedModel, path: Path, kind: str | None, settings: Calibration, args: argparse.Namespace
) -> Artefact:
    if kind is None:
        return calibrate(loaded, read_corpus([path]), settings)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "corpus.txt"
        own.write_text(calibration_text(args.prompts, kinds=(kind,)), encoding="utf-8")  # type: ignore[arg-type]
        return calibrate(loaded, read_corpus([own]), settings)


def _bits_ratio(curve: Mapping[float, float], own: Mapping[float, float]) -> float:
    """Return by how many more bits a curve reaches the nll that its own domain has at one bit."""
    target = max(own[1.0], 1e-4)
    levels = sorted(curve)
    for low, high in itertools.pairwise(levels):
        above, below = max(curve[low], 1e-6), max(curve[high], 1e-6)
        if above >= target >= below and above > below:
            share = math.log(above / target) / math.log(above / below)
            return low * (high / low) ** share
    return levels[0] if curve[levels[0]] < target else math.inf


def selector(shipped: Artefact, loaded: LoadedModel, args: argparse.Namespace) -> dict[str, Any]:
    """Simulate links: what auto chose with speeds learnt from runs before, against the best fixed choice."""
    layout, rows, worst = _layout(loaded), [], 0.0
    for tokens in (128, 512, 2048):
        padded = schedule.pad_tokens(tokens)
        sizes = {
            name: wire_bytes(
                codec.size_bytes(layout, codec=name, padded_tokens=padded, artefact=shipped),
                is_small=name in CALIBRATED,
            )
            for name in ("raw", "q8", *CALIBRATED)
        }
        for mbit in (1, 3, 10, 30, 100, 300, 1000):
            row = _simulated(sizes, padded, mbit, device=args.device_tokens_per_second)
            worst = max(worst, row["over_best"])
            rows.append({"tokens": tokens, "mbit": mbit, **row})
    return {"rows": rows, "marks": [Mark("time to first token over the best fixed choice", worst, 1.1, "at most")]}


def _choice_bytes(layout: CacheLayout, name: str, padded: int, artefact: Artefact) -> int:
    size = codec.size_bytes(layout, codec=name, padded_tokens=padded, artefact=artefact)
    return wire_bytes(size, is_small=name in CALIBRATED)


def _simulated(sizes: Mapping[str, int], padded: int, mbit: float, *, device: float) -> dict[str, Any]:
    true = Speeds(link_bytes_per_second=mbit * 125_000, device_tokens_per_second=device)
    known = Speeds(device_tokens_per_second=device)
    chosen = None
    for _ in range(6):
        chosen = choose(sizes, padded_tokens=padded, local_tokens=padded, speeds=known, calibrated=CALIBRATED)
        if chosen.is_local:
            break
        # What a run measures: its bytes in the time that was left beside prefill and codec, from the reply's head on.
        other = padded / known.cloud_tokens_per_second + known.round_trip_seconds
        other += opening_seconds(sizes[chosen.codec], known)
        other += padded * known.codec_seconds_per_token * (chosen.codec in CALIBRATED)
        moved = max(_true_seconds(chosen.codec, sizes, padded, true) - other, 1e-6)
        known = replace(known, link_bytes_per_second=sizes[chosen.codec] / moved)
    best = {name: _true_seconds(name, sizes, padded, true) for name in (*sizes, LOCAL)}
    fastest = min(best, key=lambda name: best[name])
    if chosen is None:
        raise RuntimeError("nothing was chosen")
    return {
        "chosen": chosen.codec,
        "best": fastest,
        "seconds": best[chosen.codec],
        "over_best": best[chosen.codec] / best[fastest],
    }


def _true_seconds(name: str, sizes: Mapping[str, int], padded: int, speeds: Speeds) -> float:
    """Return what the simulated link takes, by the formula with the true speeds."""
    if name == LOCAL:
        return padded / speeds.device_tokens_per_second
    return seconds_of(size_bytes=sizes[name], tokens=padded, speeds=speeds, is_calibrated=name in CALIBRATED)


def leakage(loaded: LoadedModel, shipped: Artefact, args: argparse.Namespace) -> dict[str, Any]:
    """Read the tokens from caches at each level: nearest rows of layer 0, and the posterior over all layers."""
    from benchmarks.attacks import prompts_of, share
    from splitinfer.evaluation.attacks.dictionary import LayerZeroDictionary
    from splitinfer.evaluation.attacks.likelihood import CacheLikelihood, codec_variances
    from splitinfer.evaluation.attacks.observed import CapturedCache
    from splitinfer.evaluation.attacks.posterior import Beam, recover

    model, rows = loaded.model, []
    dictionary = LayerZeroDictionary(model)
    own = next(iter(prompts_of(loaded, 1, args.attacked_tokens, seed=99)))
    prompts = list(prompts_of(loaded, args.attacked_prompts, args.attacked_tokens))
    for name in ("raw", *LEVELS):
        variances = codec_variances(model, name, token_ids=own, artefact=shipped)
        nearest, posterior = [], []
        for ids in prompts:
            snapshot = prefill(model, ids, steps=[(0, len(ids))])
            seen = CapturedCache.of(codec.move(snapshot, codec=name, artefact=shipped))
            nearest.append(share(dictionary.recover(seen.only(layers=[0])).token_ids, ids))
            found = recover(model, CacheLikelihood(seen, variances), tokens=len(ids), beam=Beam(width=4))
            posterior.append(share(found.token_ids, ids))
        rows.append(
            {
                "codec": name,
                "read_by_dictionary": sum(nearest) / len(nearest),
                "read_by_posterior": sum(posterior) / len(posterior),
            }
        )
        progress(str(rows[-1]))
    return {"rows": rows, "marks": []}


def run(args: argparse.Namespace) -> dict[str, object]:
    """Run the parts that were asked for and return the report."""
    loaded, shipped = load("embedded"), Artefact.read(embedded.path() / FILE_NAME)
    shipped.require_model(loaded.identity)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "calibration.txt"
        corpus.write_text(calibration_text(args.prompts), encoding="utf-8")
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "quality": lambda: quality(loaded, shipped, corpus, args),
            "lengths": lambda: lengths(loaded, shipped, args),
            "mutations": lambda: mutations(loaded, shipped, args),
            "speed": lambda: speed(loaded, shipped, args),
            "domains": lambda: domains(loaded, corpus, args),
            "selector": lambda: selector(shipped, loaded, args),
            "leakage": lambda: leakage(loaded, shipped, args),
        }
        found = {}
        for part in args.part or PARTS:
            progress(part)
            found[part] = runs[part]()
    first = next(iter(found.values()))
    return report(
        "transform_codec",
        setting=f"the embedded model, artefact {shipped.digest[:16]}, prompts of {args.tokens} tokens, one thread",
        rows=first["rows"],
        marks=[mark for one in found.values() for mark in one["marks"]],
        parts={name: one["rows"] for name, one in found.items()},
        prompt_tokens=args.tokens,
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table of the first part and all marks, or JSON with every part."""
    made = parser(__doc__, "python benchmarks/transform_codec.py --part quality --questions 1000 --json > ftc1.json")
    made.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    made.add_argument("--tokens", type=int, default=512, help="prompt tokens (default 512)")
    made.add_argument("--questions", type=int, default=1000, help="questions of the quality part (default 1000)")
    made.add_argument("--domain-questions", type=int, default=150, help="questions of a domain (default 150)")
    made.add_argument("--texts", type=int, default=1000, help="texts whose lengths are compared (default 1000)")
    made.add_argument("--mutations", type=int, default=100_000, help="changed payloads (default 100000)")
    made.add_argument("--prompts", type=int, default=480, help="prompts of the calibration text (default 480)")
    made.add_argument("--corpus-tokens", type=int, default=100_000, help="tokens that peers read (default 100000)")
    made.add_argument("--rounds", type=int, default=7, help="rounds of the speed part (default 7)")
    made.add_argument("--attacked-prompts", type=int, default=4, help="prompts of the leakage part (default 4)")
    made.add_argument("--attacked-tokens", type=int, default=128, help="and their tokens (default 128)")
    made.add_argument("--large", action="store_true", help="speed at the shapes of Llama-3.2-1B too; takes 2 GB")
    made.add_argument("--device-tokens-per-second", type=float, default=300.0, help="of the simulated device")
    args = made.parse_args(argv)
    if args.quick:
        args.questions, args.domain_questions, args.texts, args.mutations = 3, 2, 12, 20
        args.prompts, args.corpus_tokens, args.rounds, args.tokens = 16, 2000, 1, 128
        args.attacked_prompts, args.attacked_tokens = 1, 24
    torch.set_num_threads(1)
    print_report(run(args), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
