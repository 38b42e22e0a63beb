"""Frozen vectors read from disk, and the least that stands around the product's intake while it reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from splitinfer import codec, schedule
from splitinfer.attestation.keyset import Keyset, ReplicaKeys
from splitinfer.attestation.sender import sender_id
from splitinfer.errors import TransportError
from splitinfer.handoff import CacheLayout, ModelIdentity, VerifiedTransfer
from splitinfer.receive.expectations import Expectations, check_request
from splitinfer.receive.intake import open_request
from splitinfer.receive.recipient import NonceTable, TransferTable
from splitinfer.receive.replies import OpenedReply, SentRequest, open_reply
from splitinfer.receive.tokens import TOKEN_BYTES, RowSink, TokenSink, slab_tokens
from splitinfer.sealing.heads import PublicManifest
from splitinfer.sealing.keys import KemKey
from splitinfer.sealing.manifest import CacheWire, RequestManifest, ResponseManifest
from splitinfer.sealing.receipt import Receipt
from splitinfer.sealing.signing import Purpose, verify
from splitinfer.sealing.transfer import TransferKeys

FOLDER = Path(__file__).parent.parent / "vectors"


@dataclass(frozen=True)
class Vector:
    """One folder of tests/vectors/receive: what vector.json says, and the bytes."""

    name: str
    says: dict[str, Any] = field(repr=False)

    @property
    def data(self) -> bytes:
        file_name: str = self.says["file"]
        return (FOLDER / "receive" / self.name / file_name).read_bytes()

    @property
    def is_honest(self) -> bool:
        return self.says["check"] is None


def vectors(file_name: str) -> list[Vector]:
    """Return the vectors whose bytes are in files of this name: request.bin, reply.bin or keyset.bin."""
    return [vector for vector in all_vectors() if vector.says["file"] == file_name]


@cache
def all_vectors() -> tuple[Vector, ...]:
    folders = sorted(path for path in (FOLDER / "receive").iterdir() if path.is_dir())
    return tuple(Vector(folder.name, json.loads((folder / "vector.json").read_text())) for folder in folders)


def find_vector(name: str) -> Vector:
    return next(vector for vector in all_vectors() if vector.name == name)


@cache
def context() -> dict[str, Any]:
    """Return context.json: keys, model and limits of all vectors."""
    shared: dict[str, Any] = json.loads((FOLDER / "receive" / "context.json").read_text())
    return shared


def derivation(name: str) -> Any:
    return json.loads((FOLDER / "derivations" / f"{name}.json").read_text())


def layout_of(runs: list[dict[str, Any]]) -> CacheLayout:
    return CacheWire.model_validate({"layers": runs}).layout()


def expectations(layout: str) -> Expectations:
    shared = context()
    model = ModelIdentity(**shared["model"])
    return Expectations(model, layout_of(shared["layouts"][layout]), shared["max_positions"], shared["vocabulary"])


class BytesSource:
    """Bytes that arrive at most `piece_bytes` at a time; implements `handoff.Source`."""

    def __init__(self, data: bytes, *, piece_bytes: int = 1000) -> None:
        self._rest = memoryview(data)
        self._piece_bytes = piece_bytes

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest), self._piece_bytes)
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class WatchedSink:
    """A sink that remembers whether it was finished or wiped, and the memory it lent."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._lent: list[memoryview] = []
        self.is_finished = False
        self.is_wiped = False

    def slab(self) -> memoryview:
        self._lent.append(self._sink.slab())
        return self._lent[-1]

    def sizes(self) -> Iterator[int]:
        return self._sink.sizes()

    @property
    def size_bytes(self) -> int:
        return self._sink.size_bytes

    def finish(self) -> object:
        payload = self._sink.finish()
        self.is_finished = True
        return payload

    def wipe(self) -> None:
        self._sink.wipe()
        self.is_wiped = not any(any(memory) for memory in self._lent)


class NoContents:
    """The sink of a request without contents."""

    def slab(self) -> memoryview:
        raise AssertionError("there is no slab")

    def finish(self) -> tuple[int, ...]:
        return ()

    def wipe(self) -> None:
        return


class LostSource(BytesSource):
    """Bytes of which the connection is lost after the last."""

    def readinto(self, buffer: memoryview) -> int:
        if count := super().readinto(buffer):
            return count
        raise TransportError("the connection was lost")


def replica_keys() -> ReplicaKeys:
    """Return the one keyset of the vectors with its private keys."""
    shared, issued = context(), derivation("keyset")
    mlkem = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(shared["kem"]["mlkem_seed"]))
    x25519 = X25519PrivateKey.from_private_bytes(bytes.fromhex(shared["kem"]["x25519"]))
    receipt = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(shared["receipt_private_key"]))
    keyset = Keyset.model_validate(issued["keyset"])
    return ReplicaKeys(keyset, bytes.fromhex(issued["signature"]), KemKey(mlkem, x25519), receipt)


