"""`splitinfer demo`: one private question under every trust mode, device and cloud in two processes on this machine."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from splitinfer.cli.audit import describe
from splitinfer.cli.terminal import printable
from splitinfer.egress.verification import read_records, verify
from splitinfer.embedded import demo as prompt
from splitinfer.errors import ModelError, TransportError
from splitinfer.home import Home
from splitinfer.segments import note, public, question
from trust_models.modes import MODES, TrustMode
from trust_models.policy import load_builtin

if TYPE_CHECKING:
    from splitinfer.answer import Answer

__all__ = ["add_parser"]

_EPILOG = """examples:
  splitinfer demo
  splitinfer demo --keep ./demo-state                    keep both state folders, to look at the log
"""
_START_SECONDS = 60
_SHOWN_RECORDS = 4
_MASKS = 64


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `demo` command."""
    parser = subparsers.add_parser(
        "demo",
        help="every trust mode on the embedded model",
        description="Ask one private question about a public document and a private note under every trust mode.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep the two state folders here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=_demo)


def _demo(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        base = args.keep or Path(scratch)
        device = Home(base / "device")
        with _cloud(base / "cloud", device) as url:
            answers = list(_answers(device))
        report = verify(device.audit, _checkpoint_key(device))
        records = list(read_records(device.audit))
    if args.json:
        print(json.dumps({"url": url, "runs": [answer.to_json() for answer in answers], "audit_size": report.size}))
    else:
        _print(answers, report.size, records[-_SHOWN_RECORDS:])
    return 0


def _answers(device: Home) -> Iterator[Answer]:
    from splitinfer.joint.offline import prepare_pool
    from splitinfer.session import Session, load_engine

    engine = load_engine("embedded", home=device)
    segments = [public(prompt.DOCUMENT), note(prompt.NOTE), question(prompt.QUESTION)]
    for mode in MODES:
        if mode is TrustMode.HOMOMORPHIC and find_spec("tenseal") is None:
            continue
        if mode is TrustMode.MASKED:
            prepare_pool(device, engine, tokens=_MASKS, max_bytes=load_builtin(mode.value).masked.max_bytes)
        with Session.open(mode.value, home=device, engine=engine) as session:
            answer = session.run(segments)
        # With noise that means something the answer is another.
        if answer.text.strip() != prompt.ANSWER and not MODES[mode].is_noised:
            raise ModelError(f"under {mode.value} the embedded model did not answer as it should")
        yield answer


@contextmanager
def _cloud(home: Path, device: Home) -> Iterator[str]:
    command = [sys.executable, "-m", "splitinfer", "--home", str(home), "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--pair", str(device.path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise TransportError("the cloud process did not start; run `splitinfer serve` to see why")
            yield str(json.loads(line)["url"])
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()


def _checkpoint_key(device: Home) -> Ed25519PublicKey:
    return device.key("checkpoint").public_key()


def _print(answers: list[Answer], size: int, records: Sequence[Mapping[str, object]]) -> None:
    print(f"public document:\n{_indented(prompt.DOCUMENT)}\nprivate note:\n{_indented(prompt.NOTE)}")
    print(f"private question:\n{_indented(prompt.QUESTION)}\n")
    heads = ("mode", "prefilled", "decoded", "tokens", "bytes up", "bytes down", "TTFT s", "answer", "cloud could read")
    rows = [heads, *(_row(answer) for answer in answers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if find_spec("tenseal") is None:
        print("\nhomomorphic is left out: it needs pip install 'splitinfer[he]'")
    print(f"\naudit log: {size} records, verified; the last {len(records)}:")
    for record in records:
        print(f"  {describe(record)}")


def _row(answer: Answer) -> tuple[str, ...]:
    row = next(row for mode, row in MODES.items() if mode.value == answer.mode)
    return (
        answer.mode,
        {"cloud:public": "cloud, device"}.get(row.prefill, row.prefill),
        row.decode,
        str(answer.prompt_tokens),
        f"{answer.egress.bytes_sent:,}",
        f"{answer.egress.bytes_received:,}",
        f"{answer.ttft_seconds:.3f}",
        printable(answer.text.strip()),
        row.cloud_reads,
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
