"""How much of a cache's transfer is hidden behind its prefill, in both directions, on a link of limited rate.

A Llama with random weights prefills a long prompt in steps of 512 tokens. Device, cloud and the link between them are
three processes; the link lets as many bytes a second pass as make the cache take 0.8 and 1.2 times the prefill. For
each, in the same run: one run that computes and then sends, and one that streams.

    hidden    = 1 - (TTFT - prefill) / wire            where the wire is the shorter: what it adds to the prefill
    to longer = (TTFT - layer) / max(prefill, wire)    layer = the prefill's time over its steps and layers

The prefill is the time to its end, padding time included, in the run that computes first; the wire what comes after it
in that run. Beside it stands the prefill of the run that streams, and what is hidden of the wire by that one: where it
is slower than the other, sealing and sending took its time, and the marks, which know the undisturbed one, count that
too. What may not leave before the end (format.md section 6) is the width of a size class or a range of 512 rows, and
the range before it leaves with it. That is the least share of a prompt just below a power of two, and the smaller the
longer: of 32,768 tokens 1,024 and 512, so that at most 0.953 is hidden of a wire as long as the prefill.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Mark, parser, print_report, progress, report
from benchmarks.paced import PacedLink
from server.run import serve
from server.settings import make_settings
from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cache.growing import GrowingCache
from splitinfer.cloud import CloudService
from splitinfer.embedded import path as embedded_path
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.schedule import RANGE_TOKENS, certain_tokens, pad_tokens
from splitinfer.segments import question
from splitinfer.session import Session
from trust_models.policy import Policy

HIDDEN_MARK, LONGER_MARK, PACE_MARK = 0.95, 1.05, 0.98
SHARES = (0.8, 1.2)
MODES = {"up": "sealed-decode", "down": "sealed-prefill"}
TOKENS, LAYERS = 32_768, 3
_WORDS = "lamp kettle router "
_DRAWN_POINTS = 300


@dataclass
class Prefilled:
    """Of the side that prefills: when its prefill was over and how many steps it took, on the monotonic clock."""

    over: float = 0.0
    steps: int = 0


class Watched:
    """An engine whose prefill can be made to end before anything of it is read, and whose end is noted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_sequential = False
        self.prefilled = Prefilled()
        engine._loaded.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def start_prefill(self, *args: Any, **keywords: Any) -> GrowingCache:
        """Start, and wait for the end where this run computes first."""
        self.prefilled = Prefilled()
        growing = self._engine.start_prefill(*args, **keywords)
        if self.is_sequential:
            self._wait(growing)
        else:
            threading.Thread(target=self._wait, args=(growing,)).start()
        return growing

    def _wait(self, growing: GrowingCache) -> None:
        growing.snapshot()
        self.prefilled.over = time.perf_counter()

    def _count(self, _module: torch.nn.Module, _arguments: tuple[torch.Tensor, ...]) -> None:
        if not self.prefilled.over:
            self.prefilled.steps += 1