class VectorRecipient:
    """A recipient that remembers what a vector says it does; implements `receive.intake.RecipientState`."""

    def __init__(self, vector: Vector) -> None:
        self._clock, self._nonce = 0, b""
        self._nonces = NonceTable(clock=lambda: self._clock, randomness=lambda _: self._nonce)
        self._transfers = TransferTable(clock=lambda: self._clock)
        for nonce, issued_at in vector.says["nonces"].items():
            self._clock, self._nonce = issued_at, bytes.fromhex(nonce)
            self._nonces.issue()
        self._clock = vector.says["now"]
        self._keyset = replica_keys()

    def now(self) -> int:
        return self._clock

    def keyset(self, digest_hex: str) -> ReplicaKeys | None:
        return self._keyset if digest_hex == self._keyset.digest.hex() else None

    def sender(self, found: str, keyset_digest: bytes) -> bytes | None:
        allowed = [bytes.fromhex(key) for key in context()["allowed_devices"]]
        return next((key for key in allowed if sender_id(keyset_digest, key) == found), None)

    def use_nonce(self, nonce: str) -> None:
        self._nonces.use(nonce)

    def begin(self, sender: bytes, manifest: PublicManifest) -> None:
        self._transfers.begin(sender, manifest.transfer_id, expires_at=manifest.expires_at)


def receive_request(vector: Vector, recipient: VectorRecipient, sinks: list[WatchedSink]) -> VerifiedTransfer[Any]:
    """Take a request in as the cloud does; every sink that was made is put into `sinks`."""
    opened = open_request(BytesSource(vector.data), recipient)
    manifest = opened.manifest()
    expected = expectations(vector.says["layout"])
    check_request(manifest, expected)
    if manifest.kind == "decode":
        sinks.append(cache_sink(expected.layout, manifest, manifest.tokens.true))
        return opened.receive(sinks[-1], sinks[-1].sizes(), data_bytes=sinks[-1].size_bytes)
    if manifest.kind == "close":
        sinks.append(WatchedSink(NoContents()))
        return opened.receive(sinks[-1], iter(()), data_bytes=0)
    if manifest.kind == "rows":
        row_bytes = context()["row_bytes"]
        sink = RowSink(true_tokens=manifest.tokens.true, padded_tokens=manifest.tokens.padded, row_bytes=row_bytes)
        sinks.append(WatchedSink(sink))
        size = manifest.tokens.padded * row_bytes
        return opened.receive(sinks[-1], iter([size]), data_bytes=size)
    base = 0 if manifest.public else manifest.session.base_tokens
    true, padded = manifest.tokens.true - base, slab_tokens(manifest)
    sinks.append(WatchedSink(TokenSink(true_tokens=true, padded_tokens=padded, vocabulary=expected.vocabulary)))
    size = padded * TOKEN_BYTES
    return opened.receive(sinks[-1], iter([size]), data_bytes=size)


def cache_sink(layout: CacheLayout, manifest: RequestManifest | ResponseManifest, tokens: int) -> WatchedSink:
    sink = codec.sink(
        layout,
        codec=manifest.codec,
        true_tokens=tokens,
        padded_tokens=schedule.pad_tokens(tokens),
        coded_bytes=manifest.coded_bytes,
    )
    return WatchedSink(sink)


def open_vector_reply(vector: Vector) -> OpenedReply:
    """Open a reply as the device that sent the request does."""
    says = vector.says["sent"]
    keys = TransferKeys(
        bytes.fromhex(says["transfer_id"]), bytes.fromhex(says["content_key"]), bytes.fromhex(says["manifest_sha256"])
    )
    receipt_key = bytes.fromhex(context()["receipt_public_key"])
    sent = SentRequest(keys, says["sealed_manifest_sha256"], receipt_key, says["tokens"])
    return open_reply(BytesSource(vector.data), sent, expectations(vector.says["layout"]))


def receive_cache(vector: Vector, reply: OpenedReply, sinks: list[WatchedSink]) -> VerifiedTransfer[Any]:
    """Read a cache reply to its end; the sink is put into `sinks`."""
    layout, tokens = expectations(vector.says["layout"]).layout, vector.says["sent"]["tokens"]
    sink = cache_sink(layout, reply.manifest, tokens)
    sinks.append(sink)
    return reply.receive_cache(sink, sink.sizes(), data_bytes=sink.size_bytes, check_receipt=_check_signature)


def _check_signature(receipt: Receipt) -> None:
    key, signature = bytes.fromhex(context()["receipt_public_key"]), bytes.fromhex(receipt.signature)
    verify(key, Purpose.RECEIPT, receipt.body.to_bytes(), signature)


class VectorSeen:
    """What a device saw before, from a vector; implements `attestation.appraise.SeenKeysets`."""

    def __init__(self, seen: dict[str, dict[str, int]]) -> None:
        self._seen = seen
        self.remembered: list[tuple[str, int, str, int]] = []

    def highest_epoch(self, replica_id: str) -> int:
        return self._seen["epochs"].get(replica_id, 0)

    def highest_generation(self, identity_sha256: str) -> int:
        return self._seen["generations"].get(identity_sha256, 0)

    def remember(self, *, identity_sha256: str, generation: int, replica_id: str, epoch: int) -> None:
        self.remembered.append((identity_sha256, generation, replica_id, epoch))
