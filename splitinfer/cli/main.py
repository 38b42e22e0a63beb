"""`splitinfer`: parses, dispatches, and turns every error into one sentence with a code and an exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from splitinfer import __version__
from splitinfer.cli import audit, demo, evaluate, keys, masks, model, policy, run, serve, store
from splitinfer.cli.terminal import printable
from splitinfer.errors import SplitInferError

__all__ = ["build_parser", "main"]

_EPILOG = """examples:
  splitinfer demo                                        every trust mode on the embedded model
  splitinfer policy explain sealed-decode                what leaves, and who can read it
  splitinfer run --policy local --private note.txt --private-text "Who called?"
  splitinfer --home ./cloud serve --pair ~/.splitinfer   a cloud on this machine, paired with this device
  splitinfer audit verify                                what left this device, unchanged

exit codes: 0 done, 2 usage or state folder, 3 policy or egress, 4 verification, 5 transport, 6 audit log,
7 model or prompt, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="splitinfer",
        description="Run a language model across a trusted device and a cloud, under a written policy.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"splitinfer {__version__}")
    parser.add_argument("--home", metavar="PATH", help="state folder (default: $SPLITINFER_HOME or ~/.splitinfer)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, run, serve, keys, policy, audit, store, masks, model, evaluate):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no traceback and no private text on any path."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.handler(args))
    except SplitInferError as error:
        return _failed(args, code=error.code, sentence=str(error) or error.code, exit_code=error.exit_code)
    except KeyboardInterrupt:
        return _failed(args, code="interrupted", sentence="stopped; what had moved is in the audit log", exit_code=130)
    except BrokenPipeError:
        # Whoever read our output went away; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001
        # A foreign exception's text may quote a prompt: only its type is shown.
        return _failed(
            args, code="internal", sentence=f"unexpected {type(error).__name__}; please report it", exit_code=1
        )


def _failed(args: argparse.Namespace, *, code: str, sentence: str, exit_code: int) -> int:
    is_incomplete = bool(getattr(args, "has_begun", False))
    if getattr(args, "json", False):
        print(json.dumps({"error": code, "message": sentence, "incomplete": is_incomplete}))
    elif is_incomplete:
        print("\nincomplete: the answer above ends early", file=sys.stderr)
    print(f"error[{code}]: {printable(sentence)}", file=sys.stderr)
    return exit_code
