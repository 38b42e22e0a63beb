"""What the log knows at one size: frontier, length in bytes, open intents; records in, saved state out; device side.

The saved state makes opening cost the same for a log of any size. It is a cache of the log: `verify` computes it again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any

import rfc8785

from splitinfer.egress.records import Frame, parse_record
from splitinfer.errors import BrokenLogError
from splitinfer.merkle import Frontier, leaf_hash

__all__ = ["LogState", "OpenIntent"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """An intent without an outcome: the owner file of its process, and how many bytes may have left under it."""

    owner: str
    bytes_up_bound: int


@dataclass(slots=True)
class LogState:
    """The log after `frontier.size` records, which take `log_bytes` bytes of the file.

    `checkpoint_size` is the size of the last signed checkpoint, -1 before the first one.
    """

    origin: str
    log_bytes: int = 0
    frontier: Frontier = field(default_factory=Frontier)
    open_intents: dict[str, OpenIntent] = field(default_factory=dict)
    checkpoint_size: int = -1

    @property
    def size(self) -> int:
        """Return the number of records."""
        return self.frontier.size

    def absorb(self, frame: Frame) -> dict[str, Any]:
        """Take in the next record and return it; raises BrokenLogError where it cannot follow the earlier ones."""
        record = parse_record(frame.payload)
        if record.get("seq") != self.size:
            raise BrokenLogError(f"the audit log's record {self.size} carries another number")
        if record.get("type") == "intent":
            self._open(record)
        elif record.get("type") == "outcome" and self.open_intents.pop(str(record.get("intent")), None) is None:
            raise BrokenLogError(f"the audit log's record {self.size} closes an intent that is not open")
        self.frontier.append(leaf_hash(frame.payload))
        self.log_bytes = frame.end
        return record

    def _open(self, record: dict[str, Any]) -> None:
        intent, owner, bound = record.get("intent"), record.get("owner"), record.get("bytes_up_bound")
        if not isinstance(intent, str) or not isinstance(owner, str) or not isinstance(bound, int):
            raise BrokenLogError(f"the audit log's record {self.size} is an intent without id, owner or bound")
        self.open_intents[intent] = OpenIntent(owner=owner, bytes_up_bound=bound)

    def to_bytes(self) -> bytes:
        """Return the state as one line of canonical JSON, and its SHA-256 as a second line."""
        line = rfc8785.dumps(
            {
                "version": _VERSION,
                "origin": self.origin,
                "log_bytes": self.log_bytes,
                "frontier": self.frontier.to_bytes().hex(),
                "open": {key: [one.owner, one.bytes_up_bound] for key, one in self.open_intents.items()},
                "checkpoint_size": self.checkpoint_size,
            }
        )
        return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> LogState:
        """Read what `to_bytes` wrote; raises BrokenLogError for any other bytes."""
        line = data.partition(b"\n")[0]
        expected = line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"
        if not hmac.compare_digest(data, expected):
            raise BrokenLogError("the audit log's saved state is damaged; remove it and the log is read from its start")
        try:
            return cls._from_fields(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BrokenLogError("the audit log's saved state is of another version") from None

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> LogState:
        if fields["version"] != _VERSION:
            raise BrokenLogError("the audit log's saved state is of another version")
        return cls(
            origin=str(fields["origin"]),
            log_bytes=int(fields["log_bytes"]),
            frontier=Frontier.from_bytes(bytes.fromhex(fields["frontier"])),
            open_intents={key: OpenIntent(owner, int(bound)) for key, (owner, bound) in fields["open"].items()},
            checkpoint_size=int(fields["checkpoint_size"]),
        )