@dataclass(frozen=True, slots=True)
class Run:
    """One run, in seconds from its request: the prefill's end, the first token, and the bytes on the wire by then."""

    prefill: float
    first_token: float
    steps: int
    wire: list[tuple[float, int]] = field(repr=False)

    def drawn(self) -> dict[str, Any]:
        """Return what a drawing needs, of some hundred points."""
        stride = max(1, len(self.wire) // _DRAWN_POINTS)
        wire = [*self.wire[:-1:stride], *self.wire[-1:]]
        return {"prefill_over": self.prefill, "first_token": self.first_token, "wire": wire}


# --- the model and its prompt ---------------------------------------------------------------------------------------


def build(directory: Path, *, layers: int, positions: int) -> None:
    """Write a random Llama with the embedded model's tokenizer."""
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (embedded_path() / name).is_file():
            shutil.copy(embedded_path() / name, directory / name)
    vocabulary = json.loads((embedded_path() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def text_of(engine: Watched, tokens: int) -> tuple[str, int]:
    """Return a text whose prompt has `tokens` prefilled tokens or a few less, and how many."""

    def prefilled(words: int) -> int:
        return len(engine.tokenize([question(_WORDS * words)]).token_ids) - 1

    one = prefilled(1)
    words = max(1, 1 + (tokens - one) * 100 // (prefilled(101) - one))
    while words > 1 and prefilled(words) > tokens:
        words -= 1
    return _WORDS * words, prefilled(words)


# --- the cloud's process --------------------------------------------------------------------------------------------


def _cloud_process(orders: Connection, model: str, folder: str) -> None:
    """Serve; `orders` carries whether the next prefill ends before it is sent, or asks for what was noted."""
    torch.set_num_threads(1)
    home, engine = Home(Path(folder)), Watched(Engine(load(model)))
    watched: Any = engine
    replica = make_replica(home)
    service = CloudService(
        watched, replica, allowed=lambda: allowed_devices(home), clock=time.time, randomness=secrets.token_bytes
    )

    def obey() -> None:
        with contextlib.suppress(EOFError):
            while True:
                order = orders.recv()
                if order is None:
                    orders.send(engine.prefilled)
                else:
                    engine.is_sequential = order
                    orders.send(None)

    def ready(_host: str, port: int) -> None:
        threading.Thread(target=obey, daemon=True).start()
        orders.send((port, identity_sha256(bytes.fromhex(replica.current().keyset.certificate.body.identity))))

    serve(service, make_settings({"port": 0, "read_timeout_seconds": 300.0}), ready=ready, log_stream=io.StringIO())


# --- the device -----------------------------------------------------------------------------------------------------


class Bench:
    """A device in this process and a cloud in another, joined by a paced link."""

    def __init__(self, model: Path, home: Home, link: PacedLink, orders: Connection) -> None:
        self._engine = Watched(Engine(load(str(model))))
        self._home, self._link, self._orders = home, link, orders
        self.text, self.tokens = "", 0
        self.cache_bytes = 0

    def ask(self, tokens: int) -> None:
        """Make the prompt."""
        self.text, self.tokens = text_of(self._engine, tokens)

    def run(self, direction: str, *, bytes_per_second: float, is_sequential: bool) -> Run:
        """Run the prompt once for one new token."""
        device: Any = self._engine
        self._engine.is_sequential = is_sequential
        self._order(is_sequential)
        self._link.set(direction, bytes_per_second)
        policy = Policy.model_validate({"mode": MODES[direction], "remote": {"name": "default"}})
        with Session.open(policy, home=self._home, engine=device) as session:
            began = time.perf_counter()
            answer = session.run([question(self.text)], max_new_tokens=1)
        prefilled: Prefilled = self._engine.prefilled if direction == "up" else self._order(None)
        wire = [(at - began, count) for at, count in self._link.passed()]
        return Run(prefilled.over - began, answer.ttft_seconds, prefilled.steps, wire)

    def calibrate(self) -> float:
        """Return the seconds of a prefill on an unlimited link, and note how many bytes its request takes."""
        found = self.run("up", bytes_per_second=float("inf"), is_sequential=True)
        self.cache_bytes = found.wire[-1][1]
        return found.prefill

    def _order(self, order: bool | None) -> Any:
        self._orders.send(order)
        return self._orders.recv()


@contextlib.contextmanager
def opened(base: Path, *, tokens: int, layers: int) -> Iterator[Bench]:
    """Start the cloud and the link; stop them at the end."""
    build(base / "model", layers=layers, positions=pad_tokens(tokens) + 64)
    home, cloud = Home(base / "device"), Home(base / "cloud")
    cloud.key("identity")
    allow_device(cloud, home.key("device").public_key().public_bytes_raw().hex())
    context = multiprocessing.get_context("spawn")
    orders, theirs = context.Pipe()
    arguments = (theirs, str(base / "model"), str(cloud.path))
    process = context.Process(target=_cloud_process, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        port, pin = orders.recv()
        with PacedLink(port) as link:
            save_remote(home, "default", Remote(link.url, pin))
            bench = Bench(base / "model", home, link, orders)
            bench.ask(tokens)
            yield bench
    finally:
        process.kill()
        process.join()


# --- figures --------------------------------------------------------------------------------------------------------


def _pace(run: Run, bytes_per_second: float) -> float:
    """Return the rate at which the bytes after the prefill's end passed, over the one that was set."""
    after = [point for point in run.wire if point[0] > run.prefill]
    if len(after) < 2:
        return float("nan")
    (first, before), (last, total) = after[0], after[-1]
    return (total - before) / (last - first) / bytes_per_second


def measure(bench: Bench, direction: str, share: float, *, prefill: float, layers: int) -> tuple[dict[str, Any], Any]:
    """Time a run that computes first and one that streams; returns the row and the two lines of a drawing."""
    rate = bench.cache_bytes / (share * prefill)
    sequential = bench.run(direction, bytes_per_second=rate, is_sequential=True)
    streamed = bench.run(direction, bytes_per_second=rate, is_sequential=False)
    wire = sequential.first_token - sequential.prefill
    layer = sequential.prefill / max(1, sequential.steps) / layers
    longer = max(sequential.prefill, wire)
    row = {
        "direction": direction,
        "wire_to_prefill": share,
        "prefill_seconds": sequential.prefill,
        "streamed_prefill_seconds": streamed.prefill,
        "wire_seconds": wire,
        "sequential_seconds": sequential.first_token,
        "streamed_seconds": streamed.first_token,
        "hidden": 1 - (streamed.first_token - sequential.prefill) / wire,
        "hidden_by_its_own_prefill": 1 - (streamed.first_token - streamed.prefill) / wire,
        "to_longer": (streamed.first_token - layer) / longer,
        "to_its_own_longer": (streamed.first_token - layer) / max(streamed.prefill, wire),
        "link_to_its_rate": _pace(sequential, rate),
    }
    lines = {"sequential": sequential.drawn(), "streamed": streamed.drawn()}
    return row, {"direction": direction, "share": share, **lines}


def marks_of(rows: Sequence[dict[str, Any]]) -> list[Mark]:
    """Return the marks; a wire longer than the prefill cannot hide behind it whole."""
    marks = []
    for row in rows:
        name = f"{row['direction']}, wire {row['wire_to_prefill']:g} of prefill"
        if row["wire_seconds"] < row["prefill_seconds"]:
            marks.append(Mark(f"{name}: hidden", row["hidden"], HIDDEN_MARK, "at least"))
        marks.append(
            Mark(f"{name}: streamed, less a layer, to the longer of both", row["to_longer"], LONGER_MARK, "at most")
        )
    marks.append(
        Mark("the link's rate to the one set, least", min(r["link_to_its_rate"] for r in rows), PACE_MARK, "at least")
    )
    return marks


def _price(padded: int) -> str:
    """Say what the padding rule alone leaves unhidden."""
    late = padded - (certain_tokens(padded) - 1) // RANGE_TOKENS * RANGE_TOKENS
    at_end = min(padded, late + RANGE_TOKENS)
    return (
        f"{late:,} of {padded:,} rows wait for the prefill's end so that nothing but the padded count shows, and the "
        f"range before them is ready with it: at most {1 - at_end / padded:.3f} of a wire up to the prefill is hidden"
    )


def run(*, tokens: int, layers: int, shares: Sequence[float]) -> dict[str, object]:
    """Measure every direction and share and return the report."""
    rows, timelines = [], []
    with (
        tempfile.TemporaryDirectory(prefix="splitinfer-bench-") as name,
        opened(Path(name), tokens=tokens, layers=layers) as bench,
    ):
        progress("how long the prefill takes")
        prefill = bench.calibrate()
        for direction in MODES:
            for share in shares:
                progress(f"{direction}, wire {share:g} of prefill")
                row, lines = measure(bench, direction, share, prefill=prefill, layers=layers)
                rows.append(row)
                timelines.append(lines)
        prefilled = bench.tokens
    padded = pad_tokens(prefilled)
    return report(
        "streaming",
        setting=(
            f"{prefilled:,} tokens, padded to {padded:,}, of which {certain_tokens(padded):,} are in every prompt of "
            f"that class; a Llama of {layers} layers, width 64, random weights, float32, steps of 512 tokens; device, "
            "cloud and link in a process each, one run each"
        ),
        rows=rows,
        marks=marks_of(rows),
        timelines=timelines,
        tokens=prefilled,
        notes=[_price(padded)],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or JSON."""
    made: argparse.ArgumentParser = parser(__doc__, "python benchmarks/streaming.py --json > streaming.json")
    made.add_argument("--tokens", type=int, default=TOKENS, help=f"prompt tokens (default {TOKENS})")
    made.add_argument("--layers", type=int, default=LAYERS, help=f"layers of the model (default {LAYERS})")
    args = made.parse_args(argv)
    shares = SHARES
    if args.quick:
        args.tokens, args.layers, shares = min(args.tokens, 1024), 2, SHARES[:1]
    torch.set_num_threads(1)
    print_report(run(tokens=args.tokens, layers=args.layers, shares=shares), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
