"""Proofs that can be handed on: one record of a log to a text that proves it was logged, and back; either side.

The text is a C2SP tlog-proof: the record's index, its inclusion path and the signed checkpoint. The record's canonical
JSON travels as the extra data, so that a reader needs nothing but the text and the log's public key.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from splitinfer.egress.checkpoint import Checkpoint, open_checkpoint, read_unverified, unbase64
from splitinfer.egress.files import FileLayer
from splitinfer.egress.records import Record, decode
from splitinfer.egress.verification import stored_log
from splitinfer.errors import AuditLogError, BrokenLogError
from splitinfer.merkle import inclusion_proof, leaf_hash, root_of, verify_inclusion

__all__ = ["ProvenRecord", "check_proof", "prove"]

_MAGIC = "c2sp.org/tlog-proof@v1"


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
    with stored_log(directory, files=files) as stored:
        head = None if stored.note is None else read_unverified(stored.note)
        if head is None or not 0 <= index < head.size:
            covered = 0 if head is None else head.size
            raise AuditLogError(f"the last checkpoint covers {covered} records, not record {index}; make a new one")
        payloads = [frame.payload for frame, _ in zip(stored.frames, range(head.size), strict=False)]
    leaves = [leaf_hash(payload) for payload in payloads]
    if len(leaves) != head.size or root_of(leaves) != head.root:
        raise BrokenLogError("the audit log does not fit its last checkpoint")
    path = [base64.b64encode(node).decode() for node in inclusion_proof(leaves, index, head.size)]
    extra = base64.b64encode(payloads[index]).decode()
    return "\n".join([_MAGIC, f"extra {extra}", f"index {index}", *path, "", head.note])


def check_proof(text: str, public_key: Ed25519PublicKey, *, origin: str | None = None) -> ProvenRecord:
    """Check a proof by `prove` and return the record; raises BrokenLogError where it does not hold."""
    head, gap, note = text.partition("\n\n")
    lines = head.split("\n")
    if not gap or len(lines) < 3 or lines[0] != _MAGIC:
        raise BrokenLogError(f"a proof starts with {_MAGIC}, the record and its index")
    payload = unbase64(_field(lines[1], "extra"), "record in the proof")
    index = _field(lines[2], "index")
    if not (index.isascii() and index.isdigit()) or len(index) > 18 or str(int(index)) != index:
        raise BrokenLogError("the proof's index is malformed")
    checkpoint = open_checkpoint(note, public_key, origin=origin)
    verify_inclusion(
        leaf_index=int(index),
        tree_size=checkpoint.size,
        leaf_hash=leaf_hash(payload),
        proof=[unbase64(line, "proof hash") for line in lines[3:]],
        root=checkpoint.root,
    )
    return ProvenRecord(index=int(index), record=decode(payload), checkpoint=checkpoint)


def _field(line: str, name: str) -> str:
    if not line.startswith(f"{name} "):
        raise BrokenLogError(f"the proof has no {name} line where one belongs")
    return line.removeprefix(f"{name} ")
