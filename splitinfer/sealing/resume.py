"""What is signed when a broken transfer goes on: the device's query, the recipient's answer, the head of a resume.

All of it is in clear and none of it is new to an observer of the transfer, but the number of chunks (docs/format.md
section 12). Both sides.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from splitinfer.sealing.signing import Purpose, Signer
from splitinfer.sealing.wire import Count, Hex16, Hex32, Hex64, Version, WireModel

__all__ = [
    "QUERY_BOUND_BYTES",
    "UNSIGNED",
    "ResumeHead",
    "SignedHead",
    "StateAnswer",
    "StateBody",
    "StateQuery",
    "TransferState",
    "sign_state",
    "signed",
]

QUERY_BOUND_BYTES = 1024
TransferState = Literal["open", "complete", "refused", "unknown", "busy"]
UNSIGNED = "0" * 128


class SignedHead(WireModel):
    """What both calls say: which transfer of which device, under a fresh server nonce."""

    version: Version
    transfer_id: Hex16
    manifest_sha256: Hex32
    keyset_digest: Hex32
    sender_id: Hex32
    server_nonce: Hex32
    signature: Hex64

    def signed_bytes(self) -> bytes:
        """Return what the device key signs: everything but the signature."""
        return self.model_copy(update={"signature": UNSIGNED}).to_bytes()


class StateQuery(SignedHead):
    """How far is this transfer? Signed under `transfer-state`."""


class ResumeHead(SignedHead):
    """Here are the request's chunks from `request_from` on; send the reply's from `reply_from` on."""

    request_from: Count
    reply_from: Count


class StateBody(WireModel):
    """What the recipient signs under `transfer-state-answer`; echoes the query's ids and nonce.

    `open`: the first `request_chunks` of the request were verified. `complete`: all of them were. `refused`: they were
    not accepted. `busy`: its connection is still served. `unknown`: nothing is held.
    """

    version: Version
    transfer_id: Hex16
    manifest_sha256: Hex32
    server_nonce: Hex32
    state: TransferState
    request_chunks: Count


class StateAnswer(WireModel):
    """An answer's body and the signature of the keyset's receipt key."""

    body: StateBody
    signature: Hex64


H = TypeVar("H", StateQuery, ResumeHead)


def signed(head: H, *, purpose: Purpose, signer: Signer) -> H:
    """Return the head with its signature."""
    return head.model_copy(update={"signature": signer(purpose, head.signed_bytes()).hex()})


def sign_state(body: StateBody, *, signer: Signer) -> StateAnswer:
    """Sign an answer."""
    return StateAnswer(body=body, signature=signer(Purpose.TRANSFER_STATE_ANSWER, body.to_bytes()).hex())
