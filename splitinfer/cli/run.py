"""`splitinfer run`: one prompt under a policy; the answer streams to stdout, what left the device goes to stderr."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from splitinfer.cli.progress import prefill_bar
from splitinfer.cli.terminal import for_terminal
from splitinfer.errors import UsageError
from splitinfer.handoff import SamplingParams, Segment
from splitinfer.segments import document, note, public, question

__all__ = ["add_parser"]

_EPILOG = """examples:
  splitinfer run --policy local --private note.txt --private-text "What is the phone number of Maria Lopez?"
  splitinfer run --policy public-prefix --public prices.md --private ticket.txt --private-text "Which price?"
  echo "Who called?" | splitinfer run --policy my-policy.toml --private call.txt --json
  splitinfer run --policy sealed-decode --private note.txt --private-text "..." --temperature 0.8 --seed 7

Segments stand in the prompt in the order given, the question last. --public may be demoted to private by a rule of
the policy; --document is unlabelled: private, unless a rule names it.
"""
_READERS = {"public": public, "document": document, "private": note}
_SAMPLING = {
    "max_new_tokens": (int, "most tokens to generate"),
    "temperature": (float, "0 is greedy"),
    "top_p": (float, "keep the smallest set of tokens with this mass"),
    "top_k": (int, "keep this many tokens; 0 keeps all"),
    "seed": (int, "seed of the sampling"),
}


class _AddSegment(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        kind = str(option_string).lstrip("-")
        namespace.segments = [*(namespace.segments or []), (kind, str(values))]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `run` command."""
    parser = subparsers.add_parser(
        "run",
        help="run one prompt under a policy",
        description="Run one prompt under a policy.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", required=True, metavar="NAME_OR_FILE", help="a built-in policy or a TOML file")
    for kind, label in (("public", "public"), ("document", "unlabelled"), ("private", "private")):
        parser.add_argument(
            f"--{kind}", dest="segments", action=_AddSegment, metavar="FILE", help=f"add a text file, {label}"
        )
    parser.add_argument(
        "--private-text",
        metavar="TEXT",
        help="the question; it shows in the process list: without this option stdin is read",
    )
    defaults = SamplingParams()
    for name, (kind_of, text) in _SAMPLING.items():
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        # None where it is not written: a policy with [sampling] then has its say.
        parser.add_argument(flag, type=kind_of, default=None, metavar="N", help=f"{text} (default {default})")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--no-store", action="store_true", help="neither use nor keep stored caches of public texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing before it")
    parser.set_defaults(handler=_run, segments=None)


def _run(args: argparse.Namespace) -> int:
    segments = [_READERS[kind](path=path) for kind, path in args.segments or []]
    segments += _question(args.private_text)
    began = time.perf_counter()
    from splitinfer.session import Session  # torch takes seconds to load: after the arguments are known to be good

    sampling = {name: value for name in _SAMPLING if (value := getattr(args, name)) is not None}
    if args.stop:
        sampling["stop"] = tuple(args.stop)
    with (
        prefill_bar() as on_prefill,
        Session.open(args.policy, home=args.home, on_prefill=on_prefill, use_store=not args.no_store) as session,
    ):
        load_seconds = time.perf_counter() - began
        stream = session.stream(segments, **sampling)
        try:
            for piece in stream:
                if not args.json:
                    print(for_terminal(piece), end="", flush=True)
        finally:
            args.has_begun = stream.has_begun
        answer = stream.answer
    if args.json:
        print(json.dumps({**answer.to_json(), "load_seconds": round(load_seconds, 6)}))
        return 0
    print()
    timing = f"TTFT {answer.ttft_seconds:.3f} s, TPOT {answer.tpot_seconds:.3f} s, load {load_seconds:.1f} s"
    fallback = "the cloud failed before the first token: fell back to the device" if answer.is_fallback else None
    reused = "the public text's cache was in the store; the cloud was not asked" if answer.is_reused else None
    promise = answer.certificate.sentence() if answer.certificate else None
    for line in (
        answer.note,
        fallback,
        reused,
        promise,
        f"left the device: {answer.egress}",
        f"{answer.mode}: {timing}",
    ):
        if line:
            print(line, file=sys.stderr)
    return 0


def _question(text: str | None) -> list[Segment]:
    if text is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("there is no question; write --private-text TEXT or give it on stdin")
        text = sys.stdin.read()
    return [question(text)] if text.strip() else []
