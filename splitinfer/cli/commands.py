"""What commands with subcommands have in common: a summary, examples, `--json`, a handler, facts as text or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

__all__ = ["add_command", "add_group", "print_facts"]

# The class takes parameters for type checkers only.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_group(subparsers: Commands, name: str, *, summary: str, description: str, epilog: str) -> Commands:
    """Add a command that has subcommands, one of which must be given; return where they are added."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND")


def add_command(
    commands: Commands,
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """Add one subcommand that prints text or, with `--json`, one JSON object."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=handler)
    return parser


def print_facts(args: argparse.Namespace, facts: Mapping[str, object]) -> int:
    """Print named facts as JSON or one a line; return the exit code 0."""
    if args.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0
