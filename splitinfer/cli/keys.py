"""`splitinfer keys`: this folder's keys, allowed devices, trusted clouds, replica certificates."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from splitinfer.attestation.keyset import CERTIFICATE_SECONDS, KeysetReply, certify, identity_sha256, replica_id_of
from splitinfer.carrier import read_keyset
from splitinfer.cli.commands import add_command, add_group, print_facts
from splitinfer.egress.gate import Gate, Intent, Outcome
from splitinfer.errors import SplitInferError, StateError, UsageError
from splitinfer.home import Home
from splitinfer.home.audit_log import open_log, receipt_keeper
from splitinfer.home.cloud_state import allow_device, generation
from splitinfer.home.folder import write_private
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.sealing.wire import parse_wire
from splitinfer.transport.http import HttpTransport
from trust_models.remote_url import check_url

__all__ = ["add_parser"]

_EPILOG = """examples:
  splitinfer keys show                                   this device's key, for the cloud's `keys allow`
  splitinfer keys trust default https://cloud.example:8471 --identity 4f1c...
  splitinfer keys trust default http://127.0.0.1:8471    shows the fingerprint and asks
  splitinfer --home /srv/cloud keys create-identity      once, on the machine that certifies replicas
  splitinfer --home /srv/cloud keys allow 91ab...        a device's key, from its `keys show`
  splitinfer keys replica                                on a replica without the identity key
  splitinfer keys certify REPLICA_KEY -o replica.cert    where the identity key is; valid for a day at most
"""
_KEY = re.compile(r"[0-9a-f]{64}")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `keys` command."""
    commands = add_group(
        subparsers,
        "keys",
        summary="keys, allowed devices, trusted clouds",
        description="Show keys, allow devices, trust clouds, certify replicas.",
        epilog=_EPILOG,
    )
    add_command(commands, "show", "print the public keys of this state folder", _show)
    add_command(commands, "create-identity", "make the identity key of a cloud", _create_identity)
    allow = add_command(commands, "allow", "answer requests of this device", _allow)
    allow.add_argument("key", metavar="KEY", help="the device key that its `keys show` prints")
    trust = add_command(commands, "trust", "pin a cloud's identity under a name", _trust)
    trust.add_argument("name", metavar="NAME", help="the name that policies use")
    trust.add_argument("url", metavar="URL")
    trust.add_argument("--identity", metavar="SHA256", help="the fingerprint its operator gave you")
    trust.add_argument("--tls-ca", metavar="FILE", type=Path, help="CA certificate of its TLS, if not public")
    add_command(commands, "replica", "print this replica's key, for `keys certify`", _replica)
    certified = add_command(commands, "certify", "sign a replica's key with the identity key", _certify)
    certified.add_argument("key", metavar="REPLICA_KEY")
    certified.add_argument("-o", "--output", metavar="FILE", type=Path, required=True)
    certified.add_argument("--hours", type=int, default=24, help="validity, 24 at most")


def _show(args: argparse.Namespace) -> int:
    home = Home.find(args.home)
    facts = {"device_key": _public(home, "device"), "checkpoint_key": _public(home, "checkpoint")}
    if home.has_key("identity"):
        facts["identity_sha256"] = identity_sha256(bytes.fromhex(_public(home, "identity")))
        facts["generation"] = str(generation(home))
    return print_facts(args, facts)


def _create_identity(args: argparse.Namespace) -> int:
    home = Home.find(args.home)
    if home.has_key("identity"):
        raise StateError("there is an identity key already; `keys show` prints its fingerprint")
    return print_facts(args, {"identity_sha256": identity_sha256(bytes.fromhex(_public(home, "identity")))})


def _allow(args: argparse.Namespace) -> int:
    allow_device(Home.find(args.home), args.key)
    return print_facts(args, {"allowed": args.key})


def _trust(args: argparse.Namespace) -> int:
    home = Home.find(args.home)
    try:
        check_url(args.url)
    except ValueError as error:
        raise UsageError(str(error)) from None
    pin = args.identity
    if pin is None:
        pin = _fingerprint(home, args.url, args.tls_ca)
        print(f"the cloud at {args.url} says that its identity is\n  {pin}", file=sys.stderr)
        if not sys.stdin.isatty():
            raise UsageError("compare the fingerprint with its operator's and run again with --identity")
        print("Is that what its operator told you? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("not trusted; nothing was saved")
    if not _KEY.fullmatch(pin):
        raise UsageError("--identity takes the 64 lower-case hexadecimal digits of the fingerprint")
    save_remote(home, args.name, Remote(args.url, pin, args.tls_ca.resolve() if args.tls_ca else None))
    return print_facts(args, {"name": args.name, "url": args.url, "identity_sha256": pin})


def _fingerprint(home: Home, url: str, tls_ca: Path | None) -> str:
    """Ask the cloud who it says it is, through the gate; nothing is believed yet."""
    log = open_log(home)
    try:
        nobody = Intent(
            mode="trust",
            policy_sha256="",
            recipient_identity_sha256="",
            protection="none",
            codec="",
            tokens_bucket=0,
            bytes_up_bound=0,
            fields_in_clear=(),
        )
        permit = Gate(log, keep_receipt=receipt_keeper(home)).open(nobody)
        try:
            data = read_keyset(HttpTransport(url, tls_ca=tls_ca), permit)
            identity = parse_wire(KeysetReply, data, what="keyset").keyset.certificate.body.identity
        except SplitInferError as error:
            permit.close(Outcome("failed", code=error.code))
            raise
        permit.close(Outcome("completed"))
    finally:
        log.close()
    return identity_sha256(bytes.fromhex(identity))


def _replica(args: argparse.Namespace) -> int:
    return print_facts(args, {"replica_key": _public(Home.find(args.home), "replica")})


def _certify(args: argparse.Namespace) -> int:
    home = Home.find(args.home)
    if not home.has_key("identity"):
        raise StateError("the identity key is not in this state folder; run this where it is")
    if not _KEY.fullmatch(args.key):
        raise UsageError("a replica key is 64 lower-case hexadecimal digits; `keys replica` prints it")
    if not 1 <= args.hours <= CERTIFICATE_SECONDS // 3600:
        raise UsageError("--hours is 1 to 24")
    public = bytes.fromhex(args.key)
    certificate = certify(
        home.key("identity"),
        replica_id=replica_id_of(public),
        replica_public_key=public,
        generation=generation(home),
        now=int(time.time()),
        seconds=args.hours * 3600,
    )
    write_private(args.output, certificate.to_bytes().decode())
    return print_facts(args, {"certificate": str(args.output), "replica_id": certificate.body.replica_id})


def _public(home: Home, name: str) -> str:
    return home.key(name).public_key().public_bytes_raw().hex()
