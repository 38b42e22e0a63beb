"""`splitinfer masks`: the pool of one-time masks of mode `masked`; arguments to text, device side."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from splitinfer.cli.commands import add_command
from splitinfer.cli.progress import progress_bar
from splitinfer.errors import UsageError
from splitinfer.home import Home

if TYPE_CHECKING:
    from splitinfer.masking.pool import MaskPool
    from splitinfer.model.engine import Engine
    from trust_models.policy import Policy

__all__ = ["add_parser"]

_DEFAULT_TOKENS = 256
_IDLE_PRIORITY = 10

_EPILOG = """examples:
  splitinfer masks prepare                               masks for 256 tokens of the model of policy masked
  splitinfer masks prepare --policy my-masked.toml --tokens 2000
  splitinfer masks show --json

Every token of an answer under `masked` uses up one mask. They are prepared beforehand with the model's matrices, in
idle time: the command gives way to other programs, can be stopped at any time and goes on where it was. A pool that was
copied, or put back from an older copy, is refused. The policy's masked.max_bytes bounds what it takes on the disk.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `masks` command."""
    parser = subparsers.add_parser(
        "masks",
        help="one-time masks of mode masked",
        description="Prepare and show the one-time masks of mode masked. Works offline.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="masks_command", required=True, metavar="COMMAND")
    preparing = add_command(commands, "prepare", "prepare masks until so many are left", _prepare)
    preparing.add_argument("--tokens", type=int, default=_DEFAULT_TOKENS, metavar="N", help="masks to have ready")
    showing = add_command(commands, "show", "print how many masks are prepared, used and left", _show)
    for command in (preparing, showing):
        command.add_argument("--policy", default="masked", metavar="NAME_OR_FILE", help="a policy of mode masked")


def _prepare(args: argparse.Namespace) -> int:
    if args.tokens < 1:
        raise UsageError("--tokens is a number of masks, 1 or more")
    policy, home, engine = _opened(args)
    from splitinfer.joint.offline import prepare_pool

    # Whoever may not lower its priority prepares at the one it has.
    with suppress(OSError):
        os.nice(_IDLE_PRIORITY)
    with progress_bar("masks", unit="mask") as report:
        pool, made = prepare_pool(home, engine, tokens=args.tokens, max_bytes=policy.masked.max_bytes, progress=report)
    return _print(args, {"made": made, **_facts(pool)})


def _show(args: argparse.Namespace) -> int:
    _, home, engine = _opened(args)
    from splitinfer.home.masks import open_masks

    return _print(args, _facts(open_masks(home, engine.identity)))


def _opened(args: argparse.Namespace) -> tuple[Policy, Home, Engine]:
    from splitinfer.session import load_engine
    from trust_models.modes import TrustMode
    from trust_models.policy import resolve

    policy, home = resolve(args.policy), Home.find(args.home)
    if policy.mode is not TrustMode.MASKED:
        raise UsageError(f'a policy of mode "{policy.mode}" uses no masks; give one of mode "masked"')
    return policy, home, load_engine(policy.model.source, home=home, expected=policy.model.weights_sha256)


def _facts(pool: MaskPool) -> dict[str, object]:
    return {
        "pool": pool.pool_id,
        "prepared": pool.prepared,
        "used": pool.used,
        "left": pool.left,
        "bytes": pool.prepared * pool.layout.product_bytes,
    }


def _print(args: argparse.Namespace, facts: dict[str, object]) -> int:
    if args.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}")
    return 0
