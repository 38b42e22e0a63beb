"""The numbered checks that every received stream passes, in order; any failure wipes what was received.

The numbers stand in `docs/format.md` and in the refusing vectors under `tests/vectors/receive`; a test demands at
least one vector for every entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitinfer import errors

__all__ = ["CHECKS", "Check"]

Side = Literal["cloud", "device", "both"]


@dataclass(frozen=True, slots=True)
class Check:
    """One step of verification: which side runs it, what it demands, and the error that refuses."""

    number: int
    name: str
    side: Side
    error: type[errors.SplitInferError]
    rule: str


CHECKS: tuple[Check, ...] = (
    Check(1, "limits", "both", errors.LimitExceededError, "head, manifest, chunk size and count within their limits"),
    Check(2, "version", "both", errors.ManifestError, "protocol version 1, in canonical JSON with known fields only"),
    Check(3, "suite", "cloud", errors.ManifestError, "the one suite"),
    Check(4, "expiry", "cloud", errors.ManifestError, "not expired, and expiring within ten minutes"),
    Check(5, "keyset", "cloud", errors.StaleKeysetError, "sealed to a keyset that this replica still holds"),
    Check(6, "epoch", "device", errors.StaleKeysetError, "keyset epoch and generation not lower than seen before"),
    Check(7, "sender", "cloud", errors.AuthenticationError, "signed by an allowed device key"),
    Check(8, "nonce", "cloud", errors.ReplayError, "a server nonce handed out at most 60 s ago and unused"),
    Check(9, "replay", "both", errors.ReplayError, "a transfer id not seen before; a reply answers this request"),
    Check(10, "commitment", "both", errors.AuthenticationError, "the key commitment of the unwrapped content key"),
    Check(11, "tags", "both", errors.AuthenticationError, "every chunk's tag under its own index and final flag"),
    Check(12, "count", "both", errors.TruncatedError, "all chunks, in order, none after the final one"),
    Check(13, "trailer", "both", errors.AuthenticationError, "the sender's signature over count and ciphertext root"),
    Check(14, "model", "both", errors.ModelMismatchError, "weights, config and tokenizer digests equal our own"),
    Check(15, "layout", "both", errors.LayoutMismatchError, "cache layout, token counts and steps fit the model"),
    Check(16, "session", "cloud", errors.ReplayError, "the turn, parent, base and model of a session as it is held"),
    Check(17, "accepted", "both", errors.ManifestError, "protection, codec and padding are accepted here"),
)
