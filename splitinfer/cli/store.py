"""`splitinfer store`: what the device keeps of caches of public texts; arguments to text, device side."""

from __future__ import annotations

import argparse
import datetime
import json

from splitinfer.cli.commands import add_command, add_group, print_facts
from splitinfer.home import Home
from splitinfer.home.cache_store import open_store
from splitinfer.store import CacheStore, Entry
from trust_models.schema import Store

__all__ = ["add_parser"]

_EPILOG = """examples:
  splitinfer store info
  splitinfer store list --json
  splitinfer store clear                                 the next run on any public text asks the cloud again

The store holds caches of public texts, received under `public-prefix`, each encrypted under a key of its own. Its key
is keys/store.key in the state folder: whoever has both can read which public texts were used. `store.enabled` in a
policy, or `run --no-store`, keeps nothing.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `store` command."""
    commands = add_group(
        subparsers,
        "store",
        summary="stored caches of public texts",
        description="Show and remove stored caches of public texts. Works offline.",
        epilog=_EPILOG,
    )
    add_command(commands, "list", "print one line a stored cache, the least recently used first", _list)
    add_command(commands, "info", "print the folder, the number of caches and their bytes", _info)
    add_command(commands, "clear", "remove every stored cache", _clear)


def _list(args: argparse.Namespace) -> int:
    entries = _store(args).entries()
    if args.json:
        print(json.dumps({"entries": [_fields(entry) for entry in entries]}))
        return 0
    for entry in entries:
        print(_line(entry))
    return 0


def _info(args: argparse.Namespace) -> int:
    entries = _store(args).entries()
    facts = {
        "folder": str(Home.find(args.home).path / "store"),
        "caches": len(entries),
        "unreadable": sum(entry.facts is None for entry in entries),
        "bytes": sum(entry.size_bytes for entry in entries),
    }
    return print_facts(args, facts)


def _clear(args: argparse.Namespace) -> int:
    removed = _store(args).clear()
    return print_facts(args, {"removed": len(removed), "bytes": sum(entry.size_bytes for entry in removed)})


def _store(args: argparse.Namespace) -> CacheStore:
    # The limit counts when something is stored, which no command here does.
    return open_store(Home.find(args.home), max_bytes=Store().max_bytes)


def _fields(entry: Entry) -> dict[str, object]:
    facts = None if entry.facts is None else entry.facts.model_dump(mode="json")
    return {"name": entry.name, "bytes": entry.size_bytes, "used_at": int(entry.used_at_seconds), "facts": facts}


def _line(entry: Entry) -> str:
    moment = datetime.datetime.fromtimestamp(int(entry.used_at_seconds), tz=datetime.UTC).isoformat()
    used = moment.replace("+00:00", "Z")
    head = f"{entry.name[:16]}  used {used}  {entry.size_bytes:>14,} bytes"
    if entry.facts is None:
        return f"{head}  does not open with this store's key"
    facts = entry.facts
    rows = f"{facts.verified_rows} rows verified"
    return f"{head}  {facts.tokens:>7} tokens  {rows}  model {facts.model.weights_sha256[:16]}"
