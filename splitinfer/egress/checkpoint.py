"""Checkpoints: a log's size and root as a signed note that can be kept elsewhere; either side, no IO.

The body is a C2SP tlog-checkpoint (origin, decimal size, base64 root, one a line), the signature a C2SP signed-note
line of Ed25519, with the origin as key name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from splitinfer.errors import AuditLogError, BrokenLogError
from splitinfer.merkle import HASH_BYTES

__all__ = [
    "Checkpoint",
    "check_origin",
    "open_checkpoint",
    "open_note",
    "read_unverified",
    "sign_checkpoint",
    "unbase64",
]

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_DASH = "\N{EM DASH}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's head: `note` is the signed text, the rest is what it says."""

    note: str
    origin: str
    size: int
    root: bytes


def check_origin(origin: str) -> None:
    """Check that a name can be an origin and key name; raises AuditLogError (C2SP signed-note, Format)."""
    if not origin or "+" in origin or not origin.isprintable() or any(char.isspace() for char in origin):
        raise AuditLogError("a log's origin is a name of visible characters without spaces and without '+'")


def sign_checkpoint(key: Ed25519PrivateKey, *, origin: str, size: int, root: bytes) -> Checkpoint:
    """Sign a log's head; the caller has made the log durable up to `size` before."""
    check_origin(origin)
    body = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    signature = base64.b64encode(_key_id(origin, key.public_key()) + key.sign(body.encode())).decode()
    return Checkpoint(note=f"{body}\n{_DASH} {origin} {signature}\n", origin=origin, size=size, root=root)


def open_checkpoint(note: str, public_key: Ed25519PublicKey, *, origin: str | None = None) -> Checkpoint:
    """Verify a signed checkpoint and return it; raises BrokenLogError where it is malformed or not signed by the key.

    With `origin` a checkpoint of any other log is refused, whoever signed it.
    """
    checkpoint = read_unverified(note)
    open_note(note, public_key, name=checkpoint.origin)
    if origin is not None and checkpoint.origin != origin:
        raise BrokenLogError("the checkpoint is of a log with another origin")
    return checkpoint


def read_unverified(note: str) -> Checkpoint:
    """Read a checkpoint's body without checking who signed it; raises BrokenLogError where it is malformed."""
    lines = note.partition("\n\n")[0].split("\n")
    if len(lines) != 3 or not lines[0]:
        raise BrokenLogError("a checkpoint has three lines: origin, size, root")
    size, root = lines[1], unbase64(lines[2], "checkpoint root")
    if not (size.isascii() and size.isdigit()) or len(size) > 18 or str(int(size)) != size or len(root) != HASH_BYTES:
        raise BrokenLogError("the checkpoint's size or root is malformed")
    return Checkpoint(note=note, origin=lines[0], size=int(size), root=root)


def open_note(note: str, public_key: Ed25519PublicKey, *, name: str) -> str:
    """Return the body of a signed note once the key's signature holds; other signers' lines are passed over.

    Raises BrokenLogError where there is no valid signature line of this key (C2SP signed-note, Signatures).
    """
    body, gap, tail = note.rpartition("\n\n")
    prefix = f"{_DASH} {name} "
    own = [line.removeprefix(prefix) for line in tail.split("\n")[:-1] if line.startswith(prefix)]
    signatures = [unbase64(text, "checkpoint signature") for text in own]
    key_id = _key_id(name, public_key)
    matching = [one.removeprefix(key_id) for one in signatures if one.startswith(key_id)]
    if not gap or not tail.endswith("\n") or len(matching) != 1:
        raise BrokenLogError("the checkpoint is not signed by this log's key")
    try:
        public_key.verify(matching[0], f"{body}\n".encode())
    except InvalidSignature:
        raise BrokenLogError("the checkpoint's signature does not verify") from None
    return f"{body}\n"


def _key_id(name: str, public_key: Ed25519PublicKey) -> bytes:
    encoded = _ED25519 + public_key.public_bytes_raw()
    return hashlib.sha256(name.encode() + b"\n" + encoded).digest()[:_KEY_ID_BYTES]


def unbase64(text: str, name: str) -> bytes:
    """Decode base64 in its one canonical form; raises BrokenLogError for any other text."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    # Unused trailing bits would let two texts stand for one value.
    if not data or base64.b64encode(data).decode() != text:
        raise BrokenLogError(f"the {name} is not canonical base64")
    return data
