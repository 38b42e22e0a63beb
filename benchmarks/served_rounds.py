"""Seconds a token of `homomorphic` and `masked` through the server's own door: `splitinfer serve`, and `run` beside it.

Cloud and device are processes of the command line over loopback, so that sealing, records, gate, log, door and the
halves' own processes are all in the time; `benchmarks/homomorphic.py` and `masked.py` measure the halves alone. The
prompt is a public text and a question, as long as a prefix of so many tokens; the embedded model on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoTokenizer

from benchmarks.common import ROOT, Mark, parser, print_report, progress, report
from splitinfer import embedded
from splitinfer.model.prompt import tokenize
from splitinfer.segments import public, question

# The mark of `masked` leaves out round trips, of which a token has 25 here.
MARKS = {"homomorphic, encrypted prefix": 0.35, "homomorphic, public prefix": 0.25}
RULES = {
    "homomorphic, encrypted prefix": 'mode = "homomorphic"\n[homomorphic]\npublic = "encrypted"\n',
    "homomorphic, public prefix": 'mode = "homomorphic"\n[homomorphic]\npublic = "plaintext"\n',
    "masked": 'mode = "masked"\n',
}
REMOTE = '[remote]\nname = "default"\n'
QUESTION = "What does the lamp cost in the list?"
WORDS = "lamp kettle router chair "


@dataclass(frozen=True, slots=True)
class Setting:
    """A device's state folder, its prompt's file, and how many tokens are asked for."""

    home: Path
    shown: Path
    tokens: int


def command(home: Path, *words: str) -> list[str]:
    """Return a command line of the product under a state folder."""
    return [sys.executable, "-m", "splitinfer", "--home", str(home), *words]


@contextmanager
def cloud(base: Path) -> Iterator[None]:
    """Serve the embedded model on a free port, paired with the folder `device`, until the context ends."""
    words = ("serve", "--port", "0", "--json", "--pair", str(base / "device"))
    log = base / "cloud.log"
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command(base / "cloud", *words), stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT) as process,
    ):
        try:
            if process.stdout is None or not process.stdout.readline():
                raise SystemExit(f"the cloud did not start: {log.read_text(encoding='utf-8')}")
            yield
        finally:
            process.terminate()


def called(*arguments: str) -> dict[str, Any]:
    """Run a command to its end and return the JSON that it prints."""
    done = subprocess.run(list(arguments), stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(name: str, setting: Setting) -> dict[str, object]:
    """Run one policy in a device process of its own; returns its row."""
    policy = setting.home.parent / "policy.toml"
    policy.write_text(_with_remote(RULES[name]), encoding="utf-8")
    if name == "masked":
        # Masks are reserved by eights; what an answer leaves of them is never used.
        called(*command(setting.home, "masks", "prepare", "--tokens", str(setting.tokens + 8), "--json"))
    words = ("run", "--policy", str(policy), "--public", str(setting.shown), "--private-text", QUESTION)
    said = called(*command(setting.home, *words, "--max-new-tokens", str(setting.tokens), "--json"))
    made = len(said["token_ids"])
    moved = said["bytes_sent"] + said["bytes_received"]
    return {
        "mode": name,
        "prompt_tokens": said["prompt_tokens"],
        "tokens": made,
        "seconds_a_token": said["tpot_seconds"],
        "seconds_to_first_token": said["ttft_seconds"],
        "MB_of_the_session": round(moved / 1e6, 3),
    }


def public_text(prefix: int) -> str:
    """Return the longest public text with which the prompt has at most `prefix` tokens and its last one."""
    tokenizer, words = AutoTokenizer.from_pretrained(embedded.path()), WORDS.split()
    text = words[0]
    while True:
        longer = f"{text} {words[len(text.split()) % len(words)]}"
        if len(tokenize(tokenizer, [public(longer), question(QUESTION)]).token_ids) > prefix + 1:
            return text
        text = longer


def _with_remote(rules: str) -> str:
    first, _, sections = rules.partition("\n")
    return f"{first}\n{REMOTE}{sections}"


def marks(rows: list[Mapping[str, Any]]) -> list[Mark]:
    """Compare modes that have a mark with it, where there were at least two tokens, of which one is the first."""
    return [
        Mark(f"{row['mode']}: seconds a token through the door", row["seconds_a_token"], MARKS[row["mode"]], "at most")
        for row in rows
        if row["mode"] in MARKS and row["tokens"] > 1
    ]


def main() -> int:
    """Measure every mode; exits 1 where a mark is missed, but not with --quick."""
    options = parser(__doc__, "python benchmarks/served_rounds.py --tokens 24")
    options.add_argument("--prefix", type=int, default=256, help="tokens of the prompt but the last (default 256)")
    options.add_argument("--tokens", type=int, default=16, help="tokens of the answer, at most (default 16)")
    args = options.parse_args()
    prefix, tokens = (64, 3) if args.quick else (args.prefix, args.tokens)
    rows: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        shown = base / "prices.md"
        shown.write_text(public_text(prefix), encoding="utf-8")
        # The pool's anchor lies outside the state folder, and goes with it here.
        os.environ["SPLITINFER_ANCHORS"] = str(base / "anchors")
        with cloud(base):
            for name in RULES:
                progress(name)
                rows.append(measure(name, Setting(base / "device", shown, tokens)))
    compared = marks(rows)
    setting = "Embedded model, profile balanced, `splitinfer serve` and `splitinfer run` over loopback, two processes."
    print_report(report("served_rounds", setting=setting, rows=rows, marks=compared), as_json=args.json)
    return int(not args.quick and not all(mark.is_reached for mark in compared))


if __name__ == "__main__":
    sys.exit(main())
