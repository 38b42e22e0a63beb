"""The two calls by which a broken transfer goes on: signed heads on the cloud, signed answers on the device.

The rules are those of a request's head (checks 1, 2, 5, 7, 8); what is looked up by them is the caller's.
"""

from __future__ import annotations

from splitinfer.errors import ReplayError
from splitinfer.handoff import Source
from splitinfer.receive.intake import RecipientState, require_sender
from splitinfer.receive.reading import read_head
from splitinfer.sealing.resume import ResumeHead, StateAnswer, StateBody, StateQuery
from splitinfer.sealing.signing import Purpose, verify
from splitinfer.sealing.wire import parse_wire

__all__ = ["open_resume", "open_state_answer", "open_state_query"]


def open_state_query(source: Source, state: RecipientState) -> tuple[StateQuery, bytes]:
    """Read and check a query; return it with its sender's public key. On the cloud.

    Raises ManifestError, LimitExceededError, StaleKeysetError, AuthenticationError, ReplayError.
    """
    head = parse_wire(StateQuery, read_head(source), what="state query")
    return head, require_sender(head, head, state, purpose=Purpose.TRANSFER_STATE)[1]


def open_resume(source: Source, state: RecipientState) -> tuple[ResumeHead, bytes]:
    """Read and check the head of a resume, up to the first chunk behind it; raises as `open_state_query` does."""
    head = parse_wire(ResumeHead, read_head(source), what="resume head")
    return head, require_sender(head, head, state, purpose=Purpose.TRANSFER_RESUME)[1]


def open_state_answer(data: bytes, *, query: StateQuery, receipt_public_key: bytes) -> StateBody:
    """Check the answer to one's own query; on the device.

    Raises ManifestError where it is malformed, AuthenticationError where another key signed it, ReplayError where it
    answers another query.
    """
    answer = parse_wire(StateAnswer, data, what="state answer")
    signature = bytes.fromhex(answer.signature)
    verify(receipt_public_key, Purpose.TRANSFER_STATE_ANSWER, answer.body.to_bytes(), signature)
    for member in ("transfer_id", "manifest_sha256", "server_nonce"):
        if getattr(answer.body, member) != getattr(query, member):
            raise ReplayError("the state that came back answers another query")
    return answer.body
