"""The fixed world of the vectors: keys, times, a model that is only a layout, and honest requests, replies and keysets.

A refusing vector is an honest one with one thing changed. Everything here is derived from names, except for the wraps:
HPKE draws its own randomness, so a wrap is kept in `wraps.json` and used again.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import reference as ref
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from reference import Json, Kem, StreamKeys, Tweaks

NO_TWEAKS = Tweaks()
NOW = 1_760_000_000
MAX_POSITIONS = 256
VOCABULARY = 64
TRUE_TOKENS = 21
PADDED_TOKENS = 64
MAX_NEW_TOKENS = 8
LAST_TOKEN = 7
ROW_NUMBERS = 4
TOKEN_IDS = [(5 * index + 3) % VOCABULARY for index in range(TRUE_TOKENS)]
ANSWER = [11, 12, 13]


def secret(name: str, size: int = 32) -> bytes:
    """Return fixed bytes that stand for random ones."""
    return hashlib.shake_256(b"splitinfer test vectors, not secret: " + name.encode()).digest(size)


def ed25519(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret(name))


def kem(name: str) -> Kem:
    mlkem = MLKEM768PrivateKey.from_seed_bytes(secret(f"{name} ML-KEM", 64))
    return Kem(mlkem, X25519PrivateKey.from_private_bytes(secret(f"{name} X25519")))


IDENTITY, REPLICA, DEVICE, RECEIPT = (ed25519(name) for name in ("identity", "replica", "device", "receipt"))
STRANGER = ed25519("stranger")
RECIPIENT_KEM, STRANGER_KEM = kem("recipient"), kem("stranger")
REPLICA_ID, GENERATION, EPOCH = secret("replica id", 16).hex(), 3, NOW - 100
PINNED = ref.sha256(ref.public(IDENTITY)).hex()
TRANSFER_ID, OTHER_TRANSFER_ID = secret("transfer id", 16), secret("other transfer id", 16)
CONTENT_KEY, OTHER_CONTENT_KEY = secret("content key"), secret("other content key")
SERVER_NONCE, OTHER_SERVER_NONCE = secret("server nonce"), secret("other server nonce")
REQUEST_NONCE, REPLY_NONCE = secret("request stream nonce"), secret("reply stream nonce")
MODEL = {f"{part}_sha256": ref.sha256(part.encode()).hex() for part in ("weights", "config", "tokenizer")}
NUMERICS = {"torch": "2.13.0", "device": "cpu", "dtype": "float32", "attention": "sdpa", "threads": 1}


def tensor(name: str, rows: str, before: list[int], after: list[int], dtype: str = "float32") -> Json:
    return {"name": name, "dtype": dtype, "rows": rows, "before": before, "after": after}


def attention(rows: str) -> list[Json]:
    """Keys and values of one head and four columns."""
    return [tensor("keys", rows, [1], [4]), tensor("values", rows, [1], [4])]


def layer(kind: str, tensors: list[Json], *, window: int = 0, stride: int = 0, count: int = 1) -> Json:
    return {"count": count, "kind": kind, "window": window, "stride": stride, "tensors": tensors}


def compressor(name: str) -> list[Json]:
    rules = {
        "compressed_kv": "entries",
        "buffer_kv": "remainder",
        "buffer_gate": "remainder",
        "overlap_kv": "overlap",
        "overlap_gate": "overlap",
    }
    return [tensor(f"{name}_{part}", rows, [], [4]) for part, rows in rules.items()]


FULL_RUN: Json = layer("full", attention("tokens"), count=2)
STATES = [
    tensor("conv_states_0", "fixed", [3, 4], [], "bfloat16"),
    tensor("recurrent_states_0", "fixed", [2, 2, 2], []),
]
LAYOUTS: dict[str, list[Json]] = {
    "full": [FULL_RUN],
    "sliding": [{**FULL_RUN, "count": 1}, layer("sliding", attention("window"), window=16)],
    "states": [
        layer("linear_full", [*attention("tokens"), *STATES]),
        layer("empty", []),
        layer(
            "compressed_sparse",
            [tensor("keys", "window", [1], [4]), *compressor("compressor"), *compressor("indexer")],
            window=16,
            stride=4,
        ),
        layer("indexed", [*attention("tokens"), tensor("indexer_keys", "tokens", [], [4])]),
    ],
}


def merged(value: Json, changes: Json) -> Json:
    """Return the object with members replaced, nested objects member by member; `...` removes a member."""
    result = dict(value)
    for name, change in changes.items():
        if change is ...:
            del result[name]
        elif isinstance(change, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], change)
        else:
            result[name] = change
    return result


# --- keysets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeysetCase:
    """A keyset reply and what is changed in it; signatures are made after the changes, those of `reply` excepted."""

    certificate: Json = field(default_factory=dict)
    keyset: Json = field(default_factory=dict)
    reply: Json = field(default_factory=dict)
    identity: Ed25519PrivateKey = IDENTITY
    replica: Ed25519PrivateKey = REPLICA
    certificate_purpose: str = "replica-certificate"
    keyset_purpose: str = "keyset"

    def parts(self) -> tuple[Json, str]:
        body = {
            "version": 1,
            "identity": ref.public(IDENTITY).hex(),
            "replica_id": REPLICA_ID,
            "replica_key": ref.public(REPLICA).hex(),
            "capabilities": ["decode", "prefill"],
            "generation": GENERATION,
            "not_after": NOW + 80_000,
        }
        body = merged(body, self.certificate)
        signature = ref.sign(self.identity, self.certificate_purpose, ref.canonical(body)).hex()
        keyset = {
            "version": 1,
            "certificate": {"body": body, "signature": signature},
            "kem_public_key": RECIPIENT_KEM.public.hex(),
            "receipt_public_key": ref.public(RECEIPT).hex(),
            "epoch": EPOCH,
            "not_before": NOW - 160,
            "not_after": NOW + 3500,
        }
        keyset = merged(keyset, self.keyset)
        return keyset, ref.sign(self.replica, self.keyset_purpose, ref.canonical(keyset)).hex()

    def body(self) -> bytes:
        keyset, signature = self.parts()
        return ref.canonical(
            merged({"keyset": keyset, "signature": signature, "nonce": SERVER_NONCE.hex()}, self.reply)
        )


KEYSET_DIGEST = ref.digest(KeysetCase().parts()[0])


# --- contents -------------------------------------------------------------------------------------------------------


def cache_contents(
    layout: str, *, true: int = TRUE_TOKENS, padded: int = PADDED_TOKENS, pad: bytes = bytes(4)
) -> bytes:
    """Return slabs: small numbers by layer, tensor, row and column; padding rows repeat `pad`."""
    layers = ref.expanded(LAYOUTS[layout])
    data = bytearray()
    for index, name, start, stop, _ in ref.slabs(LAYOUTS[layout], padded):
        place, form = next((i, x) for i, x in enumerate(layers[index]["tensors"]) if x["name"] == name)
        held = ref.held_rows(layers[index], form, true)
        outer, inner, item = math.prod(form["before"]), math.prod(form["after"]), ref.ITEM_BYTES[form["dtype"]]
        for lead in range(outer):
            for row in range(start, stop):
                for column in range(inner):
                    number = index + place / 2 + row * 4 + (lead * inner + column) / 8
                    # A bfloat16 is the upper half of a float32.
                    data += (struct.pack("<f", number) if row < held else pad)[4 - item :]
    return bytes(data)


def row_slab(*, true: int = TRUE_TOKENS, padded: int = PADDED_TOKENS, pad: bytes = bytes(4)) -> bytes:
    """Return the slab of a prompt that comes as embedding rows: small numbers by row and column, then padding."""
    numbers = [row - 8 + column / 8 for row in range(true) for column in range(ROW_NUMBERS)]
    return struct.pack(f"<{len(numbers)}f", *numbers) + pad * ((padded - true) * ROW_NUMBERS)


def lossless_slabs(layout: str) -> list[bytes]:
    """Return the slabs of `cache_contents` in codec `lossless`, each behind its length."""
    layers, data, made = ref.expanded(LAYOUTS[layout]), cache_contents(layout), []
    for index, name, _, _, size in ref.slabs(LAYOUTS[layout], PADDED_TOKENS):
        form = next(x for x in layers[index]["tensors"] if x["name"] == name)
        made.append(ref.lossless_slab(data[:size], ref.ITEM_BYTES[form["dtype"]]))
        data = data[size:]
    return made


def frames_of(answer: list[int], *, max_new_tokens: int = MAX_NEW_TOKENS) -> list[bytes]:
    made = [ref.frame(1, ref.u32(token)) for token in answer] + [ref.frame(2, b"\x01")]
    return made + [ref.frame(0)] * (ref.frame_count(max_new_tokens) - len(made))


# --- requests -------------------------------------------------------------------------------------------------------

Chunks = list[bytes]


class Wraps:
    """The wraps, by what they wrap, to whom and under which info; made once, then kept."""

    def __init__(self, known: dict[str, str], *, may_make: bool) -> None:
        self._known, self._may_make = known, may_make
        self.used: dict[str, str] = {}

    def wrap(self, content_key: bytes, to: Kem, info: bytes) -> bytes:
        name = ref.sha256(content_key + ref.sha256(to.public) + info).hex()
        kept = self.used.get(name) or self._known.get(name)
        if kept is None and not self._may_make:
            raise LookupError("wraps.json lacks a wrap; run make_vectors.py without --check")
        wrapped = bytes.fromhex(kept) if kept else ref.wrap(content_key, to, info)
        if ref.unwrap(wrapped, to, info) != content_key:
            raise ValueError("a wrap in wraps.json does not open to its content key")
        self.used[name] = wrapped.hex()
        return wrapped


@dataclass(frozen=True)
class RequestCase:
    """A request and what is changed in it. `public`, `sealed` and `head` change before signing, `after` afterwards."""

    kind: str = "prefill"
    layout: str = "full"
    chunk_bytes: int = 0
    public: Json = field(default_factory=dict)
    sealed: Json = field(default_factory=dict)
    head: Json = field(default_factory=dict)
    after: Json = field(default_factory=dict)
    contents: bytes | None = None
    content_key: bytes = CONTENT_KEY
    wrapped_key: bytes | None = None
    wrap_to: Kem = RECIPIENT_KEM
    wrap_info: bytes | None = None
    device: Ed25519PrivateKey = DEVICE
    head_key: Ed25519PrivateKey | None = None
    head_purpose: str = "request"
    tweaks: Tweaks = NO_TWEAKS
    stream_content_key: bytes | None = None
    encode_head: Callable[[Json], bytes] = ref.canonical
    encode_sealed: Callable[[Json], bytes] = ref.canonical
    change_chunks: Callable[[Chunks], Chunks] = list
    change_body: Callable[[bytes], bytes] = bytes

    def public_manifest(self) -> Json:
        honest = {
            "version": 1,
            "suite": ref.SUITE,
            "transfer_id": TRANSFER_ID.hex(),
            "keyset_digest": KEYSET_DIGEST.hex(),
            "sender_id": ref.sender_id(KEYSET_DIGEST, ref.public(self.device)),
            "chunk_bytes": self.chunk_bytes or (512 if self.kind == "decode" else 4096),
            "expires_at": NOW + 300,
        }
        return merged(honest, self.public)

    def sealed_manifest(self) -> Json:
        is_decode = self.kind == "decode"
        sampling = {
            "max_new_tokens": MAX_NEW_TOKENS,
            "temperature": "0.7",
            "top_p": "0.95",
            "top_k": 0,
            "seed": "42",
            "stop": ["\n\n"],
        }
        honest = {
            "version": 1,
            "kind": self.kind,
            "protection": "sealed",
            "codec": "raw",
            "artefact_sha256": None,
            "pad": "padme",
            "policy_sha256": ref.sha256(b"policy").hex(),
            "log_checkpoint": ref.sha256(b"checkpoint").hex(),
            "model": MODEL,
            "numerics": NUMERICS,
            "session": {
                "session_id": secret("session", 16).hex(),
                "turn": 0,
                "parent_root": "",
                "base_tokens": 0,
                "keep": False,
            },
            "public": False,
            "tokens": {"true": TRUE_TOKENS, "padded": PADDED_TOKENS},
            "steps": [[0, 16], [16, TRUE_TOKENS]],
            "cache": {"layers": LAYOUTS[self.layout]} if is_decode else None,
            "coded_bytes": None,
            "last_token": LAST_TOKEN if is_decode else None,
            "sampling": sampling if is_decode else None,
        }
        return merged(honest, self.sealed)

    @property
    def manifest_digest(self) -> bytes:
        return ref.digest(self.public_manifest())

    @property
    def sealed_digest(self) -> bytes:
        return ref.digest(self.sealed_manifest())

    def keys(self) -> StreamKeys:
        return ref.stream_keys(
            self.stream_content_key or self.content_key,
            direction=ref.REQUEST,
            manifest_digest=self.manifest_digest,
            nonce=REQUEST_NONCE,
        )

    def chunks(self) -> Chunks:
        honest = self._honest_contents()
        manifest = self.public_manifest()
        stream = ref.Stream(
            keys=self.keys(),
            direction=ref.REQUEST,
            transfer_id=bytes.fromhex(manifest["transfer_id"]),
            manifest_digest=self.manifest_digest,
            chunk_bytes=manifest["chunk_bytes"],
            key=self.device,
            tweaks=self.tweaks,
        )
        contents = honest if self.contents is None else self.contents
        return stream.seal(self.encode_sealed(self.sealed_manifest()), contents)

    def _honest_contents(self) -> bytes:
        if self.kind == "rows":
            return row_slab()
        return ref.token_slab(TOKEN_IDS, PADDED_TOKENS) if self.kind == "prefill" else cache_contents(self.layout)

    def body(self, wraps: Wraps) -> bytes:
        digest = self.manifest_digest
        info = self.wrap_info or ref.wrap_info(digest)
        head = {
            "manifest": self.public_manifest(),
            "wrap": wraps.wrap(self.wrapped_key or self.content_key, self.wrap_to, info).hex(),
            "stream_nonce": REQUEST_NONCE.hex(),
            "commitment": self.keys().commitment.hex(),
            "server_nonce": SERVER_NONCE.hex(),
            "signature": "0" * 128,
        }
        head = merged(head, self.head)
        signature = ref.sign(self.head_key or self.device, self.head_purpose, ref.canonical(head))
        head = merged({**head, "signature": signature.hex()}, self.after)
        chunks = self.change_chunks(self.chunks())
        return self.change_body(ref.prefixed(self.encode_head(head)) + b"".join(chunks))


@dataclass(frozen=True)
class ResumeCase:
    """A call of section 21 about a request, and what is changed in its head: before signing, or `after`.

    `came` chunks of the request had come when its connection was lost; a resume carries those from `sent_from` on.
    """

    kind: str
    request: RequestCase = field(default_factory=RequestCase)
    came: int = 1
    sent_from: int = 1
    head: Json = field(default_factory=dict)
    after: Json = field(default_factory=dict)
    purpose: str = ""
    key: Ed25519PrivateKey = DEVICE
    change_chunks: Callable[[Chunks], Chunks] = list

    def body(self, _wraps: Wraps) -> bytes:
        honest = {
            "version": 1,
            "transfer_id": self.request.public_manifest()["transfer_id"],
            "manifest_sha256": self.request.manifest_digest.hex(),
            "keyset_digest": KEYSET_DIGEST.hex(),
            "sender_id": ref.sender_id(KEYSET_DIGEST, ref.public(DEVICE)),
            "server_nonce": OTHER_SERVER_NONCE.hex(),
            "signature": "0" * 128,
        }
        if self.kind == "resume":
            honest |= {"request_from": self.sent_from, "reply_from": 0}
        head = merged(honest, self.head)
        signature = ref.sign(self.key, self.purpose or f"transfer-{self.kind}", ref.canonical(head))
        head = merged({**head, "signature": signature.hex()}, self.after)
        chunks = self.change_chunks(self.request.chunks()[self.sent_from :]) if self.kind == "resume" else []
        return ref.prefixed(ref.canonical(head)) + b"".join(chunks)


# --- replies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplyCase:
    """A reply to an honest request and what is changed in it; `asked` names another kind that was asked for."""

    kind: str = "cache"
    asked: str = ""
    layout: str = "full"
    codec: str = "raw"
    chunk_bytes: int = 512
    head: Json = field(default_factory=dict)
    sealed: Json = field(default_factory=dict)
    receipt: Json = field(default_factory=dict)
    contents: bytes | None = None
    frames: list[bytes] | None = None
    block: bytes | None = None
    block_fill: bytes = b"\x00"
    content_key: bytes = CONTENT_KEY
    key: Ed25519PrivateKey = RECEIPT
    receipt_key: Ed25519PrivateKey = RECEIPT
    direction: int = ref.REPLY
    tweaks: Tweaks = NO_TWEAKS
    encode_head: Callable[[Json], bytes] = ref.canonical
    encode_sealed: Callable[[Json], bytes] = ref.canonical
    change_chunks: Callable[[Chunks], Chunks] = list
    change_body: Callable[[bytes], bytes] = bytes

    @property
    def request(self) -> RequestCase:
        """The honest request that this answers."""
        is_decode = (self.asked or self.kind) == "tokens"
        sealed = {} if self.codec == "raw" else {"codec": self.codec}
        return RequestCase(kind="decode" if is_decode else "prefill", layout=self.layout, sealed=sealed)

    def sealed_manifest(self) -> Json:
        is_cache, is_refusal = self.kind == "cache", self.kind == "refusal"
        refusal = {"code": "model_mismatch", "fields": {"weights_sha256_cloud": "a" * 64}}
        honest: dict[str, Any] = {
            "version": 1,
            "kind": self.kind,
            "request_manifest_sha256": self.request.sealed_digest.hex(),
            "codec": self.codec,
            "artefact_sha256": None,
            "model": None if is_refusal else MODEL,
            "numerics": None if is_refusal else NUMERICS,
            "tokens": {"true": TRUE_TOKENS, "padded": PADDED_TOKENS} if is_cache else None,
            "cache": {"layers": LAYOUTS[self.layout]} if is_cache else None,
            "coded_bytes": None,
            "frames": len(self._frames()) if self.kind == "tokens" else 0,
            "refusal": refusal if is_refusal else None,
        }
        return merged(honest, self.sealed)

    def receipt_body(self) -> Json:
        request = self.request
        done = {"cache": [("prefilled", TRUE_TOKENS)], "tokens": [("decoded", len(ANSWER))], "refusal": []}[self.kind]
        end = [("refused", 1)] if self.kind == "refusal" else [("opened", 1), *done, ("erased", 1)]
        body = {
            "version": 1,
            "transfer_id": TRANSFER_ID.hex(),
            "manifest_sha256": request.manifest_digest.hex(),
            "ciphertext_root": ref.ciphertext_root(request.chunks()).hex(),
            "replica_id": REPLICA_ID,
            "keyset_digest": KEYSET_DIGEST.hex(),
            "protection": "sealed",
            "log_checkpoint": ref.sha256(b"checkpoint").hex(),
            "served_at": NOW,
            "events": [{"event": name, "count": count} for name, count in [("received", len(request.chunks())), *end]],
        }
        return merged(body, self.receipt)

    def _frames(self) -> list[bytes]:
        return frames_of(ANSWER) if self.frames is None else self.frames

    def _contents(self) -> bytes:
        if self.contents is not None:
            return self.contents
        if self.kind == "refusal":
            return b""
        return cache_contents(self.layout) if self.kind == "cache" else b"".join(self._frames())

    def _block(self) -> bytes:
        if self.block is not None:
            return self.block
        body = self.receipt_body()
        signature = ref.sign(self.receipt_key, "receipt", ref.canonical(body)).hex()
        return ref.receipt_region({"body": body, "signature": signature}, fill=self.block_fill)

    def body(self, _wraps: Wraps) -> bytes:
        digest = self.request.manifest_digest
        keys = ref.stream_keys(self.content_key, direction=self.direction, manifest_digest=digest, nonce=REPLY_NONCE)
        head = {
            "version": 1,
            "transfer_id": TRANSFER_ID.hex(),
            "chunk_bytes": self.chunk_bytes,
            "stream_nonce": REPLY_NONCE.hex(),
            "commitment": keys.commitment.hex(),
        }
        stream = ref.Stream(
            keys=keys,
            direction=self.direction,
            transfer_id=TRANSFER_ID,
            manifest_digest=digest,
            chunk_bytes=self.chunk_bytes,
            key=self.key,
            tweaks=replace(self.tweaks, trailer_purpose=self.tweaks.trailer_purpose or "reply-trailer"),
        )
        chunks = stream.seal(self.encode_sealed(self.sealed_manifest()), self._contents() + self._block())
        head_bytes = self.encode_head(merged(head, self.head))
        return self.change_body(ref.prefixed(head_bytes) + b"".join(self.change_chunks(chunks)))
