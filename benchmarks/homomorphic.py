"""The homomorphic mode against its marks: time, bytes, fidelity, answers, growth; device and cloud in two processes.

The cloud half runs as a process of its own (which forks a helper), joined over a TCP connection on the loopback
interface; seconds are wall time. Larger models have random weights: one layer is measured, the rest is multiplied and
says so. Exits 1 where a mark is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.linear_plan import LinearShape, pack_input, plan_linear
from splitinfer.homomorphic.parameters import parameters_for
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.process import CloudProcess
from splitinfer.model.layerwise import (
    LayerwiseModel,
    LocalAttention,
    LocalLinear,
    cached_rows,
    layerwise,
    matrices,
)
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import prefill
from splitinfer.model.prompt import tokenize
from splitinfer.rounds import Operation, Traffic
from tools.corpus import held_out_prompts

SECONDS = {"encrypted prefix": 0.35, "public prefix": 0.25, "linear layers too": 1.5}
LAYER_MB = {"encrypted prefix": 0.19, "public prefix": 0.19, "linear layers too": 0.58}
TOKEN_MB = {"encrypted prefix": 1.15, "public prefix": 1.15, "linear layers too": 3.5}
MEASURED = Path(__file__).resolve().parents[1] / "trust_models" / "measured.json"
LOGIT_ERROR, CLEAR_GAP, TIMES_FASTER = 2e-3, 0.01, 50
PREFIXES = (64, 256, 1024, 4096)
# layers, query heads, KV heads, head_dim, hidden, intermediate
SHAPES = {
    "SmolLM2-135M": (30, 9, 3, 64, 576, 1536),
    "Qwen3-0.6B": (28, 16, 8, 128, 1024, 3072),
    "Llama-3.2-1B": (16, 32, 8, 64, 2048, 8192),
}
PEERS = """\
| published system | seconds a token | MB a token | parameters | what differs |
|---|---|---|---|---|
| Concrete ML hybrid GPT-2 | 11 (GPU), 300 (CPU) | 2.2 | 124 M | linear layers only; attention and cache on the device |
| Cachemir | below 100 (GPU) | - | 8 B | all on ciphertexts, with bootstrapping; no work on the device |
| PUMA | about 300 | - | 7 B | secret sharing among three servers that must not collude |
| this package | above | above | above | the device decrypts after every product |"""


@dataclass
class Report:
    """Lines to print, figures by name, and the marks that were missed."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    measured: dict[str, dict[str, object]] = field(default_factory=dict)

    def say(self, line: str) -> None:
        """Add a line and show it on stderr as it comes."""
        self.lines.append(line)
        print(line, file=sys.stderr, flush=True)

    def mark(self, name: str, value: float, limit: float, *, at_least: bool = False) -> str:
        """Keep a figure and compare it with its mark; returns it as a cell."""
        is_good = value >= limit if at_least else value <= limit
        self.figures[name] = value
        if not is_good:
            self.missed.append(name)
        return f"{value:.3g} ({'at least' if at_least else 'at most'} {limit:g}{'' if is_good else ': MISSED'})"


