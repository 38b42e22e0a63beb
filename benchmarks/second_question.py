"""A second question about the same public document: what it puts on the wire, and how long its first token takes.

A model with random weights and 8,192 positions, which speaks with the embedded model's tokenizer, in a real
`splitinfer serve` process and in this one; policy `public-prefix` with the store. The first question moves the cache of
a document of 4,000 tokens; the second finds it in the device's store. Its notes and question are others, and about as
long. Bytes are those that the gate counted; the last question is asked with the server stopped, so that a byte which
the gate did not count would have had nowhere to go.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, Mark, parser, print_report, progress, report
from splitinfer import embedded
from splitinfer.answer import Answer
from splitinfer.handoff import Segment
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.segments import note, public, question
from splitinfer.session import Session, load_engine
from tools.corpus import held_out_context

TTFT_MARK = 0.2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
MAX_NEW_TOKENS = 4


def write_model(directory: Path, *, layers: int, hidden: int) -> Path:
    """Write a Llama with random weights and the embedded model's tokenizer, as a folder that the product loads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    disable_progress_bar()
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copy(embedded.path() / name, directory / name)
    return directory


@contextmanager
def cloud_process(model: Path, *, home: Path, device: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `splitinfer serve`, paired with the device's folder, and stop it at the end."""
    command = [sys.executable, "-m", "splitinfer", "--home", str(home), "serve", "--port", "0", "--json"]
    command += ["--pair", str(device), "--model", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise SystemExit("the cloud did not start")
        json.loads(line)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def document(engine: Engine, tokens: int) -> str:
    """Return public text of exactly this many tokens where the tokenizer allows it, never more."""

    def count(text: str) -> int:
        return engine.tokenize([public(text)]).segment_lengths[0]

    context = held_out_context(1, tokens=tokens, kind="table", questions=1, count_tokens=lambda text: len(text) // 3)
    text = (context.segments[0].text + "\n") * 4
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle - 1)
    return text[:low]


def questions(text: str) -> list[list[Segment]]:
    """Return three prompts about one document, alike in length."""
    asked = (
        ("Ticket 4711: the customer Maria Lopez calls about her order.", "What does the first item cost?"),
        ("Ticket 4712: the customer Peter Smith writes about a bill.", "What does the second item cost?"),
        ("Ticket 4713: the customer Hanna Berg asks about delivery.", "What does the third item cost?"),
    )
    return [[public(text), note(ticket), question(words)] for ticket, words in asked]


def ask_all(model: Path, base: Path, tokens: int) -> tuple[list[Answer], int]:
    """Ask the first question, the second one, and a third one of a stopped server; returns answers and file bytes."""
    home = Home(base / "device")
    engine = load_engine(str(model), home=home)
    prompts = questions(document(engine, tokens))
    with (
        cloud_process(model, home=base / "cloud", device=home.path) as process,
        Session.open(_policy(base, model), home=home, engine=engine, remember=False) as session,
    ):
        progress("first question")
        answers = [session.run(prompts[0], max_new_tokens=MAX_NEW_TOKENS)]
        progress("second question")
        answers.append(session.run(prompts[1], max_new_tokens=MAX_NEW_TOKENS))
        process.terminate()
        process.wait(timeout=60)
        progress("third question, of a stopped server")
        answers.append(session.run(prompts[2], max_new_tokens=MAX_NEW_TOKENS))
    stored = sum(path.stat().st_size for path in (home.path / "store").rglob("*") if path.is_file())
    return answers, stored


def _policy(base: Path, model: Path) -> Path:
    text = (ROOT / "trust_models" / "builtin" / "public-prefix.toml").read_text(encoding="utf-8")
    path = base / "policy.toml"
    path.write_text(text.replace('source = "embedded"', f"source = {json.dumps(str(model))}", 1), encoding="utf-8")
    return path


def run(args: argparse.Namespace) -> dict[str, object]:
    """Ask and return the report."""
    with tempfile.TemporaryDirectory(prefix="splitinfer-bench-") as folder:
        base = Path(folder)
        model = write_model(base / "model", layers=args.layers, hidden=args.hidden)
        answers, stored = ask_all(model, base, args.tokens)
    names = ("first question", "second question", "third, server stopped")
    rows: list[dict[str, object]] = [
        {
            "case": name,
            "prompt_tokens": answer.prompt_tokens,
            "public_tokens": answer.public_tokens,
            "bytes_up": answer.egress.bytes_sent,
            "bytes_down": answer.egress.bytes_received,
            "ttft_seconds": answer.ttft_seconds,
            "reused": answer.is_reused,
        }
        for name, answer in zip(names, answers, strict=True)
    ]
    first, second, third = answers
    wire = sum(answer.egress.bytes_sent + answer.egress.bytes_received for answer in (second, third))
    marks = [
        Mark("bytes on the wire of the second question and the third", wire, 0, "at most"),
        Mark(
            "TTFT of the second question to the first", second.ttft_seconds / first.ttft_seconds, TTFT_MARK, "at most"
        ),
    ]
    shape = f"a Llama of {args.layers} layers, width {args.hidden}, random weights, float32"
    return report(
        "second_question",
        setting=f"public-prefix with the store, a document of {first.public_tokens:,} tokens, {shape}, one run",
        rows=rows,
        marks=marks,
        stored_bytes=stored,
        notes=[f"The store keeps {stored / 2**20:.1f} MiB for it, encrypted"],
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    made = parser(__doc__, "python benchmarks/second_question.py --tokens 2000")
    made.add_argument("--tokens", type=int, default=4000, help="tokens of the public document (default 4000)")
    made.add_argument("--layers", type=int, default=6)
    made.add_argument("--hidden", type=int, default=256)
    args = made.parse_args(argv)
    if args.quick:
        args.tokens, args.layers, args.hidden = 300, 2, 64
    torch.set_num_threads(1)
    print_report(run(args), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
