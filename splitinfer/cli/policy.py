"""`splitinfer policy`: list, show, explain and check policies; arguments to text, device side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from splitinfer.cli.commands import add_command
from splitinfer.errors import ArtefactError, ModelError
from splitinfer.home import Home
from splitinfer.home.losses import LossFile
from trust_models.codecs import CALIBRATED, LOSSY, Loss
from trust_models.explain import explain
from trust_models.modes import MODES
from trust_models.noise_text import EMPIRICAL
from trust_models.policy import Policy, builtin_names, load_builtin, load_policy, parse_policy, policy_text, resolve

__all__ = ["add_parser"]

_EPILOG = """examples:
  splitinfer policy list
  splitinfer policy show public-prefix > policy.toml     a commented file to start from
  splitinfer policy explain policy.toml                  what leaves, who can read it
  splitinfer policy check policy.toml                    exit code 3 and a sentence if it cannot be used
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `policy` command."""
    parser = subparsers.add_parser(
        "policy",
        help="list, show, explain and check policies",
        description="List, show, explain and check policies. Nothing is sent.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="policy_command", required=True, metavar="COMMAND")
    add_command(commands, "list", "list the built-in policies", _list)
    shown = add_command(
        commands, "show", "print a policy as it is written; --json: every setting, defaults included", _show
    )
    shown.add_argument("policy", metavar="NAME_OR_FILE", help="a built-in policy's name or a file")
    explained = add_command(commands, "explain", "say in plain language what leaves and who can read it", _explain)
    explained.add_argument("policy", metavar="NAME_OR_FILE", help="a built-in policy's name or a file")
    checked = add_command(commands, "check", "check that a policy file can be used", _check)
    checked.add_argument("file", metavar="FILE", help="the policy file")


def _list(args: argparse.Namespace) -> int:
    policies = [load_builtin(name) for name in builtin_names()]
    if args.json:
        rows = [{"name": policy.mode.value, **_summary(policy)} for policy in policies]
        print(json.dumps({"policies": rows}))
        return 0
    width = max(len(name) for name in builtin_names())
    for policy in policies:
        print(f"{policy.mode:<{width}}  the cloud reads: {MODES[policy.mode].cloud_reads}")
    return 0


def _show(args: argparse.Namespace) -> int:
    text, origin = policy_text(args.policy)
    policy = parse_policy(text, origin=origin)
    if args.json:
        settings = policy.model_dump(mode="json", exclude_none=True)
        print(json.dumps({"policy": settings, "digest": policy.digest}))
        return 0
    print(text, end="" if text.endswith("\n") else "\n")
    return 0


def _explain(args: argparse.Namespace) -> int:
    policy = resolve(args.policy)
    text = explain(policy, loss=_loss(policy, args), price=_price(policy))
    print(json.dumps({**_summary(policy), "explanation": text}) if args.json else text)
    return 0


def _price(policy: Policy) -> str | None:
    """Return what a noised release promises, where that follows from the policy alone."""
    if policy.noise is None:
        return None
    from splitinfer.noise.certificate import promise_of

    certificate = promise_of(policy.noise, answer_is_seen=MODES[policy.mode].decode == "cloud")
    return certificate.sentence() if certificate else None


def _loss(policy: Policy, args: argparse.Namespace) -> Loss | None:
    """Return what was measured for the policy's codec and its pinned model, or the embedded one."""
    pinned = policy.model.weights_sha256
    if policy.transfer.codec not in LOSSY or (pinned is None and policy.model.source != "embedded"):
        return None
    if pinned is None:
        from splitinfer.model.identity import identify
        from splitinfer.model.loading import resolve_source  # torch takes seconds to load

        pinned = identify(resolve_source("embedded")).weights_sha256
    home = Home.find(args.home)
    if policy.transfer.codec in CALIBRATED:
        return _certified(policy, home)
    return LossFile(home).get(pinned, policy.transfer.codec)


def _certified(policy: Policy, home: Home) -> Loss | None:
    """Return what the certificate says of a calibrated codec, where the policy's model is on this machine."""
    from splitinfer.calibration.artefacts import Held, find_artefact, find_certificate
    from splitinfer.model.identity import identify
    from splitinfer.model.loading import resolve_source

    try:
        directory = resolve_source(policy.model.source)
        artefact = find_artefact(Held(home, directory), identify(directory))
    except (ModelError, ArtefactError):
        return None
    found = find_certificate(Held(home, directory), artefact, policy.transfer.codec) if artefact else None
    return found.loss if found else None


def _check(args: argparse.Namespace) -> int:
    policy = load_policy(Path(args.file))
    if args.json:
        print(json.dumps({"usable": True, "mode": policy.mode.value, "digest": policy.digest}))
        return 0
    print(f"{args.file}: usable, mode {policy.mode}, digest {policy.digest}")
    return 0


def _summary(policy: Policy) -> dict[str, object]:
    row = MODES[policy.mode]
    promises_nothing = policy.noise is not None and policy.noise.mechanism == "relative"
    return {
        "mode": policy.mode.value,
        "digest": policy.digest,
        "crosses": row.crosses,
        "protection": row.protection,
        "private_text_readable_by": list(row.readable_by),
        "cloud_reads": row.cloud_reads,
        "guarantee": EMPIRICAL if promises_nothing else row.guarantee,
    }