@dataclass(frozen=True)
class Scene:
    """The embedded model, loaded, and written out layer by layer."""

    loaded: LoadedModel
    written: LayerwiseModel
    held: dict[tuple[int, str], np.ndarray]

    @classmethod
    def load(cls) -> Scene:
        """Load the embedded model on one thread."""
        loaded = load("embedded", threads=1)
        return cls(loaded, layerwise(loaded.model), matrices(loaded.model))

    @property
    def shape(self) -> AttentionShape:
        """Return the model's attention."""
        return AttentionShape(
            len(self.written.layers), self.written.heads, self.written.kv_heads, self.written.head_dim
        )

    @property
    def linears(self) -> dict[tuple[int, Operation], LinearShape]:
        """Return the shapes of all matrices."""
        return {(layer, Operation[name.upper()]): LinearShape(*m.shape) for (layer, name), m in self.held.items()}

    def rows(self, token_ids: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Prefill in the clear; return every layer's keys and values."""
        with torch.inference_mode():
            return cached_rows(prefill(self.loaded.model, token_ids, steps=[(0, len(token_ids))]))


@contextmanager
def cloud(*, processes: int, held: dict[tuple[int, str], np.ndarray] | None = None) -> Iterator[CloudProcess]:
    """Start the cloud half at the other end of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with CloudProcess(ends=(ours, theirs), matrices=held, processes=processes) as process:
        yield process


@dataclass
class Timed:
    """What one decoding took; `errors` in standard deviations of the logits."""

    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    wrong: int = 0
    clear: int = 0
    tokens: list[int] = field(default_factory=list)
    set_up_seconds: float = 0.0
    prefill_seconds: float = 0.0
    keys: Traffic = field(default_factory=Traffic)
    cache: Traffic = field(default_factory=Traffic)
    step: Traffic = field(default_factory=Traffic)


def decode(scene: Scene, token_ids: Sequence[int], mode: str, *, steps: int, options: argparse.Namespace) -> Timed:
    """Decode under a mode, fed the plaintext run's own greedy tokens, and compare every step with it."""
    timed, rows = Timed(), scene.rows(token_ids[:-1])
    plain, local = LocalAttention(len(rows)), LocalLinear(scene.held).linear
    for layer, (keys, values) in enumerate(rows):
        plain.load(layer, keys, values)
    linears = scene.linears if mode == "linear layers too" else {}
    is_public = mode == "public prefix"
    with cloud(processes=options.processes, held=scene.held if linears else None) as process:
        began = time.perf_counter()
        with DeviceHalf(
            scene.shape,
            process.exchange,
            # As a run plans: for the prompt. New tokens stay on the device until they fill a tile.
            expected_tokens=len(token_ids) - 1,
            profile=options.profile,
            is_public=is_public,
            linears=linears,
        ) as device:
            timed.keys, timed.set_up_seconds = device.traffic, time.perf_counter() - began
            linear = device.linear if linears else local
            began = time.perf_counter()
            if linears:
                for position, token in enumerate(token_ids[:-1]):
                    scene.written.step(token, position, attend=device.attend, linear=linear)
                device.seal_tail()
            else:
                for layer, (keys, values) in enumerate(rows):
                    device.load(layer, keys, values, is_public=is_public)
            timed.prefill_seconds, timed.cache = time.perf_counter() - began, device.traffic.since(timed.keys)
            last, position, before = token_ids[-1], len(token_ids) - 1, device.traffic
            for _ in range(steps):
                began = time.perf_counter()
                found = scene.written.step(last, position, attend=device.attend, linear=linear)
                timed.seconds.append(time.perf_counter() - began)
                expected = scene.written.step(last, position, attend=plain.attend, linear=local)
                compare(timed, found, expected)
                last, position = int(expected.argmax()), position + 1
            timed.step = device.traffic.since(before)
    return timed


def compare(timed: Timed, found: np.ndarray, expected: np.ndarray) -> None:
    """Note one step's error, and whether a clear greedy choice is the same."""
    timed.errors.append(float(np.abs(found - expected).max() / expected.std()))
    best, second = np.sort(expected)[-1:-3:-1]
    timed.tokens.append(int(found.argmax()))
    if best - second > CLEAR_GAP:
        timed.clear += 1
        timed.wrong += int(found.argmax() != expected.argmax())


def prompts(scene: Scene, count: int, *, seed: int) -> list[tuple[list[int], str]]:
    """Return held-out prompts as token ids, and their answers."""
    drawn = held_out_prompts(count, seed)
    return [(list(tokenize(scene.loaded.tokenizer, segments).token_ids), answer) for segments, answer in drawn]


def prompt(scene: Scene, tokens: int, seed: int) -> list[int]:
    """Return so many tokens of held-out prompts, one after the other."""
    found: list[int] = []
    while len(found) < tokens:
        found += prompts(scene, 1, seed=seed + len(found))[0][0]
    return found[:tokens]


# --- sections -------------------------------------------------------------------------------------------------


def speed(report: Report, scene: Scene, options: argparse.Namespace) -> None:
    """Measure seconds and bytes of every mode against the marks."""
    layers = scene.shape.layers
    report.say(f"\n## Seconds and bytes a token: embedded model, profile {options.profile}\n")
    report.say(
        "| mode | prefix | seconds a token | MB a layer | MB a token | keys MB | cache MB | set-up s | upload s |"
    )
    report.say("|---|---|---|---|---|---|---|---|---|")
    for mode, limit in SECONDS.items():
        prefix = 32 if mode == "linear layers too" else 256
        timed = decode(scene, prompt(scene, prefix + 1, 1), mode, steps=options.steps, options=options)
        token = (timed.step.sent_bytes + timed.step.received_bytes) / len(timed.seconds) / 1e6
        cells = [
            report.mark(f"{mode}: seconds a token", statistics.mean(timed.seconds), limit),
            report.mark(f"{mode}: MB a layer", token / layers, LAYER_MB[mode]),
            report.mark(f"{mode}: MB a token", token, TOKEN_MB[mode]),
            f"{timed.keys.sent_bytes / 1e6:.2f}",
            f"{timed.cache.sent_bytes / 1e6:.2f}",
            f"{timed.set_up_seconds:.2f}",
            f"{timed.prefill_seconds:.2f}",
        ]
        report.say(f"| {mode} | {prefix} | {' | '.join(cells)} |")
        report.measured[mode] = {
            "seconds_a_token": float(f"{statistics.mean(timed.seconds):.3g}"),
            "prefix_tokens": prefix,
            "model": "embedded",
            "profile": options.profile,
            "conditions": f"{processor()}, {os.cpu_count()} cores, two processes over loopback",
        }


def fidelity(report: Report, scene: Scene, options: argparse.Namespace) -> None:
    """Compare logits and greedy tokens with the plaintext run's."""
    report.say("\n## Logits and greedy tokens against the plaintext run\n")
    report.say(
        "| mode | tokens | with a clear choice | choices that differ | largest logit error, in standard deviations |"
    )
    report.say("|---|---|---|---|---|")
    for mode, tokens in zip(SECONDS, (options.tokens, options.tokens // 5, options.tokens // 5), strict=True):
        runs, each = [], min(50, tokens)
        while sum(len(run.tokens) for run in runs) < tokens:
            length = 33 if mode == "linear layers too" else (65, 129, 200, 257)[len(runs) % 4]
            runs.append(decode(scene, prompt(scene, length, len(runs)), mode, steps=each, options=options))
        clear, wrong = sum(run.clear for run in runs), sum(run.wrong for run in runs)
        cells = [
            str(sum(len(run.tokens) for run in runs)),
            str(clear),
            report.mark(f"{mode}: choices that differ", wrong, 0),
            report.mark(f"{mode}: logit error", max(max(run.errors) for run in runs), LOGIT_ERROR),
        ]
        report.say(f"| {mode} | {' | '.join(cells)} |")


def answers(report: Report, scene: Scene, options: argparse.Namespace) -> None:
    """Answer held-out questions on an encrypted prefix, freely, and in the clear; the scores must be equal."""
    asked = prompts(scene, options.questions, seed=1000)
    scores = {"local": 0, "homomorphic": 0}
    for token_ids, answer in asked:
        scores["local"] += said(scene, token_ids, None, options) == answer
        scores["homomorphic"] += said(scene, token_ids, options.profile, options) == answer
    report.say(f"\n## Exact answers to {options.questions} held-out questions\n")
    report.say(f"local {scores['local']}, homomorphic {scores['homomorphic']}")
    difference = abs(scores["local"] - scores["homomorphic"])
    report.say(f"difference {report.mark('answers: difference from local', difference, 0)}")


def said(scene: Scene, token_ids: Sequence[int], profile: str | None, options: argparse.Namespace) -> str:
    """Decode greedily to the end and return the text; in the clear without a profile."""
    rows, local = scene.rows(token_ids[:-1]), LocalLinear(scene.held).linear
    if profile is None:
        plain = LocalAttention(len(rows))
        for layer, (keys, values) in enumerate(rows):
            plain.load(layer, keys, values)
        return greedy(scene, token_ids, lambda *at: scene.written.step(*at, attend=plain.attend, linear=local))
    with (
        cloud(processes=options.processes) as process,
        DeviceHalf(scene.shape, process.exchange, expected_tokens=len(token_ids), profile=profile) as device,
    ):
        for layer, (keys, values) in enumerate(rows):
            device.load(layer, keys, values)
        return greedy(scene, token_ids, lambda *at: scene.written.step(*at, attend=device.attend, linear=local))


def greedy(scene: Scene, token_ids: Sequence[int], step: Callable[[int, int], np.ndarray]) -> str:
    """Decode up to 32 tokens greedily and return the text."""
    found, last = [], token_ids[-1]
    for position in range(len(token_ids) - 1, len(token_ids) + 31):
        last = int(step(last, position).argmax())
        if last in scene.loaded.eos_token_ids:
            break
        found.append(last)
    return str(scene.loaded.tokenizer.decode(found)).strip()


def matrix_vector(report: Report, options: argparse.Namespace) -> None:
    """Compare one 256 x 256 product with TenSEAL's own, CPU seconds of the product alone, best of several."""
    import tenseal
    from tenseal import sealapi

    from splitinfer.homomorphic import kernels
    from splitinfer.homomorphic.arithmetic import Arithmetic
    from splitinfer.homomorphic.keys import SessionKeys
    from splitinfer.homomorphic.seal import load as load_object
    from splitinfer.homomorphic.seal import make_context
    from splitinfer.homomorphic.weights import LinearStore

    random, parameters = np.random.default_rng(1), parameters_for(options.profile)
    weight, vector = random.normal(size=(256, 256)) / 16, random.normal(size=256) / 2
    plan = plan_linear(LinearShape(256, 256), slots=parameters.slots)
    keys, context = SessionKeys(parameters, steps=plan.steps, multiplies_ciphertexts=False), make_context(parameters)
    galois = load_object(sealapi.GaloisKeys, context, keys.public_blobs()[0], limit_bytes=1 << 28)
    arithmetic = Arithmetic(context, parameters, galois_keys=galois, relinearisation_keys=None)
    encoded = LinearStore({(0, Operation.O): weight}).encoded(arithmetic)[0, Operation.O]
    blob = keys.encrypt(pack_input(plan, vector)[0], scale_bits=parameters.input_bits)
    given = [load_object(sealapi.Ciphertext, context, blob, limit_bytes=1 << 28)]

    def ours() -> None:
        kernels.linear(arithmetic, plan, given, encoded.diagonals, (0, 1))

    fast = best_cpu_seconds(ours, 5)
    report.say("\n## One product with a 256 x 256 matrix, CPU milliseconds\n")
    ratios = []
    for degree, bits, scale in ((8192, [60, 40, 60], 2**40), (4096, [40, 29, 40], 2**29)):
        theirs = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits, n_threads=1)
        theirs.generate_galois_keys()
        theirs.global_scale = scale
        encrypted, rows = tenseal.ckks_vector(theirs, vector.tolist()), weight.T.tolist()
        slow = best_cpu_seconds(lambda encrypted=encrypted, rows=rows: encrypted.mm(rows), 2)
        ratios.append(slow / fast)
        report.say(f"CKKSVector.mm, N = {degree}: {1e3 * slow:.0f}; this package: {1e3 * fast:.1f}")
    report.say(f"times faster: {report.mark('matrix-vector: times faster', min(ratios), TIMES_FASTER, at_least=True)}")


def best_cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the least CPU seconds of several rounds."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def growth(report: Report, scene: Scene, options: argparse.Namespace) -> None:
    """Measure one layer over prefixes and shapes and multiply by the layers."""
    report.say("\n## Growth: one layer measured, multiplied by the layers (random weights and rows)\n")
    report.say(
        "| model | layers | prefix | s a token, attention | MB a token | cache upload MB | s a token, linear layers |"
    )
    report.say("|---|---|---|---|---|---|---|")
    own = scene.shape
    hidden, inner = scene.written.embedding.shape[1], scene.held[0, "down"].shape[1]
    cells = {"embedded": (own.layers, own.heads, own.kv_heads, own.head_dim, hidden, inner), **SHAPES}
    for name, (layers, heads, kv_heads, head_dim, hidden, inner) in cells.items():
        shape = AttentionShape(1, heads, kv_heads, head_dim)
        linear = (
            ""
            if options.quick and name != "embedded"
            else f"{layers * linear_seconds(shape, hidden, inner, options):.2f}"
        )
        for prefix in PREFIXES[: 2 if options.quick else 4]:
            seconds, step, upload = attention_seconds(shape, prefix, options)
            moved = layers * (step.sent_bytes + step.received_bytes) / 1e6
            report.figures[f"growth: {name}, {prefix}"] = {"seconds": layers * seconds, "MB": moved}
            cells_of_row = [
                f"{layers * seconds:.2f}",
                f"{moved:.2f}",
                f"{layers * upload.sent_bytes / 1e6:.1f}",
                linear,
            ]
            report.say(f"| {name} | {layers} | {prefix} | {' | '.join(cells_of_row)} |")


def attention_seconds(
    shape: AttentionShape, prefix: int, options: argparse.Namespace
) -> tuple[float, Traffic, Traffic]:
    """Return one layer's seconds a token, its traffic a token, and the upload of its cache."""
    random, size = np.random.default_rng(1), (shape.kv_heads, shape.head_dim)
    with (
        cloud(processes=options.processes) as process,
        DeviceHalf(shape, process.exchange, expected_tokens=prefix, profile=options.profile) as device,
    ):
        opened = device.traffic
        device.load(0, random.normal(size=(prefix, *size)), random.normal(size=(prefix, *size)))
        upload, taken = device.traffic.since(opened), []
        for _ in range(3):
            query, before = random.normal(size=(shape.heads, shape.head_dim)) / shape.head_dim**0.5, device.traffic
            began = time.perf_counter()
            device.attend(0, query, random.normal(size=size), random.normal(size=size))
            taken.append(time.perf_counter() - began)
        return min(taken), device.traffic.since(before), upload


def linear_seconds(shape: AttentionShape, hidden: int, inner: int, options: argparse.Namespace) -> float:
    """Return one layer's seconds a token of all its matrices."""
    random, total = np.random.default_rng(2), 0.0
    queries = shape.heads * shape.head_dim
    sizes = {
        "qkv": (queries + 2 * shape.kv_heads * shape.head_dim, hidden),
        "o": (hidden, queries),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    for name, size in sizes.items():
        held = {(0, name): (random.normal(size=size) / size[1] ** 0.5).astype(np.float32)}
        linears = {(0, Operation[name.upper()]): LinearShape(*size)}
        with (
            cloud(processes=options.processes, held=held) as process,
            DeviceHalf(shape, process.exchange, expected_tokens=1, profile=options.profile, linears=linears) as device,
        ):
            taken = []
            for _ in range(3):
                began = time.perf_counter()
                device.linear(0, name, random.normal(size=size[1]))
                taken.append(time.perf_counter() - began)
            total += min(taken)
    return total


SECTIONS = ("speed", "fidelity", "answers", "matrix-vector", "growth")


def main() -> int:
    """Run the sections asked for; print the tables and the marks that were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default all)")
    parser.add_argument("--profile", default="balanced", help="balanced (default), accurate or fast")
    parser.add_argument("--processes", type=int, default=2, help="processes of the cloud (default 2)")
    parser.add_argument("--steps", type=int, default=16, help="tokens timed (default 16)")
    parser.add_argument("--tokens", type=int, default=500, help="tokens compared with plaintext (default 500)")
    parser.add_argument("--questions", type=int, default=50, help="questions answered (default 50)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens and questions, small growth")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--keep", action="store_true", help="write what `policy explain` says was measured")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.questions, options.steps = options.tokens // 10, options.questions // 10, 4
    wanted, report, scene = options.sections or SECTIONS, Report(), Scene.load()
    report.say(f"{parameters_for(options.profile).security}; {conditions()}")
    for name in wanted:
        run_section(name, report, scene, options)
    report.say(f"\n## Beside published systems (other models, machines and assumptions)\n\n{PEERS}")
    report.say(f"\nmarks missed: {', '.join(report.missed) or 'none'}")
    if options.keep and set(report.measured) == set(SECONDS):
        MEASURED.write_text(json.dumps(report.measured, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(asdict(report)) if options.json else "\n".join(report.lines))
    return 1 if report.missed else 0


def run_section(name: str, report: Report, scene: Scene, options: argparse.Namespace) -> None:
    """Run one section by name."""
    if name == "matrix-vector":
        matrix_vector(report, options)
    else:
        {"speed": speed, "fidelity": fidelity, "answers": answers, "growth": growth}[name](report, scene, options)


def processor() -> str:
    """Return the processor's name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def conditions() -> str:
    """Return what it ran on."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, two processes over loopback"
    )


if __name__ == "__main__":
    sys.exit(main())
