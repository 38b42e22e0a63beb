"""How much of a cache's transfer is hidden behind its prefill, in both directions, on a link of limited rate.

A Llama with random weights prefills a long prompt in steps of 512 tokens. Device and cloud talk HTTP through a proxy
that lets a fixed number of bytes a second pass, chosen so that the cache takes 0.8 and 1.2 times the prefill. For each,
in the same run: the prefill alone (with its padding time), a run that computes and then sends, and one that streams.

    hidden = 1 - (TTFT - prefill) / wire          at most prefill / wire, where the wire takes longer
    bound  = TTFT / (max(prefill, wire) + layer)  layer = the prefill's time over its layers and steps

The wire is the time from the first to the last byte of the cache in the run that computes first. What may not leave
before the end (format.md section 6) is 512 rows at least and the width of a size class at most: 512 of 16,384 tokens in
the class just below that, which the prompt is cut to. Exits 1 where a mark is missed. `--timeline` writes the bytes on
the wire and the prefill's steps over time as JSON, `--svg` draws them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.streaming_plot import draw
from server.run import serve
from server.settings import make_settings
from splitinfer.answer import Answer
from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cache.growing import GrowingCache
from splitinfer.cloud import CloudService
from splitinfer.embedded import path as embedded_path
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.schedule import certain_tokens, pad_tokens
from splitinfer.segments import question
from splitinfer.session import Session
from trust_models.policy import Policy

HIDDEN_MARK, BOUND_MARK = 0.95, 1.05
SHARES = (0.8, 1.2)
MODES = {"up": "sealed-decode", "down": "sealed-prefill"}
PIECE_BYTES = 16 * 1024
TOKENS, QUICK_TOKENS = 16_000, 2_000


@dataclass
class Timeline:
    """What happened when, in seconds from the request: bytes on the wire so far, prompt tokens begun, the end."""

    began: float = 0.0
    wire: list[tuple[float, int]] = field(default_factory=list)
    steps: list[tuple[float, int]] = field(default_factory=list)
    prefill_over: float = 0.0
    first_token: float = 0.0

    def now(self) -> float:
        """Return the seconds since the request."""
        return time.perf_counter() - self.began


class PacedLink:
    """A TCP proxy on loopback that lets `bytes_per_second` pass in the direction of the cache, and notes them."""

    def __init__(self, port: int, direction: str) -> None:
        self.bytes_per_second = float("inf")
        self.timeline = Timeline()
        self._port, self._direction = port, direction
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Return where a device finds it."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Stop accepting and wait for the connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            cloud = socket.create_connection(("127.0.0.1", self._port))
            for source, target, name in ((client, cloud, "up"), (cloud, client, "down")):
                target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._pump, args=(source, target, name == self._direction))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, is_paced: bool) -> None:
        free_at = 0.0
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if is_paced:
                    free_at = max(free_at, time.perf_counter()) + len(data) / self.bytes_per_second
                    time.sleep(max(0.0, free_at - time.perf_counter()))
                    self._note(len(data))
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _note(self, count: int) -> None:
        wire = self.timeline.wire
        wire.append((self.timeline.now(), count + (wire[-1][1] if wire else 0)))


class Watched:
    """An engine whose prefill can be made to end before anything of it is read, and whose steps are noted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.timeline = Timeline()
        self.is_sequential = False
        self._done = 0
        embedding = engine._loaded.model.get_input_embeddings()
        embedding.register_forward_pre_hook(self._note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def start_prefill(self, *args: Any, **keywords: Any) -> GrowingCache:
        """Start, and wait for the end where this run computes first."""
        self._done = 0
        growing = self._engine.start_prefill(*args, **keywords)
        if self.is_sequential:
            growing.snapshot()
            self.timeline.prefill_over = self.timeline.now()
        else:
            threading.Thread(target=self._wait, args=(growing,)).start()
        return growing

    def _wait(self, growing: GrowingCache) -> None:
        growing.snapshot()
        self.timeline.prefill_over = self.timeline.now()

    def _note(self, _: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self.timeline.steps.append((self.timeline.now(), self._done))
        self._done += arguments[0].shape[1]


@dataclass(frozen=True)
class Row:
    """One direction and share of the wire, in seconds; the best of the rounds."""

    direction: str
    share: float
    prefill: float
    wire: float
    sequential: float
    streamed: float
    layer: float
    timelines: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def hidden(self) -> float:
        """Return the share of the transfer that is hidden behind the prefill."""
        return 1 - (self.streamed - self.prefill) / self.wire

    @property
    def bound(self) -> float:
        """Return TTFT over what no run can be below, and a layer."""
        return self.streamed / (max(self.prefill, self.wire) + self.layer)

    @property
    def is_good(self) -> bool:
        """Tell whether the marks are reached; a wire longer than the prefill cannot hide behind it whole."""
        return self.bound <= BOUND_MARK and (self.wire > self.prefill or self.hidden >= HIDDEN_MARK)

    def facts(self) -> dict[str, Any]:
        """Return plain numbers."""
        rest = {name: value for name, value in asdict(self).items() if name != "timelines"}
        return {**rest, "hidden": self.hidden, "bound": self.bound, "good": self.is_good}


def build(directory: Path, *, layers: int, positions: int) -> Path:
    """Write a random Llama with the embedded model's tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (embedded_path() / name).is_file():
            shutil.copy(embedded_path() / name, directory / name)
    vocabulary = json.loads((embedded_path() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def text_of(engine: Engine, tokens: int) -> str:
    """Return a text whose prompt has about this many tokens, the template's included."""
    word = "lamp kettle router "

    def count(words: int) -> int:
        return len(engine.tokenize([question(word * words)]).token_ids)

    one, many = count(1), count(101)
    return word * max(1, (tokens - one) * 100 // (many - one))


class Bench:
    """A device and a cloud with a loaded model each, joined by a paced link, in one direction."""

    def __init__(self, base: Path, engines: tuple[Watched, Watched], direction: str, text: str) -> None:
        self.direction, self._text = direction, text
        self._device, self._cloud = engines
        self.sender = self._device if direction == "up" else self._cloud
        self.home, cloud_home = Home(base / "device"), Home(base / "cloud")
        allow_device(cloud_home, self.home.key("device").public_key().public_bytes_raw().hex())
        self._pin = identity_sha256(cloud_home.key("identity").public_key().public_bytes_raw())
        engine: Any = self._cloud
        self._service = CloudService(
            engine,
            make_replica(cloud_home),
            allowed=lambda: allowed_devices(cloud_home),
            clock=time.time,
            randomness=secrets.token_bytes,
        )

    @contextlib.contextmanager
    def linked(self) -> Iterator[PacedLink]:
        """Serve the cloud behind a link."""
        ports, bound, stop = list[int](), threading.Event(), threading.Event()

        def ready(_host: str, port: int) -> None:
            ports.append(port)
            bound.set()

        options = {"ready": ready, "stop": stop, "log_stream": io.StringIO()}
        server = threading.Thread(target=serve, args=(self._service, make_settings({"port": 0})), kwargs=options)
        server.start()
        bound.wait()
        link = PacedLink(ports[0], self.direction)
        save_remote(self.home, "default", Remote(link.url, self._pin))
        try:
            yield link
        finally:
            stop.set()
            server.join()
            link.close()

    def run(self, link: PacedLink, *, is_sequential: bool) -> tuple[Answer, Timeline]:
        """Run the prompt once for one new token."""
        device: Any = self._device
        self.sender.is_sequential = is_sequential
        policy = Policy.model_validate({"mode": MODES[self.direction], "remote": {"name": "default"}})
        with Session.open(policy, home=self.home, engine=device) as session:
            timeline = link.timeline = self.sender.timeline = Timeline(began=time.perf_counter())
            answer = session.run([question(self._text)], max_new_tokens=1)
        timeline.first_token = answer.ttft_seconds
        return answer, timeline


def measure(bench: Bench, link: PacedLink, share: float, *, rounds: int, layers: int) -> Row:
    """Calibrate the link by a run that computes first, then time both kinds of run in turn."""
    link.bytes_per_second = float("inf")
    answer, timeline = bench.run(link, is_sequential=True)
    sent = answer.egress.bytes_sent if bench.direction == "up" else answer.egress.bytes_received
    link.bytes_per_second = sent / (share * timeline.prefill_over)
    best: dict[bool, Timeline] = {}
    prefills: list[float] = []
    for number in range(rounds):
        for is_sequential in (True, False) if number % 2 else (False, True):
            _, timeline = bench.run(link, is_sequential=is_sequential)
            if is_sequential:
                prefills.append(timeline.prefill_over)
            if is_sequential not in best or timeline.first_token < best[is_sequential].first_token:
                best[is_sequential] = timeline
    return Row(
        direction=bench.direction,
        share=share,
        prefill=min(prefills),
        # A cloud that prefills opens its reply before: what counts is what comes after the prefill.
        wire=best[True].first_token - best[True].prefill_over,
        sequential=best[True].first_token,
        streamed=best[False].first_token,
        layer=min(prefills) / max(1, len(best[True].steps)) / layers,
        timelines={"sequential": asdict(best[True]), "streamed": asdict(best[False])},
    )


def print_table(rows: Sequence[Row], *, tokens: int, rounds: int) -> None:
    """Print one row a direction and share."""
    padded = pad_tokens(tokens)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(
        f"{tokens} tokens, padded to {padded}, of which {certain_tokens(padded)} are certain; best of {rounds} rounds"
    )
    print(f"{platform.machine()}, 1 thread a side; {versions}")
    heads = ("prefill s", "wire s", "then sent s", "streamed s", "hidden", "bound")
    print(f"{'way':<6}{'share':>6}" + "".join(f"{head:>13}" for head in heads))
    for row in rows:
        times = (row.prefill, row.wire, row.sequential, row.streamed, row.hidden, row.bound)
        verdict = "reached" if row.is_good else "missed"
        print(f"{row.direction:<6}{row.share:>6}" + "".join(f"{value:>13.3f}" for value in times) + f"  {verdict}")
    print(f"marks: hidden >= {HIDDEN_MARK} where the wire is the shorter, bound <= {BOUND_MARK}")


def run(*, tokens: int, layers: int, rounds: int, shares: Sequence[float]) -> tuple[list[Row], int]:
    """Measure every direction and share; returns the rows and the prompt's prefilled tokens."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        model.mkdir()
        build(model, layers=layers, positions=pad_tokens(tokens) + 64)
        engines = tuple(Watched(Engine(load(str(model)))) for _ in range(2))
        text = text_of(engines[0]._engine, tokens)
        prefilled = len(engines[0].tokenize([question(text)]).token_ids) - 1
        rows = []
        for direction in MODES:
            bench = Bench(Path(name) / direction, (engines[0], engines[1]), direction, text)
            with bench.linked() as link:
                rows += [measure(bench, link, share, rounds=rounds, layers=layers) for share in shares]
        return rows, prefilled


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or JSON; returns 0 where every mark is reached, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"prompt tokens (default {TOKENS})")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="layers of the model (default 4)")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="rounds, of which the best counts (default 1)"
    )
    parser.add_argument("--quick", action="store_true", help="one round, one share, few tokens: whether it works")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="write all timelines as JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the first direction's first share")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens, args.layers, args.rounds = min(args.tokens, QUICK_TOKENS), 2, 1
    shares = SHARES[:1] if args.quick else SHARES
    rows, tokens = run(tokens=args.tokens, layers=args.layers, rounds=args.rounds, shares=shares)
    facts = [row.facts() for row in rows]
    if args.timeline:
        timelines = [{**fact, "timelines": row.timelines} for fact, row in zip(facts, rows, strict=True)]
        args.timeline.write_text(json.dumps({"tokens": tokens, "rows": timelines}), encoding="utf-8")
    if args.svg:
        args.svg.write_text(draw(rows[0].timelines, tokens=tokens), encoding="utf-8")
    if args.json:
        print(json.dumps({"tokens": tokens, "rounds": args.rounds, "rows": facts}))
    else:
        print_table(rows, tokens=tokens, rounds=args.rounds)
    return 0 if args.quick or all(row.is_good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
