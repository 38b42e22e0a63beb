"""`splitinfer evaluate`: what policies really give away, what they cost and what they keep, measured by attacks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from splitinfer.errors import PolicyError, UsageError
from trust_models.policy import Policy, resolve

if TYPE_CHECKING:
    from splitinfer.evaluation.capture import Seat
    from splitinfer.evaluation.report import Report

__all__ = ["add_parser"]

_EPILOG = """examples:
  splitinfer evaluate sealed-decode                      every attack from every seat on 8 prompts
  splitinfer evaluate public-prefix sealed-decode --seat network --prompts 20
  splitinfer evaluate my-policy.toml --attack dictionary,posterior --json
  splitinfer evaluate public-prefix --fail-above personal_data=0.01   exit code 3 where a policy leaks more
  splitinfer evaluate --captures ./dump --model ./model  what another system's caches give away

A policy's remote is replaced by a curious cloud in this process; nothing leaves this machine. Figures of --fail-above:
token_recovery, exact_prompt, personal_data, confirmation; the highest over all seats and attacks that were played.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `evaluate` command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="what a policy really gives away",
        description="Run prompts under policies and attack what each seat saw of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", nargs="*", metavar="POLICY", help="a built-in policy or a TOML file")
    parser.add_argument("--seat", action="append", default=[], metavar="SEAT", help="network or recipient; repeatable")
    parser.add_argument("--attack", default="all", metavar="LIST", help="attacks, comma-separated (default all)")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="prompts a policy (default 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the prompts (default 0)")
    parser.add_argument("--max-new-tokens", type=int, default=24, metavar="N", help="answer length (default 24)")
    parser.add_argument("--model", metavar="SOURCE", help="another model than the policies name")
    parser.add_argument("--captures", type=Path, metavar="DIR", help="attack captured caches of another system instead")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.md and plots here")
    parser.add_argument(
        "--fail-above", action="append", default=[], metavar="FIGURE=SHARE", help="exit code 3 above it; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from splitinfer.evaluation.report import exceeded, parse_ceiling  # torch takes seconds to load

    ceilings = [parse_ceiling(text) for text in args.fail_above]
    if args.captures is not None:
        return _captures(args)
    report = _report(args, _policies(args.policy))
    if args.out is not None:
        _write(report, args.out)
    failures = exceeded(report, ceilings)
    if args.json:
        print(json.dumps({**report.to_json(), "failures": failures}))
    else:
        print("\n".join(report.lines()).rstrip())
    for failure in failures:
        print(f"error[{PolicyError.code}]: {failure}", file=sys.stderr)
    return PolicyError.exit_code if failures else 0


def _report(args: argparse.Namespace, policies: Sequence[tuple[str, Policy]]) -> Report:
    from splitinfer.evaluation.evaluate import Settings, evaluate
    from splitinfer.evaluation.playbook import require_attacks
    from splitinfer.model.loading import load

    settings = Settings(
        attacks=require_attacks(args.attack),
        seats=_seats(args.seat),
        prompts=args.prompts,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
    )
    sources = {policy.model.source for _, policy in policies}
    if args.model is None and len(sources) > 1:
        raise UsageError("the policies name different models; evaluate them apart, or give --model for all")
    loaded = load(args.model or sources.pop())
    with _bar() as progress:
        return evaluate(policies, loaded, settings, progress=progress)


def _policies(names: Sequence[str]) -> list[tuple[str, Policy]]:
    if not names:
        raise UsageError("there is no policy to evaluate; name a built-in one or a TOML file, or give --captures")
    return [(Path(name).stem if name.endswith(".toml") else name, resolve(name)) for name in names]


def _seats(names: Sequence[str]) -> tuple[Seat, ...]:
    from splitinfer.evaluation.capture import Seat

    try:
        return tuple(Seat(name) for name in names) or tuple(Seat)
    except ValueError:
        raise UsageError(f"--seat takes one of {', '.join(Seat)}") from None


def _captures(args: argparse.Namespace) -> int:
    from splitinfer.evaluation.foreign import attack_directory
    from splitinfer.evaluation.playbook import require_attacks
    from splitinfer.model.loading import load

    if args.policy or args.fail_above:
        raise UsageError("--captures stands alone: it attacks caches, not policies, and takes no --fail-above")
    figures = attack_directory(args.captures, load(args.model or "embedded"), attacks=require_attacks(args.attack))
    if args.json:
        print(json.dumps(figures))
        return 0
    for row in figures["attacks"]:
        print(f"{row['attack']:<22} {row['tokens_recovered']} of {row['tokens']} tokens, {row['seconds']} s")
    return 0


def _write(report: Report, directory: Path) -> None:
    from splitinfer.evaluation.plots import write_report

    try:
        write_report(report, directory)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {directory} ({error.strerror})") from None


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    bar = tqdm(desc="evaluate", unit="run", delay=2.0, leave=False, file=sys.stderr)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        bar.close()
