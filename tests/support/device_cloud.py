"""A device and a recipient without model, log or HTTP: sealed bytes of one to the intake of the other, both ways."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer import schedule
from splitinfer.attestation.keyset import Replica, ReplicaKeys
from splitinfer.attestation.sender import sender_id
from splitinfer.handoff import CacheLayout, ModelIdentity, Numerics, SamplingParams, VerifiedRecipient
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.intake import OpenedRequest, open_request
from splitinfer.receive.recipient import NonceTable, TransferTable
from splitinfer.receive.replies import SentRequest
from splitinfer.sealing.heads import PublicManifest
from splitinfer.sealing.manifest import (
    CacheWire,
    ModelWire,
    NumericsWire,
    RequestManifest,
    ResponseManifest,
    SamplingWire,
    SessionWire,
    TokensWire,
    cache_bytes,
)
from splitinfer.sealing.receipt import Event, Receipt, ReceiptBody, receipt_region, sign_receipt
from splitinfer.sealing.signing import signer
from splitinfer.sealing.stream import PROMPT_CHUNK_BYTES
from splitinfer.sealing.transfer import SealedBody, TransferKeys, seal_reply, seal_request
from splitinfer.sealing.wire import VERSION
from tests.support.keys import Deployment
from tests.support.layouts import full, sliding

MODEL = ModelIdentity("1" * 64, "2" * 64, "3" * 64)
NUMERICS = Numerics("2.13.0", "cpu", "float32", "sdpa", 1)
LAYOUT = CacheLayout(
    (
        full((2, 8), (2, 4)),
        sliding(17, (1, 8), (1, 8), "bfloat16"),
        full((2, 8), (2, 4)),
    )
)
EXPECTED = Expectations(MODEL, LAYOUT, max_positions=4096, vocabulary=1000)


class Bytes:
    """A `Source` over bytes that gives as many at a time as it is told, over and over."""

    def __init__(self, data: bytes, steps: Sequence[int] = (1 << 30,)) -> None:
        self._data, self._steps = data, steps
        self._at = self._calls = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def readinto(self, buffer: memoryview) -> int:
        step = self._steps[self._calls % len(self._steps)]
        self._calls += 1
        piece = self._data[self._at : self._at + min(step, len(buffer))]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class RecordingSink:
    """A `Sink` of slabs of these sizes that notes the order of its calls and keeps its memory in sight."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.memory = [bytearray(size) for size in sizes]
        self.calls: list[str] = []
        self._given = 0

    @property
    def is_clean(self) -> bool:
        return not any(any(slab) for slab in self.memory)

    def slab(self) -> memoryview:
        self.calls.append("slab")
        self._given += 1
        return memoryview(self.memory[self._given - 1])

    def finish(self) -> bytes:
        self.calls.append("finish")
        return b"".join(self.memory)

    def wipe(self) -> None:
        self.calls.append("wipe")
        for slab in self.memory:
            slab[:] = bytes(len(slab))


@dataclass
class Recipient:
    """Implements `RecipientState` over a replica, with the allowed device keys as a list that tests change."""

    replica: Replica
    clock: Callable[[], float]
    allowed: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nonces = NonceTable(clock=self.clock, randomness=os.urandom)
        self.transfers = TransferTable(clock=self.clock)

    def now(self) -> int:
        return int(self.clock())

    def keyset(self, digest_hex: str) -> ReplicaKeys | None:
        return self.replica.find(digest_hex)

    def sender(self, sender_id_hex: str, keyset_digest: bytes) -> bytes | None:
        return next((key for key in self.allowed if sender_id(keyset_digest, key) == sender_id_hex), None)

    def use_nonce(self, nonce: str) -> None:
        self.nonces.use(nonce)

    def begin(self, sender: bytes, manifest: PublicManifest) -> None:
        self.transfers.begin(sender, manifest.transfer_id, expires_at=manifest.expires_at)


