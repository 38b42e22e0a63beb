"""The device's whole exchange around a frozen reply: fixed randomness, so that the reply fits the request it seals."""

from __future__ import annotations

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.asks import Ask
from splitinfer.attestation.appraise import appraise
from splitinfer.egress.gate import Intent, Permit
from splitinfer.exchange import Exchange
from splitinfer.handoff import ReleasedTransfer, Reply, Route
from splitinfer.receive.tokens import TOKEN_BYTES, token_slab
from splitinfer.sealing.manifest import RequestManifest
from tests.support.keys import Unseen
from tests.support.vectors import (
    BytesSource,
    Vector,
    WatchedSink,
    cache_sink,
    context,
    derivation,
    expectations,
    find_vector,
)

PADDED_TOKENS = 64


class FrozenReply(BytesSource):
    """A reply's bytes; implements `handoff.Reply`."""

    body_bytes = None

    is_early = False

    def close(self) -> None:
        return


class FrozenTransport:
    """Pulls the body as a transport does, and answers with frozen bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        assert sum(len(piece) for piece in transfer.body) == transfer.body_bytes
        return FrozenReply(self._reply)


class VectorDevice:
    """An exchange in which the vector's request is sealed again, byte for byte but for the wrap."""

    def __init__(self, vector: Vector) -> None:
        self._vector, self._sent = vector, vector.says["sent"]
        self._expected = expectations(vector.says["layout"])
        self.sinks: list[WatchedSink] = []
        self.shown: list[int] = []
        self._random = iter(
            [self._sent["content_key"], self._sent["transfer_id"], derivation("stream-keys")[0]["nonce"]]
        )
        self._exchange = Exchange(
            self._permit(),
            FrozenTransport(vector.data),
            device_key=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(context()["device_private_key"])),
            expected=self._expected,
            clock=lambda: vector.says["now"],
            randomness=self._randomness,
        )

    def _randomness(self, size: int) -> bytes:
        drawn = bytes.fromhex(next(self._random))
        assert len(drawn) == size
        return drawn

    def _permit(self) -> Permit:
        intent = Intent(
            mode="sealed-prefill",
            policy_sha256="0" * 64,
            recipient_identity_sha256=context()["identity_sha256"],
            protection="sealed",
            codec="raw",
            tokens_bucket=PADDED_TOKENS,
            bytes_up_bound=1 << 20,
            fields_in_clear=(),
        )
        log: Any = None
        commitment = self._sent["manifest"]["log_checkpoint"]
        return Permit(log, lambda *_: None, "0" * 32, intent, checkpoint_commitment=commitment)

    def _ask(self) -> Ask:
        manifest = RequestManifest.model_validate_json(json.dumps(self._sent["manifest"]))
        if manifest.kind == "prefill":
            slab = token_slab(tuple(context()["token_ids"]), padded_tokens=PADDED_TOKENS)
            return Ask(Route.PREFILL, manifest, [slab], PADDED_TOKENS * TOKEN_BYTES, self._sent["chunk_bytes"])
        slabs = bytes.fromhex(context()["cache_hex"][self._vector.says["layout"]])
        return Ask(Route.DECODE, manifest, [slabs], len(slabs), self._sent["chunk_bytes"])

    def run(self) -> object:
        """Send, then read what was asked for to its end; raises what the device raises."""
        keyset = find_vector("0000-honest-keyset")
        pinned = context()["identity_sha256"]
        recipient = appraise(keyset.data, pinned_sha256=pinned, now=keyset.says["now"], seen=Unseen())
        reply = self._exchange.send(self._ask(), recipient)
        if self._vector.says["read"] == "tokens":
            for frame in self._exchange.receive_frames(reply):
                self.shown.extend(frame.token_ids)
            return self.shown
        sink = cache_sink(self._expected.layout, reply.manifest, self._sent["tokens"])
        self.sinks.append(sink)
        return self._exchange.receive_cache(reply, sink)

    @property
    def has_receipt(self) -> bool:
        """Tell whether a receipt was accepted."""
        return self._exchange.receipt is not None
