"""Count what crosses in each turn of one conversation, in every trust mode, with and without leave to keep the session.

The embedded model on both sides of the in-memory twin, which counts body bytes as HTTP does. A mode's tokens must be
those of mode `local`, turn by turn, and no cloud may hold anything once its sessions are closed. Exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer.answer import Answer
from splitinfer.handoff import Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.segments import answered, note, public, question
from tests.support.memory_clouds import Paired, policy_of
from trust_models.policy import Policy

FIRST = (
    public("Price list: lamp 5, kettle 7. " * 20),
    note("Ticket of Zoe, phone 555-0100. " * 10),
    question("Who wrote the ticket?"),
)
NEXT = "And question {turn}, what does a lamp cost?"


@dataclass(frozen=True)
class Row:
    """One turn: tokens of its prompt, how many were there already, body bytes both ways, what the cloud says it did."""

    policy: str
    turn: int
    prompt_tokens: int
    base_tokens: int
    bytes_sent: int
    bytes_received: int
    computed_on_device: int
    computed_by_cloud: int
    kept: int
    token_ids: tuple[int, ...]


def policies() -> dict[str, Policy]:
    """Return every mode, and with `keep` those in which the cloud may keep a session."""
    modes = ("local", "public-prefix", "sealed-prefill", "sealed-decode")
    kept = {f"{mode}, keep": policy_of(mode, session={"keep": True}) for mode in modes[2:]}
    return {mode: policy_of(mode) for mode in modes} | kept


def talk(name: str, policy: Policy, base: Path, device: Engine, cloud: Engine, *, turns: int) -> list[Row]:
    """Run the conversation in one session, with a cloud of its own."""
    pair = Paired.at(base)
    service = pair.service(cloud)
    segments: list[Segment] = list(FIRST)
    rows = []
    with pair.session(policy, device, service) as session:
        for turn in range(turns):
            before = device.prefilled_tokens, cloud.prefilled_tokens
            said = session.run(segments, max_new_tokens=8)
            done = device.prefilled_tokens - before[0], cloud.prefilled_tokens - before[1]
            rows.append(_row(name, turn, said, done))
            segments += [answered(said.text), question(NEXT.format(turn=turn))]
    if service.held_sessions:
        raise SystemExit(f"{name}: the cloud still holds a session that was closed")
    return rows


def _row(name: str, turn: int, said: Answer, computed: tuple[int, int]) -> Row:
    kept = said.receipt.event_count("kept") if said.receipt else None
    egress = said.egress
    moved = (egress.bytes_sent, egress.bytes_received)
    return Row(name, turn, said.prompt_tokens, said.base_tokens, *moved, *computed, kept or 0, said.token_ids)


def print_table(rows: Sequence[Row]) -> None:
    """Print one row a turn."""
    heads = ("policy", "turn", "prompt", "base", "bytes up", "bytes down", "device computes", "cloud computes", "kept")
    lines = [heads, *(tuple(_cell(value) for value in list(asdict(row).values())[:-1]) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversations; returns 0 where every turn's tokens are those of `local`, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="turns of the conversation (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args(argv)
    device, cloud = Engine(load("embedded")), Engine(load("embedded"))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, policy) in enumerate(policies().items()):
            rows += talk(name, policy, Path(scratch) / str(number), device, cloud, turns=args.turns)
    wanted = [row.token_ids for row in rows if row.policy == "local"]
    is_identical = all(row.token_ids == wanted[row.turn] for row in rows)
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "identical": is_identical}))
    else:
        print_table(rows)
        print(f"\ntokens of every turn are those of local: {'yes' if is_identical else 'NO'}")
    return 0 if is_identical else 1


if __name__ == "__main__":
    sys.exit(main())
