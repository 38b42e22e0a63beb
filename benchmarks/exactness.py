"""Count how often every trust mode gives the token ids of mode `local`, against a real cloud process on this machine.

Held-out prompts (entities that the embedded model never saw), greedy and with seeded sampling. A remote run counts as
served only where bytes moved both ways and the recipient's receipt, which the session checked against the log, states
the tokens that were asked for. Exits 1 unless every run of every mode is identical and served.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer.answer import Answer
from splitinfer.egress.verification import verify
from splitinfer.handoff import Segment
from splitinfer.home import Home
from splitinfer.session import Session, load_engine
from tests.support.processes import cloud_process
from tools.corpus import held_out_prompts
from trust_models.modes import MODES, TrustMode

SEEDED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
# Noise makes other tokens, so noised modes are not measured here.
# What computes in rounds is measured by `make bench-homomorphic`.
EXACT_MODES = tuple(mode for mode, row in MODES.items() if not row.is_noised and row.protection in ("none", "sealed"))
REMOTE_MODES = tuple(mode for mode in EXACT_MODES if mode is not TrustMode.LOCAL)


@dataclass
class Tally:
    """What was counted of one mode, by kind of sampling (`greedy`, `seeded`)."""

    mode: TrustMode
    runs: dict[str, int] = field(default_factory=lambda: {"greedy": 0, "seeded": 0})
    identical: dict[str, int] = field(default_factory=lambda: {"greedy": 0, "seeded": 0})
    served: int = 0
    right: int = 0
    tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    ttft_seconds: float = 0.0

    def add(self, kind: str, answer: Answer, local: Answer, expected: str) -> None:
        """Count one run."""
        self.runs[kind] += 1
        self.identical[kind] += answer.token_ids == local.token_ids and answer.finish_reason == local.finish_reason
        self.served += self.mode is TrustMode.LOCAL or not faults(answer)
        self.right += kind == "greedy" and answer.text.strip() == expected
        self.tokens += len(answer.token_ids)
        self.bytes_up += answer.egress.bytes_sent
        self.bytes_down += answer.egress.bytes_received
        self.ttft_seconds += answer.ttft_seconds

    @property
    def count(self) -> int:
        """Return how many runs were counted."""
        return sum(self.runs.values())

    @property
    def is_perfect(self) -> bool:
        """Tell whether every run was identical and served."""
        return self.runs == self.identical and self.served == self.count


def faults(answer: Answer) -> list[str]:
    """Say what a remote run lacks: bytes both ways, the exact flag, a receipt that states what was asked for."""
    if answer.receipt is None:
        return ["no receipt"]
    on_cloud = {
        "prefilled": answer.prefilled_by_cloud_tokens or None,
        "decoded": len(answer.token_ids) if answer.decoded_on == "cloud" else None,
        "opened": 1,
        "erased": None if answer.mode == TrustMode.PUBLIC_PREFIX else 1,
        "refused": None,
    }
    stated = {name: answer.receipt.event_count(name) for name in on_cloud}
    found = [f"receipt states {name} {stated[name]}, not {count}" for name, count in on_cloud.items()]
    found = [fault for fault, name in zip(found, on_cloud, strict=True) if stated[name] != on_cloud[name]]
    found += [] if answer.egress.bytes_sent and answer.egress.bytes_received else ["no bytes moved one way"]
    found += [] if answer.receipt.event_count("received") else ["receipt states nothing received"]
    return found + ([] if answer.exact and not answer.is_fallback else ["not exact"])


def measure(device: Home, *, greedy: int, seeded: int, seed: int) -> list[Tally]:
    """Run all prompts under every mode in one process, with one engine and one session a mode."""
    engine = load_engine("embedded", home=device)
    tallies = {mode: Tally(mode) for mode in EXACT_MODES}
    with ExitStack() as stack:
        opened = {
            mode: Session.open(mode.value, home=device, engine=engine, use_store=False, remember=False)
            for mode in tallies
        }
        sessions = {mode: stack.enter_context(session) for mode, session in opened.items()}
        for kind, segments, expected, sampling in _cases(greedy, seeded, seed):
            local = sessions[TrustMode.LOCAL].run(segments, max_new_tokens=40, **sampling)
            tallies[TrustMode.LOCAL].add(kind, local, local, expected)
            for mode in REMOTE_MODES:
                answer = sessions[mode].run(segments, max_new_tokens=40, **sampling)
                tallies[mode].add(kind, answer, local, expected)
                for fault in faults(answer):
                    print(f"{mode.value}, {kind} run {tallies[mode].runs[kind]}: {fault}", file=sys.stderr)
    return list(tallies.values())


def _cases(greedy: int, seeded: int, seed: int) -> Iterator[tuple[str, list[Segment], str, dict[str, float]]]:
    for segments, expected in held_out_prompts(greedy, seed):
        yield "greedy", segments, expected, {}
    for index, (segments, expected) in enumerate(held_out_prompts(seeded, seed + 1)):
        yield "seeded", segments, expected, {**SEEDED, "seed": index}


def print_table(tallies: Sequence[Tally], audit_size: int, seconds: float) -> None:
    """Print one row a mode."""
    torch_line = f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread, float32"
    print(f"embedded model, {platform.machine()}, Python {platform.python_version()}, {torch_line}")
    print(f"seeded sampling: {', '.join(f'{name} {value}' for name, value in SEEDED.items())}, seed = prompt number\n")
    heads = (
        "mode",
        "greedy identical",
        "seeded identical",
        "bytes both ways, receipt as asked",
        "greedy answers right",
        "tokens",
        "mean bytes up",
        "mean bytes down",
        "mean TTFT s",
    )
    rows = [heads, *(_row(tally) for tally in tallies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\naudit log: {audit_size} records, verified; {seconds:.0f} s in all")


def _row(tally: Tally) -> tuple[str, ...]:
    is_local = tally.mode is TrustMode.LOCAL
    return (
        tally.mode.value,
        *(f"{tally.identical[kind]} of {tally.runs[kind]}" for kind in tally.runs),
        "nothing left" if is_local else f"{tally.served} of {tally.count}",
        f"{tally.right} of {tally.runs['greedy']}",
        f"{tally.tokens:,}",
        f"{tally.bytes_up / max(tally.count, 1):,.0f}",
        f"{tally.bytes_down / max(tally.count, 1):,.0f}",
        f"{tally.ttft_seconds / max(tally.count, 1):.3f}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; returns 0 where everything is identical and served, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--greedy", type=int, default=100, metavar="N", help="greedy prompts (default 100)")
    parser.add_argument("--seeded", type=int, default=20, metavar="N", help="seeded prompts (default 20)")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="which held-out prompts (default 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, cloud_process(Path(scratch)):
        device = Home(Path(scratch) / "device")
        tallies = measure(device, greedy=args.greedy, seeded=args.seeded, seed=args.seed)
        report = verify(device.audit, device.key("checkpoint").public_key())
    if args.json:
        facts = [{"mode": t.mode.value, "runs": t.runs, "identical": t.identical, "served": t.served} for t in tallies]
        print(json.dumps({"modes": facts, "audit_size": report.size}))
    else:
        print_table(tallies, report.size, time.perf_counter() - began)
    return 0 if all(tally.is_perfect for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
