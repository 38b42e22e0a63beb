"""The two calls of a device whose connection was lost: how far is my transfer, and go on; on the cloud."""

from __future__ import annotations

from splitinfer.cloud.parked import Key, Parking
from splitinfer.cloud.recipient import Recipient
from splitinfer.errors import StaleKeysetError
from splitinfer.handoff import CloudReply, Source
from splitinfer.receive.reading import require_end
from splitinfer.receive.resuming import open_resume, open_state_query
from splitinfer.sealing.resume import ResumeHead, StateBody, StateQuery, sign_state
from splitinfer.sealing.wire import VERSION

__all__ = ["Resuming"]


class Resuming:
    """Answers `POST /v1/transfers/state` and `POST /v1/transfers/resume`."""

    def __init__(self, parking: Parking, recipient: Recipient) -> None:
        self._parking, self._recipient = parking, recipient

    def state(self, body: Source) -> CloudReply:
        """Check the query and answer it, signed by the keyset's receipt key; raises as `open_state_query` does."""
        query, sender = open_state_query(body, self._recipient)
        require_end(body)
        held = self._recipient.keyset(query.keyset_digest)
        if held is None:
            raise StaleKeysetError("the transfer's keyset is not held here any more; send a new transfer")
        state, chunks = self._parking.state(_key(query, sender))
        answer = StateBody(
            version=VERSION,
            transfer_id=query.transfer_id,
            manifest_sha256=query.manifest_sha256,
            server_nonce=query.server_nonce,
            state=state,
            request_chunks=chunks,
        )
        data = sign_state(answer, signer=held.signer).to_bytes()
        return CloudReply(len(data), iter([data]))

    def resume(self, body: Source) -> CloudReply:
        """Check the head and go on; raises as `open_resume` and `Parking.resume` do."""
        head, sender = open_resume(body, self._recipient)
        return self._parking.resume(
            _key(head, sender), body, request_from=head.request_from, reply_from=head.reply_from
        )


def _key(head: StateQuery | ResumeHead, sender: bytes) -> Key:
    return sender, head.transfer_id, head.manifest_sha256
