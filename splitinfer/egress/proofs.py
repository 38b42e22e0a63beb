"""Proofs that can be handed on: that a record was logged, that a log extends an older head; either side.

A record's proof is a C2SP tlog-proof: its index, its inclusion path and the signed checkpoint. The record's canonical
JSON travels as the extra data, so that a reader needs nothing but the text and the log's public key. An extension's
proof has the older size, the consistency path and the checkpoint; its reader also has the older checkpoint.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from splitinfer.egress.checkpoint import Checkpoint, open_checkpoint, read_unverified, unbase64
from splitinfer.egress.files import FileLayer
from splitinfer.egress.records import Record, parse_record
from splitinfer.egress.verification import stored_log
from splitinfer.errors import AuditLogError, BrokenLogError
from splitinfer.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

__all__ = ["ProvenRecord", "check_extension", "check_proof", "is_extension_proof", "prove", "prove_extension"]

_MAGIC = "c2sp.org/tlog-proof@v1"
_EXTENSION_MAGIC = "splitinfer/tlog-consistency-proof@v1"


@dataclass(frozen=True, slots=True)
class ProvenRecord:
    """A record that was shown to be in the log of a checkpoint."""

    index: int
    record: Record
    checkpoint: Checkpoint


def prove(directory: Path, index: int, *, files: FileLayer | None = None) -> str:
    """Return the proof that record `index` is in the log, up to its last checkpoint.

    Raises AuditLogError where no checkpoint covers the record, BrokenLogError where the log does not fit it.
    """
    head, payloads = _covered(directory, index + 1, files=files)
    leaves = [leaf_hash(payload) for payload in payloads]
    path = [base64.b64encode(node).decode() for node in inclusion_proof(leaves, index, head.size)]
    extra = base64.b64encode(payloads[index]).decode()
    return "\n".join([_MAGIC, f"extra {extra}", f"index {index}", *path, "", head.note])


def prove_extension(directory: Path, older_size: int, *, files: FileLayer | None = None) -> str:
    """Return the proof that the log, up to its last checkpoint, extends its first `older_size` records.

    Raises AuditLogError where no checkpoint covers so many, BrokenLogError where the log does not fit it.
    """
    head, payloads = _covered(directory, older_size, files=files)
    proof = consistency_proof([leaf_hash(payload) for payload in payloads], older_size, head.size)
    path = [base64.b64encode(node).decode() for node in proof]
    return "\n".join([_EXTENSION_MAGIC, f"older {older_size}", *path, "", head.note])


def _covered(directory: Path, records: int, *, files: FileLayer | None) -> tuple[Checkpoint, list[bytes]]:
    """Return the last checkpoint and the payloads it covers, at least `records` of them."""
    with stored_log(directory, files=files) as stored:
        head = None if stored.note is None else read_unverified(stored.note)
        if head is None or not 1 <= records <= head.size:
            covered = 0 if head is None else head.size
            raise AuditLogError(f"the last checkpoint covers {covered} records, not {records}; make a new one")
        payloads = [frame.payload for frame, _ in zip(stored.frames, range(head.size), strict=False)]
    if len(payloads) != head.size or root_of([leaf_hash(payload) for payload in payloads]) != head.root:
        raise BrokenLogError("the audit log does not fit its last checkpoint")
    return head, payloads


def check_proof(text: str, public_key: Ed25519PublicKey, *, origin: str | None = None) -> ProvenRecord:
    """Check a proof by `prove` and return the record; raises BrokenLogError where it does not hold."""
    lines, note = _parts(text, _MAGIC, fields=2)
    payload = unbase64(_field(lines[1], "extra"), "record in the proof")
    index = _number(lines[2], "index")
    checkpoint = open_checkpoint(note, public_key, origin=origin)
    verify_inclusion(
        leaf_index=index,
        tree_size=checkpoint.size,
        leaf_hash=leaf_hash(payload),
        proof=[unbase64(line, "proof hash") for line in lines[3:]],
        root=checkpoint.root,
    )
    return ProvenRecord(index=index, record=parse_record(payload), checkpoint=checkpoint)


def check_extension(text: str, older_note: str, public_key: Ed25519PublicKey) -> tuple[Checkpoint, Checkpoint]:
    """Check a proof by `prove_extension` against an older checkpoint; return the older and the newer one.

    Raises BrokenLogError where the newer log does not extend the older one, or is another log.
    """
    lines, note = _parts(text, _EXTENSION_MAGIC, fields=1)
    older = open_checkpoint(older_note, public_key)
    newer = open_checkpoint(note, public_key, origin=older.origin)
    if _number(lines[1], "older") != older.size:
        raise BrokenLogError(f"the proof is from another size than the older checkpoint's {older.size} records")
    verify_consistency(
        size1=older.size,
        size2=newer.size,
        root1=older.root,
        root2=newer.root,
        proof=[unbase64(line, "proof hash") for line in lines[2:]],
    )
    return older, newer


def is_extension_proof(text: str) -> bool:
    """Tell whether the text claims to be an extension's proof rather than a record's."""
    return text.startswith(f"{_EXTENSION_MAGIC}\n")


def _parts(text: str, magic: str, *, fields: int) -> tuple[list[str], str]:
    head, gap, note = text.partition("\n\n")
    lines = head.split("\n")
    if not gap or len(lines) < 1 + fields or lines[0] != magic:
        raise BrokenLogError(f"a proof starts with {magic} and its {fields} fields")
    return lines, note


def _number(line: str, name: str) -> int:
    number = _field(line, name)
    if not (number.isascii() and number.isdigit()) or len(number) > 18 or str(int(number)) != number:
        raise BrokenLogError(f"the proof's {name} is malformed")
    return int(number)


def _field(line: str, name: str) -> str:
    if not line.startswith(f"{name} "):
        raise BrokenLogError(f"the proof has no {name} line where one belongs")
    return line.removeprefix(f"{name} ")