class Pair:
    """One allowed device and one recipient; every call is the product's own."""

    def __init__(self, *, keyset_seconds: int = 3600) -> None:
        self.deployment = Deployment()
        self.clock = self.deployment.clock
        self.replica = self.deployment.replica(keyset_seconds=keyset_seconds)
        self.device = Ed25519PrivateKey.generate()
        self.device_public = self.device.public_key().public_bytes_raw()
        self.recipient = Recipient(self.replica, self.clock, [self.device_public])

    def appraised(self) -> VerifiedRecipient:
        return self.deployment.appraised(self.replica, nonce=self.recipient.nonces.issue())

    def seal(
        self,
        pieces: Iterable[memoryview | bytes],
        *,
        following_bytes: int,
        manifest: bytes = b"{}",
        chunk_bytes: int = PROMPT_CHUNK_BYTES,
        to: VerifiedRecipient | None = None,
        key: Ed25519PrivateKey | None = None,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> tuple[SealedBody, TransferKeys]:
        """Seal a request to the recipient."""
        recipient, key = to or self.appraised(), key or self.device
        return seal_request(
            pieces,
            sealed_manifest=manifest,
            following_bytes=following_bytes,
            chunk_bytes=chunk_bytes,
            recipient=recipient,
            sender_id=sender_id(recipient.keyset_digest, key.public_key().public_bytes_raw()),
            signer=signer(key),
            now=int(self.clock()),
            randomness=randomness,
        )

    def open(self, data: bytes, steps: Sequence[int] = (1 << 30,)) -> OpenedRequest:
        """Run the intake's checks 1 to 10."""
        return open_request(Bytes(data, steps), self.recipient)

    def seal_reply(
        self,
        pieces: Iterable[memoryview | bytes],
        keys: TransferKeys,
        *,
        response: ResponseManifest,
        following_bytes: int,
        chunk_bytes: int,
        by: Ed25519PrivateKey | None = None,
    ) -> bytes:
        """Seal a reply with the recipient's receipt key, or another."""
        body = seal_reply(
            pieces,
            response_manifest=response.to_bytes(),
            following_bytes=following_bytes,
            chunk_bytes=chunk_bytes,
            keys=keys,
            signer=signer(by or self.replica.current().receipt),
            randomness=os.urandom,
        )
        return joined(body)

    def sent(self, keys: TransferKeys, *, tokens: int, manifest: RequestManifest) -> SentRequest:
        """Return what the device keeps of a request."""
        receipt_key = self.replica.current().receipt.public_key().public_bytes_raw()
        return SentRequest(keys, manifest.digest.hex(), receipt_key, tokens)


def joined(pieces: Iterable[memoryview | bytes]) -> bytes:
    """Copy every piece as it comes, as a transport does."""
    return b"".join(bytes(piece) for piece in pieces)


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Cut bytes into pieces of these sizes, the rest last."""
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def request_manifest(kind: str = "prefill", /, *, tokens: int = 100, **changes: Any) -> RequestManifest:
    """Return a manifest that `EXPECTED` accepts, then changed."""
    is_decode = kind == "decode"
    fields: dict[str, object] = {
        "version": VERSION,
        "kind": kind,
        "protection": "sealed",
        "codec": "raw",
        "artefact_sha256": None,
        "pad": "padme",
        "policy_sha256": "4" * 64,
        "log_checkpoint": "5" * 64,
        "model": ModelWire.of(MODEL),
        "numerics": NumericsWire.of(NUMERICS),
        "session": SessionWire(session_id="6" * 32, turn=0, parent_root="", base_tokens=0, keep=False),
        "public": False,
        "tokens": TokensWire(true=tokens, padded=schedule.pad_tokens(tokens)),
        "steps": [(0, tokens)],
        "cache": CacheWire.of(LAYOUT) if is_decode else None,
        "coded_bytes": None,
        "last_token": 7 if is_decode else None,
        "sampling": SamplingWire.of(SamplingParams(max_new_tokens=8)) if is_decode else None,
    }
    if "tokens_wire" in changes:
        fields["tokens"] = changes.pop("tokens_wire")
    return RequestManifest(**{**fields, **changes})


def response_manifest(kind: str, request: RequestManifest, /, **changes: Any) -> ResponseManifest:
    """Return a response to this request that `EXPECTED` accepts, then changed."""
    is_cache, is_refusal = kind == "cache", kind == "refusal"
    fields: dict[str, object] = {
        "version": VERSION,
        "kind": kind,
        "request_manifest_sha256": request.digest.hex(),
        "codec": "raw",
        "artefact_sha256": None,
        "model": None if is_refusal else ModelWire.of(MODEL),
        "numerics": None if is_refusal else NumericsWire.of(NUMERICS),
        "tokens": request.tokens if is_cache else None,
        "cache": CacheWire.of(LAYOUT) if is_cache else None,
        "coded_bytes": None,
        "frames": 0,
        "refusal": None,
    }
    return ResponseManifest(**{**fields, **changes})


def receipt(**changes: object) -> ReceiptBody:
    """Return a receipt body with distinct values in every field, then changed."""
    fields: dict[str, object] = {
        "version": VERSION,
        "transfer_id": "a" * 32,
        "manifest_sha256": "b" * 64,
        "ciphertext_root": "c" * 64,
        "replica_id": "d" * 32,
        "keyset_digest": "e" * 64,
        "protection": "sealed",
        "log_checkpoint": "f" * 64,
        "served_at": 1_800_000_000,
        "events": [Event(event="received", count=3), Event(event="erased", count=1)],
    }
    return ReceiptBody(**{**fields, **changes})  # type: ignore[arg-type]


def signed_receipt(key: Ed25519PrivateKey, **changes: object) -> Receipt:
    """Sign a receipt body."""
    return sign_receipt(receipt(**changes), signer=signer(key))


def receipt_bytes(key: Ed25519PrivateKey, **changes: object) -> bytes:
    """Lay out a signed receipt in its block."""
    return receipt_region(signed_receipt(key, **changes))


def slab_sizes(tokens: int, layout: CacheLayout = LAYOUT) -> list[int]:
    """Return the sizes of a padded cache's slabs."""
    return [slab.size_bytes for slab in schedule.slabs(layout, schedule.pad_tokens(tokens))]


def layout_bytes(tokens: int, layout: CacheLayout = LAYOUT) -> int:
    """Return the bytes of a padded cache."""
    return cache_bytes(layout, schedule.pad_tokens(tokens))
