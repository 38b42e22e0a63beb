"""What the subcommands of `keys`, `policy` and `audit` have in common: a summary, `--json`, a handler."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["add_command"]


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """Add one subcommand that prints text or, with `--json`, one JSON object."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=handler)
    return parser
