"""`splitinfer evaluate`: what policies really give away, what they cost and what they keep, measured by attacks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
  splitinfer evaluate sealed-decode --codec raw --codec q8 --codec q4 --out report
  splitinfer evaluate noised-decode --sigma 0.05 --sigma 0.2 --prompts 20 --out report
  splitinfer evaluate noised-decode --clipped 64 --clipped 1e4 --relative 0.3    noise on the finished cache instead
  splitinfer evaluate public-prefix --fail-above personal_data=0.01   exit code 3 where a policy leaks more
  splitinfer evaluate --captures ./dump --model ./model  what another system's caches give away

A policy's remote is replaced by a curious cloud in this process; nothing leaves this machine. Figures of --fail-above:
token_recovery, exact_prompt, personal_data, confirmation: the highest over all seats and attacks that were played;
prefix_timing: the area under the curve of another tenant's clock, 0.5 where it says nothing; noise_audit: 1 where a
promise of noise was refuted; active: the share of an active attacker's manipulations that were accepted; store: the
share of probes that a reader of the disk found. What was measured of a noised policy is kept in the state folder, for
its certificates.
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
    parser.add_argument(
        "--codec", action="append", default=[], metavar="NAME", help="evaluate each policy with this codec; repeatable"
    )
    parser.add_argument(
        "--sigma", type=float, action="append", default=[], metavar="S", help="with this much noise; repeatable"
    )
    parser.add_argument(
        "--clipped", type=float, action="append", default=[], metavar="E", help="a clipped cache at this epsilon"
    )
    parser.add_argument(
        "--relative", type=float, action="append", default=[], metavar="R", help="a cache with so much relative noise"
    )
    parser.add_argument(
        "--tenant-texts",
        type=int,
        default=40,
        metavar="N",
        help="public texts that two tenants of the cloud send, for public-prefix (default 40)",
    )
    parser.add_argument(
        "--active",
        type=int,
        default=3,
        metavar="N",
        help="how often an active attacker tries each manipulation (default 3); 0 leaves him and the disk's reader out",
    )
    parser.add_argument("--quick", action="store_true", help="a small evaluation: does it run?")
    parser.add_argument("--model", metavar="SOURCE", help="another model than the policies name")
    parser.add_argument("--captures", type=Path, metavar="DIR", help="attack captured caches of another system instead")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.md and plots here")
    parser.add_argument(
        "--fail-above", action="append", default=[], metavar="FIGURE=SHARE", help="exit code 3 above it; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from splitinfer.evaluation.rendering import text_lines  # torch takes seconds to load
    from splitinfer.evaluation.report import exceeded, parse_ceiling
    from splitinfer.evaluation.variants import Strengths, with_codecs, with_noise

    ceilings = [parse_ceiling(text) for text in args.fail_above]
    if args.captures is not None:
        return _captures(args)
    strengths = Strengths(args.sigma, args.clipped, args.relative)
    policies = with_noise(with_codecs(_policies(args.policy), args.codec), strengths)
    report = _report(args, policies)
    if not args.quick:
        _remember(report, policies, args.home)
    if args.out is not None:
        _write(report, args.out)
    failures = exceeded(report, ceilings)
    if args.json:
        print(json.dumps({**report.to_json(), "failures": failures}))
    else:
        print("\n".join(text_lines(report)).rstrip())
    for failure in failures:
        print(f"error[{PolicyError.code}]: {failure}", file=sys.stderr)
    return PolicyError.exit_code if failures else 0


def _report(args: argparse.Namespace, policies: Sequence[tuple[str, Policy]]) -> Report:
    from splitinfer.evaluation.evaluate import evaluate
    from splitinfer.evaluation.playbook import require_attacks
    from splitinfer.evaluation.settings import QUICK, Settings
    from splitinfer.model.loading import load

    attacks, seats = require_attacks(args.attack), _seats(args.seat)
    if args.quick:
        settings = replace(QUICK, attacks=attacks, seats=seats, seed=args.seed)
    else:
        settings = Settings(
            attacks=attacks,
            seats=seats,
            prompts=args.prompts,
            seed=args.seed,
            max_new_tokens=args.max_new_tokens,
            tenant_texts=args.tenant_texts,
            active_attempts=args.active,
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


def _remember(report: Report, policies: Sequence[tuple[str, Policy]], home: str | None) -> None:
    """Keep what was measured of noised policies, so that their certificates can say it."""
    from splitinfer.evaluation.capture import Seat
    from splitinfer.home import Home
    from splitinfer.home.leakage import LeakageFile
    from splitinfer.noise.certificate import Measured

    for (_, policy), figures in zip(policies, report.policies, strict=True):
        rows = {row.attack: row.tokens.share for row in figures.attacks if row.seat == Seat.RECIPIENT}
        if policy.noise is not None and {"prior", "denoise"} <= set(rows):
            measured = Measured(prior=rows["prior"], recovery=max(rows.values()))
            LeakageFile(Home.find(home)).put(report.weights_sha256, policy.digest, measured)


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
