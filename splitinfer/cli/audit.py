"""`splitinfer audit`: read, verify, sign and prove the audit log offline; arguments to text, device side."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from splitinfer.cli.commands import add_command
from splitinfer.egress.log import AuditLog
from splitinfer.egress.proofs import check_extension, check_proof, is_extension_proof, prove, prove_extension
from splitinfer.egress.receipts import check_kept_receipts
from splitinfer.egress.verification import read_records, stored_log, verify
from splitinfer.errors import StateError, UsageError

__all__ = ["add_parser", "describe"]

_EPILOG = """examples:
  splitinfer audit show --since 100
  splitinfer audit checkpoint -o 2026-11.checkpoint      keep this file somewhere else
  splitinfer audit verify --against 2026-11.checkpoint   the log still extends it
  splitinfer audit prove 17 -o 17.tlog-proof
  splitinfer audit check-proof 17.tlog-proof
  splitinfer audit prove --extends 120 -o new.proof      for an auditor who keeps a checkpoint of 120 records
  splitinfer audit check-proof new.proof --against 2026-11.checkpoint

`verify` proves what the gate released, in order, unchanged since the last checkpoint that somebody keeps elsewhere.
A log of which nobody kept a checkpoint proves nothing against its own device.
"""
_PRIVATE_BITS = 0o077


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `audit` command."""
    parser = subparsers.add_parser(
        "audit",
        help="show, verify and prove what left the device",
        description="Show, verify and prove what left the device. Works offline, on the log directory alone.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="audit_command", required=True, metavar="COMMAND")
    show = _command(commands, "show", "print one line a record", _show)
    show.add_argument("--since", type=int, default=0, metavar="N", help="start at record N (default 0)")
    check = _command(commands, "verify", "check every stored byte, the tree and the last checkpoint", _verify)
    check.add_argument("--against", metavar="FILE", help="check too that the log extends this older checkpoint")
    sign = _command(commands, "checkpoint", "sign the log's present head", _checkpoint)
    sign.add_argument("-o", "--output", metavar="FILE", help="write the checkpoint there instead of to stdout")
    proof = _command(
        commands, "prove", "make a proof that a record is in the log, or that the log extends a head", _prove
    )
    what = proof.add_mutually_exclusive_group(required=True)
    what.add_argument("index", nargs="?", type=int, metavar="INDEX", help="the record's number, as `show` prints it")
    what.add_argument("--extends", type=int, metavar="SIZE", help="prove that the log extends its first SIZE records")
    proof.add_argument("-o", "--output", metavar="FILE", help="write the proof there instead of to stdout")
    checked = _command(commands, "check-proof", "check such a proof and print its record", _check_proof)
    checked.add_argument("file", metavar="FILE", help="the proof")
    checked.add_argument("--against", metavar="FILE", help="the older checkpoint, for a proof by `prove --extends`")
    erased = _command(commands, "erase", "erase a salt, so that its commitment can no longer be linked", _erase)
    erased.add_argument("salt", metavar="SALT", help="a record's checkpoint_salt or receipt_salt")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = add_command(commands, name, summary, handler)
    parser.add_argument("--log", metavar="DIR", help="the log directory (default: audit in the state folder)")
    return parser


def _show(args: argparse.Namespace) -> int:
    if args.since < 0:
        raise UsageError("--since is a record's number, 0 or more")
    records = read_records(_log_directory(args), args.since)
    if args.json:
        print(json.dumps({"records": list(records)}))
        return 0
    for record in records:
        print(describe(record))
    return 0


def describe(record: Mapping[str, object]) -> str:
    """Return a record in one line: number, time, type, and whichever of the usual fields it has."""
    milliseconds = record["time"]
    seconds = milliseconds / 1000 if isinstance(milliseconds, int) else 0
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).isoformat(timespec="milliseconds")
    parts = [f"{record['seq']:>6}", moment.replace("+00:00", "Z"), f"{record['type']!s:<10}"]
    named = (
        "mode",
        "protection",
        "recipient",
        "intent",
        "status",
        "code",
        "codes",
        "subject",
        "epsilon",
        "epsilon_spent",
    )
    sizes = [key for key in record if key.startswith("bytes")]
    parts += [f"{key}={_short(record[key])}" for key in (*named, *sizes) if record.get(key) is not None]
    return " ".join(parts)


