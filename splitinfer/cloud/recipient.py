"""What intake asks of this replica, and what the replica remembers: clock, keysets, senders, nonces, transfers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from splitinfer.attestation.keyset import Replica, ReplicaKeys
from splitinfer.attestation.sender import sender_id
from splitinfer.receive.recipient import NonceTable, TransferTable
from splitinfer.sealing.heads import PublicManifest

__all__ = ["Recipient"]


class Recipient:
    """Implements `receive.intake.RecipientState`; safe for several threads."""

    def __init__(
        self,
        replica: Replica,
        allowed: Callable[[], Sequence[bytes]],
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
    ) -> None:
        self._replica, self._allowed, self._clock = replica, allowed, clock
        self._nonces = NonceTable(clock=clock, randomness=randomness)
        self._transfers = TransferTable(clock=clock)
        self._lock = threading.Lock()

    def now(self) -> int:
        """Return Unix seconds."""
        return int(self._clock())

    def keyset(self, digest_hex: str) -> ReplicaKeys | None:
        """Return the live keyset with this digest."""
        with self._lock:
            return self._replica.find(digest_hex)

    def drop_expired(self) -> None:
        """Forget keys that have expired."""
        with self._lock:
            self._replica.drop_expired()

    def sender(self, found: str, keyset_digest: bytes) -> bytes | None:
        """Return the public key of the allowed device with this sender id."""
        return next((key for key in self._allowed() if sender_id(keyset_digest, key) == found), None)

    def use_nonce(self, nonce: str) -> None:
        """Spend a nonce; raises ReplayError."""
        self._nonces.use(nonce)

    def begin(self, sender: bytes, manifest: PublicManifest) -> None:
        """Mark the transfer as begun; raises ReplayError where it was seen before."""
        self._transfers.begin(sender, manifest.transfer_id, expires_at=manifest.expires_at)

    def keyset_reply(self) -> bytes:
        """Return the signed keyset with a fresh nonce."""
        with self._lock:
            return self._replica.reply(self._nonces.issue())
