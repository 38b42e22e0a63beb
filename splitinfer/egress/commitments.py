"""Salted commitments: a value to a digest that means nothing without its salt; the salts stay on the device.

A commitment is SHA-256(salt || value) with a fresh 32-byte salt. The log holds the commitment and the salt's id; the
salt lies in a side store. Once the salt is erased, nobody can link the value to the log, and all proofs still hold.
"""

from __future__ import annotations

import hashlib
import hmac
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitinfer.egress.files import FileLayer, read_small, sync_directory, write_small
from splitinfer.errors import AuditLogError, BrokenLogError

__all__ = ["SALT_BYTES", "SaltStore"]

SALT_BYTES = 32
_ID_CHARS = 32


@dataclass(frozen=True, slots=True)
class SaltStore:
    """The salts of one log, a file each; an id is the first 16 bytes of the salt's SHA-256, as hex.

    Calls that write are made under the log's lock. Erasing removes the file; whether the disk keeps old blocks is the
    disk's matter, so the device's disk is expected to be encrypted.
    """

    directory: Path
    files: FileLayer

    def commit(self, value: bytes, *, randomness: Callable[[int], bytes]) -> tuple[str, str]:
        """Return (commitment, salt id) as hex; the salt is durable on return."""
        salt = randomness(SALT_BYTES)
        salt_id = _id_of(salt)
        write_small(self.files, self.directory / salt_id, salt)
        return _commitment(salt, value), salt_id

    def check(self, value: bytes, *, commitment: str, salt_id: str) -> None:
        """Check that a commitment is to this value; raises AuditLogError where it is not or its salt was erased."""
        salt = read_small(self.files, self._path(salt_id), limit_bytes=SALT_BYTES + 1)
        if salt is None:
            raise AuditLogError("the salt of this commitment was erased; it can no longer be linked to a value")
        self._check_salt(salt_id, salt)
        if not hmac.compare_digest(_commitment(salt, value), commitment):
            raise AuditLogError("the commitment is to another value")

    def erase(self, salt_id: str) -> None:
        """Remove a salt for good; one that is gone already is no error."""
        self.files.unlink(self._path(salt_id))
        sync_directory(self.files, self.directory)

    def verify(self) -> int:
        """Check every salt against its id and return how many there are; raises BrokenLogError."""
        salt_ids = [name for name in self.files.names(self.directory) if _is_id(name)]
        for salt_id in salt_ids:
            salt = read_small(self.files, self._path(salt_id), limit_bytes=SALT_BYTES + 1)
            # None: another process erased it since the names were read.
            if salt is not None:
                self._check_salt(salt_id, salt)
        return len(salt_ids)

    def _path(self, salt_id: str) -> Path:
        if not _is_id(salt_id):
            raise AuditLogError(f"a salt id is {_ID_CHARS} lower-case hex digits")
        return self.directory / salt_id

    @staticmethod
    def _check_salt(salt_id: str, salt: bytes) -> None:
        if _id_of(salt) != salt_id:
            raise BrokenLogError(f"the salt {salt_id} is damaged")


def _commitment(salt: bytes, value: bytes) -> str:
    return hashlib.sha256(salt + value).hexdigest()


def _id_of(salt: bytes) -> str:
    return hashlib.sha256(salt).hexdigest()[:_ID_CHARS]


def _is_id(name: str) -> bool:
    return len(name) == _ID_CHARS and set(name) <= set(string.hexdigits.lower())