def _short(value: object) -> str:
    """Return a value in one word, digests cut to what tells them apart, control characters escaped."""
    if isinstance(value, str):
        text = value if len(value) <= 24 else f"{value[:16]}..."
        return text if text.isprintable() else ascii(text)
    if isinstance(value, dict):
        return ",".join(f"{_short(key)}:{_short(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ",".join(_short(inner) for inner in value)
    return str(value)


def _verify(args: argparse.Namespace) -> int:
    against = None if args.against is None else _read_text(args.against, "checkpoint")
    report = verify(_log_directory(args), _public_key(args), against=against)
    receipts = check_kept_receipts(_log_directory(args), _home(args) / "receipts", read_records(_log_directory(args)))
    fields = {
        "verified": True,
        "origin": report.origin,
        "size": report.size,
        "root": report.root.hex(),
        "checkpoint_size": report.checkpoint_size,
        "against_size": report.against_size,
        "open_intents": report.open_intents,
        "cuts": report.cuts,
        "salts": report.salts,
        "receipts": receipts,
    }
    if args.json:
        print(json.dumps(fields))
        return 0
    print(f"{report.size} records verified, root {report.root.hex()}")
    signed = "no checkpoint yet" if report.checkpoint_size is None else f"{report.checkpoint_size} records"
    print(f"last checkpoint: {signed}; open intents: {report.open_intents}; cuts after a crash: {report.cuts}")
    print(f"receipts kept and equal to what was logged: {receipts}")
    if report.against_size is not None:
        print(f"extends the given checkpoint of {report.against_size} records")
    return 0


def _checkpoint(args: argparse.Namespace) -> int:
    with _opened(args) as log:
        signed = log.checkpoint()
    fields = {"checkpoint": signed.note, "size": signed.size, "root": signed.root.hex()}
    _write_or_print(args, signed.note, fields)
    return 0


def _prove(args: argparse.Namespace) -> int:
    directory = _log_directory(args)
    text = prove(directory, args.index) if args.extends is None else prove_extension(directory, args.extends)
    _write_or_print(args, text, {"proof": text, "index": args.index, "extends": args.extends})
    return 0


def _check_proof(args: argparse.Namespace) -> int:
    text = _read_text(args.file, "proof")
    if is_extension_proof(text):
        return _check_extension(args, text)
    proven = check_proof(text, _public_key(args))
    head = proven.checkpoint
    if args.json:
        fields = {"verified": True, "index": proven.index, "origin": head.origin, "size": head.size}
        print(json.dumps({**fields, "record": proven.record}))
        return 0
    print(f"record {proven.index} is in the log {head.origin} of {head.size} records:")
    print(describe(proven.record))
    return 0


def _check_extension(args: argparse.Namespace, text: str) -> int:
    if args.against is None:
        raise UsageError("this proof is of an extension; give the older checkpoint with --against FILE")
    older, newer = check_extension(text, _read_text(args.against, "checkpoint"), _public_key(args))
    if args.json:
        fields = {"verified": True, "origin": newer.origin, "size": newer.size, "older_size": older.size}
        print(json.dumps(fields))
    else:
        print(f"the log {newer.origin} of {newer.size} records extends the one of {older.size}")
    return 0


def _erase(args: argparse.Namespace) -> int:
    with _opened(args) as log:
        seq = log.erase(args.salt)
    if args.json:
        print(json.dumps({"erased": args.salt, "seq": seq}))
    else:
        print(f"erased; record {seq} says so")
    return 0


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[AuditLog]:
    directory, key = _log_directory(args), _private_key(args)
    with stored_log(directory) as stored:
        origin = stored.origin()
    log = AuditLog.open(directory, origin=origin, checkpoint_key=key, clock=time.time, randomness=secrets.token_bytes)
    try:
        yield log
    finally:
        log.close()


def _write_or_print(args: argparse.Namespace, text: str, fields: Mapping[str, object]) -> None:
    if args.output is not None:
        try:
            Path(args.output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{args.output} cannot be written: {error.strerror}") from error
    if args.json:
        print(json.dumps(fields))
    elif args.output is None:
        print(text, end="")


def _home(args: argparse.Namespace) -> Path:
    return Path(args.home or os.environ.get("SPLITINFER_HOME") or Path.home() / ".splitinfer")


def _log_directory(args: argparse.Namespace) -> Path:
    return Path(args.log) if args.log is not None else _home(args) / "audit"


def _public_key(args: argparse.Namespace) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(_key_bytes(_home(args) / "keys" / "checkpoint.pub"))


def _private_key(args: argparse.Namespace) -> Ed25519PrivateKey:
    path = _home(args) / "keys" / "checkpoint.key"
    data = _key_bytes(path)
    if path.stat().st_mode & _PRIVATE_BITS:
        raise StateError(f"{path} can be read by others; set its mode to 0600")
    return Ed25519PrivateKey.from_private_bytes(data)


def _key_bytes(path: Path) -> bytes:
    try:
        data = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        data = b""
    if len(data) != 32:
        raise StateError(f"{path} must be one line with the 64 hex digits of an Ed25519 key")
    return data


def _read_text(path: str, name: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the {name} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"the {name} {path} is not text") from None
