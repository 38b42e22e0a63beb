"""Vectors of checks 0 to 10: who the recipient is, and the clear heads of requests and replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import reference as ref
import world
from reference import Json, Tweaks
from vector import Vector
from world import DEVICE, NOW, STRANGER, STRANGER_KEM, KeysetCase, ReplyCase, RequestCase

PREFILL, DECODE = RequestCase(), RequestCase(kind="decode")
CACHE, TOKENS = ReplyCase(), ReplyCase(kind="tokens")

HONEST = [
    Vector(None, "prefill-request", PREFILL, "Token ids go up to be prefilled; accepted."),
    Vector(None, "decode-request", DECODE, "A cache goes up to be decoded from; accepted."),
    Vector(
        None,
        "decode-request-sliding",
        replace(DECODE, layout="sliding"),
        "A cache with a sliding layer: its last 15 true rows come last, padding rows are zero; accepted.",
    ),
    Vector(
        None,
        "decode-request-64-kib-chunks",
        replace(DECODE, chunk_bytes=65536),
        "The same cache in chunks of the size that the device would choose; any size of the table is accepted.",
    ),
    Vector(
        None,
        "decode-request-long-manifest",
        replace(DECODE, sealed={"sampling": {"stop": ["x" * 600] * 8}}),
        "A sealed manifest of more than 4,096 bytes: its region is the next multiple; accepted.",
    ),
    Vector(None, "cache-reply", CACHE, "A cache comes back with its receipt; accepted."),
    Vector(None, "cache-reply-sliding", replace(CACHE, layout="sliding"), "The same with a sliding layer; accepted."),
    Vector(None, "tokens-reply", TOKENS, "Token frames, an end frame, padding and a receipt; accepted."),
    Vector(
        None,
        "refusal-reply",
        ReplyCase(kind="refusal"),
        "A sealed refusal of a model mismatch; accepted as one.",
    ),
    Vector(None, "keyset", KeysetCase(), "A keyset of the pinned identity, fresh and not seen before; accepted."),
    Vector(
        None,
        "keyset-seen-before",
        KeysetCase(),
        "The same epoch and generation again are no rollback; accepted.",
        state={"epochs": {world.REPLICA_ID: world.EPOCH}, "generations": {world.PINNED: world.GENERATION}},
    ),
]

IDENTITY = [
    Vector(
        0,
        "keyset-of-another-identity",
        KeysetCase(certificate={"identity": ref.public(STRANGER).hex()}, identity=STRANGER),
        "Another identity certified this replica properly; sealing to it would hand the prompt to a stranger.",
    ),
    Vector(
        0,
        "certificate-signed-by-another-key",
        KeysetCase(identity=STRANGER),
        "The certificate names the pinned identity, but a stranger signed it.",
    ),
    Vector(
        0,
        "keyset-signed-by-another-replica",
        KeysetCase(replica=STRANGER),
        "A true certificate stands over a keyset that another key signed; its KEM key would be a stranger's.",
    ),
    Vector(
        0,
        "kem-key-replaced",
        KeysetCase(reply={"keyset": {"kem_public_key": STRANGER_KEM.public.hex()}}),
        "The KEM key was replaced after signing; the content key would go to whoever did that.",
    ),
    Vector(
        0,
        "certificate-signature-of-another-purpose",
        KeysetCase(certificate_purpose="keyset"),
        "The identity's signature is under another context; a signature must not be read as another kind.",
    ),
    Vector(
        0,
        "keyset-signature-of-another-purpose",
        KeysetCase(keyset_purpose="receipt"),
        "The replica's signature is under another context; a signature must not be read as another kind.",
    ),
]


def _spaced(head: Json) -> bytes:
    return ref.canonical(head).replace(b'":', b'": ', 1)


def _reversed(head: Json) -> bytes:
    body = b",".join(ref.canonical({name: head[name]})[1:-1] for name in sorted(head, reverse=True))
    return b"{" + body + b"}"


def _doubled(head: Json) -> bytes:
    first = ref.canonical({"commitment": head["commitment"]})[1:-1]
    return b"{" + first + b"," + ref.canonical(head)[1:]


def _declare(size: int) -> Callable[[bytes], bytes]:
    return lambda body: ref.u32(size) + body[4:]


LIMITS = [
    Vector(
        1,
        "head-declares-more-than-16-kib",
        replace(PREFILL, change_body=_declare(16 * 1024 + 1)),
        "The head declares more than its limit; it is refused before that much is read.",
    ),
    Vector(
        1,
        "head-declares-4-gib",
        replace(PREFILL, change_body=_declare(2**32 - 1)),
        "The largest length that can be declared must not make the recipient allocate it.",
    ),
    Vector(
        1,
        "chunk-size-not-in-the-table",
        replace(PREFILL, chunk_bytes=1024),
        "A properly signed head with a chunk size outside the closed table.",
    ),
    Vector(
        1,
        "chunk-size-zero",
        replace(PREFILL, after={"manifest": {"chunk_bytes": 0}}),
        "A chunk size of nothing would never end.",
    ),
    Vector(
        1,
        "flipped-chunk-size",
        replace(PREFILL, after={"manifest": {"chunk_bytes": 4097}}),
        "One bit of the chunk size was flipped; it is no longer in the table.",
    ),
    Vector(
        1,
        "sealed-manifest-over-1-mib",
        replace(PREFILL, tweaks=Tweaks(declared_manifest_bytes=2**20 - 3)),
        "The sealed manifest declares one byte more than its limit; an allowed device must not fill memory.",
    ),
    Vector(
        1,
        "reply-head-declares-more-than-16-kib",
        replace(CACHE, change_body=_declare(16 * 1024 + 1)),
        "A reply's head is bounded too; the cloud is not trusted.",
    ),
    Vector(
        1,
        "reply-chunk-size-not-in-the-table",
        replace(CACHE, head={"chunk_bytes": 1024}),
        "A reply with a chunk size outside the closed table.",
    ),
    Vector(
        1,
        "frame-declares-more-than-it-holds",
        replace(TOKENS, frames=[b"\x01\x01\xfe" + bytes(509), *world.frames_of(world.ANSWER)[1:]]),
        "A frame declares 510 bytes of payload and holds 509; reading on would take bytes of the next frame.",
    ),
]


def _flip(name: str, check: int, sentence: str) -> Vector:
    """Flip the last hex digit of a member of the head after it was signed."""
    slug = f"flipped-{name.rpartition('.')[-1].replace('_', '-')}"
    path = name.split(".")

    def encode(head: Json) -> bytes:
        holder = head[path[0]] if len(path) == 2 else head
        value = holder[path[-1]]
        change: Json = {path[-1]: value[:-1] + format(int(value[-1], 16) ^ 1, "x")}
        return ref.canonical(world.merged(head, {path[0]: change} if len(path) == 2 else change))

    return Vector(check, slug, replace(PREFILL, encode_head=encode), sentence)


VERSION = [
    Vector(
        2,
        "flipped-version",
        replace(PREFILL, after={"manifest": {"version": 0}}),
        "One bit of the version was flipped; there is no version 0.",
    ),
    Vector(
        2,
        "version-2",
        replace(PREFILL, public={"version": 2}),
        "A properly signed head of a later version; its rules are unknown here.",
    ),
    Vector(
        2,
        "unknown-field-in-the-head",
        replace(PREFILL, head={"comment": ""}),
        "An unknown member of the head; what is not understood is refused, never skipped.",
    ),
    Vector(
        2,
        "unknown-field-in-the-public-manifest",
        replace(PREFILL, public={"model": "0" * 64}),
        "The public manifest says more than it may: a member about the model would leak what is sealed.",
    ),
    Vector(
        2,
        "missing-field-in-the-head",
        replace(PREFILL, head={"commitment": ...}),
        "Without a commitment a wrap could open to several keys.",
    ),
    Vector(
        2,
        "head-with-white-space",
        replace(PREFILL, encode_head=_spaced),
        "The same head with one space; two encodings of one head would have two digests.",
    ),
    Vector(
        2,
        "head-members-out-of-order",
        replace(PREFILL, encode_head=_reversed),
        "The same head with its members in another order.",
    ),
    Vector(
        2,
        "duplicate-key-in-the-head",
        replace(PREFILL, encode_head=_doubled),
        "A member stands twice; two parsers could each read another one.",
    ),
    Vector(
        2,
        "upper-case-hexadecimal",
        replace(PREFILL, encode_head=lambda head: ref.canonical({**head, "commitment": head["commitment"].upper()})),
        "Upper-case digits are another encoding of the same bytes.",
    ),
    Vector(
        2,
        "boolean-for-an-integer",
        replace(PREFILL, public={"version": True}),
        "true is not 1, though some languages say so.",
    ),
    Vector(
        2,
        "string-for-an-integer",
        replace(PREFILL, public={"expires_at": str(NOW + 300)}),
        "Digits in a string are no integer.",
    ),
    Vector(
        2,
        "fraction-for-an-integer",
        replace(PREFILL, encode_head=lambda head: ref.canonical(head).replace(b'"version":1', b'"version":1.0')),
        "1.0 is not the canonical form of 1.",
    ),
    Vector(
        2,
        "byte-order-mark-before-the-head",
        replace(PREFILL, encode_head=lambda head: b"\xef\xbb\xbf" + ref.canonical(head)),
        "A byte order mark is not canonical JSON.",
    ),
    Vector(2, "head-is-not-an-object", replace(PREFILL, encode_head=lambda _: b"[]"), "An array is no head."),
    Vector(2, "head-is-not-json", replace(PREFILL, encode_head=lambda _: b"\xff\xfe"), "Bytes that are not UTF-8."),
    Vector(2, "empty-head", replace(PREFILL, encode_head=lambda _: b""), "A head of no bytes."),
    Vector(
        2,
        "reply-version-2",
        replace(CACHE, head={"version": 2}),
        "A reply head of a later version; its rules are unknown here.",
    ),
    Vector(
        2,
        "keyset-version-2",
        KeysetCase(keyset={"version": 2}),
        "A properly signed keyset of a later version.",
    ),
    Vector(
        2,
        "unknown-field-in-the-keyset",
        KeysetCase(keyset={"evidence": ""}),
        "A keyset with a member that this version does not know, properly signed.",
    ),
]

SUITE = [
    Vector(
        3,
        "flipped-suite",
        replace(PREFILL, after={"manifest": {"suite": ref.SUITE[:-1] + "2"}}),
        "One bit of the suite was flipped.",
    ),
    Vector(
        3,
        "another-suite",
        replace(PREFILL, public={"suite": "x25519-hkdf-sha256-aes128gcm-sha256"}),
        "A properly signed head with another suite; there is one, so that none can be negotiated down.",
    ),
]

EXPIRY = [
    Vector(4, "expired", replace(PREFILL, public={"expires_at": NOW - 1}), "The transfer expired a second ago."),
    Vector(
        4,
        "expires-now",
        replace(PREFILL, public={"expires_at": NOW}),
        "A transfer is dead in the second of its expiry.",
    ),
    Vector(
        4,
        "expires-too-late",
        replace(PREFILL, public={"expires_at": NOW + 601}),
        "It would be valid for longer than the recipient remembers transfer ids.",
    ),
]

KEYSET = [
    _flip("manifest.keyset_digest", 5, "One bit of the keyset digest was flipped; no keyset has this digest."),
    Vector(
        5,
        "sealed-to-an-unknown-keyset",
        replace(
            PREFILL,
            public={
                "keyset_digest": "0" * 64,
                "sender_id": ref.sender_id(bytes(32), ref.public(DEVICE)),
            },
        ),
        "Sealed to a keyset that is not held here, as after a restart or its expiry.",
    ),
]

EPOCH_VECTORS = [
    Vector(
        6,
        "lower-epoch",
        KeysetCase(),
        "A keyset older than one seen before of this replica: a replay, perhaps of a key since stolen.",
        state={"epochs": {world.REPLICA_ID: world.EPOCH + 1}},
    ),
    Vector(
        6,
        "retired-generation",
        KeysetCase(),
        "The identity has certified a later generation since; this one was retired.",
        state={"generations": {world.PINNED: world.GENERATION + 1}},
    ),
    Vector(
        6,
        "expired-certificate",
        KeysetCase(certificate={"not_after": NOW}, keyset={"not_after": NOW}),
        "The replica's certificate has expired.",
    ),
    Vector(
        6,
        "certificate-valid-for-too-long",
        KeysetCase(certificate={"not_after": NOW + 25 * 3600 + 1}),
        "A certificate for longer than a day could not be revoked in time.",
    ),
    Vector(6, "expired-keyset", KeysetCase(keyset={"not_after": NOW}), "The keyset has expired."),
    Vector(
        6,
        "keyset-not-yet-valid",
        KeysetCase(keyset={"not_before": NOW + 1}),
        "The keyset is of the future: one of the clocks is wrong.",
    ),
    Vector(
        6,
        "keyset-outlives-its-certificate",
        KeysetCase(certificate={"not_after": NOW + 3000}),
        "The keyset would be valid when its certificate no longer is.",
    ),
]

SENDER = [
    _flip("manifest.transfer_id", 7, "One bit of the transfer id was flipped after signing."),
    _flip("manifest.sender_id", 7, "One bit of the sender id was flipped; it is nobody's."),
    _flip("wrap", 7, "One bit of the wrap was flipped after signing."),
    _flip("stream_nonce", 7, "One bit of the stream nonce was flipped after signing."),
    _flip("commitment", 7, "One bit of the commitment was flipped after signing."),
    _flip("server_nonce", 7, "One bit of the server nonce was flipped after signing; the nonce stays unspent."),
    _flip("signature", 7, "One bit of the signature was flipped."),
    Vector(
        7,
        "expiry-changed-after-signing",
        replace(PREFILL, after={"manifest": {"expires_at": NOW + 301}}),
        "The expiry was put off by a second after signing.",
    ),
    Vector(
        7,
        "chunk-size-changed-after-signing",
        replace(PREFILL, after={"manifest": {"chunk_bytes": 512}}),
        "Another chunk size of the table was put in after signing.",
    ),
    Vector(
        7,
        "sender-not-allowed",
        replace(PREFILL, device=STRANGER),
        "A device that nobody allowed; it signed properly with its own key.",
    ),
    Vector(
        7,
        "signed-by-another-key",
        replace(PREFILL, head_key=STRANGER),
        "It says that it comes from an allowed device, but a stranger signed it.",
    ),
    Vector(
        7,
        "signature-of-another-purpose",
        replace(PREFILL, head_purpose="request-trailer"),
        "The device's signature is under another context; a signature must not be read as another kind.",
    ),
    Vector(
        7,
        "signature-all-zero",
        replace(PREFILL, after={"signature": "0" * 128}),
        "The place of the signature was left as it is while signing.",
    ),
]

NONCE = [
    Vector(
        8,
        "nonce-never-issued",
        replace(PREFILL, head={"server_nonce": world.OTHER_SERVER_NONCE.hex()}),
        "The server nonce was never handed out; the request may have been made long ago.",
    ),
    Vector(
        8,
        "nonce-reused",
        replace(PREFILL, public={"transfer_id": world.OTHER_TRANSFER_ID.hex()}),
        "Another transfer under a nonce that was spent before.",
        state={"first": "000-honest-prefill-request"},
    ),
    Vector(
        8,
        "nonce-older-than-60-seconds",
        PREFILL,
        "The nonce was handed out 61 seconds ago.",
        state={"nonces": {world.SERVER_NONCE.hex(): NOW - 61}},
    ),
    Vector(
        8,
        "whole-request-replayed",
        PREFILL,
        "The same bytes a second time; a prompt must not be run twice for whoever recorded it.",
        state={"first": "000-honest-prefill-request"},
    ),
]

REPLAY = [
    Vector(
        9,
        "transfer-id-reused",
        replace(PREFILL, head={"server_nonce": world.OTHER_SERVER_NONCE.hex()}),
        "A fresh nonce, but a transfer id of this device that was seen before; each is executed at most once.",
        state={
            "first": "000-honest-prefill-request",
            "nonces": {world.OTHER_SERVER_NONCE.hex(): NOW},
        },
    ),
    Vector(
        9,
        "reply-for-another-transfer",
        replace(CACHE, head={"transfer_id": world.OTHER_TRANSFER_ID.hex()}),
        "The reply's head names another transfer.",
    ),
    Vector(
        9,
        "reply-to-another-request-manifest",
        replace(CACHE, sealed={"request_manifest_sha256": "0" * 64}),
        "Sealed under the right key, but in answer to another sealed manifest than was sent.",
    ),
    Vector(
        9,
        "tokens-for-another-request-manifest",
        replace(TOKENS, sealed={"request_manifest_sha256": ref.sha256(b"other").hex()}),
        "Token frames in answer to another sealed manifest than was sent.",
    ),
]

COMMITMENT = [
    Vector(
        10,
        "commitment-of-another-key",
        replace(PREFILL, head={"commitment": ref.sha256(b"other").hex()}),
        "A properly signed head whose commitment is to other keys; without this check a stream could open under two.",
    ),
    Vector(
        10,
        "wrap-to-another-key",
        replace(PREFILL, wrap_to=STRANGER_KEM),
        "The content key is wrapped to somebody else's KEM key.",
    ),
    Vector(
        10,
        "wrap-of-another-content-key",
        replace(PREFILL, wrapped_key=world.OTHER_CONTENT_KEY),
        "The wrap opens, to a content key that is not the stream's.",
    ),
    Vector(
        10,
        "wrap-under-another-manifest",
        replace(PREFILL, wrap_info=ref.wrap_info(ref.sha256(b"other"))),
        "The wrap is bound to another public manifest, as if taken from another transfer.",
    ),
    Vector(
        10,
        "wrap-of-zeros",
        replace(PREFILL, head={"wrap": "00" * 1168}),
        "A wrap of zeros opens to nothing.",
    ),
    Vector(
        10,
        "reply-under-another-content-key",
        replace(CACHE, content_key=world.OTHER_CONTENT_KEY),
        "The reply is sealed under a content key that the device did not send.",
    ),
    Vector(
        10,
        "reply-in-the-request-direction",
        replace(CACHE, direction=ref.REQUEST),
        "The reply is sealed with keys of the request's direction; a stream must not be turned round.",
    ),
    Vector(
        10,
        "reply-nonce-changed",
        replace(CACHE, head={"stream_nonce": ref.sha256(b"other").hex()}),
        "The reply's stream nonce was changed; it gives other keys.",
    ),
]

VECTORS = [
    *HONEST,
    *IDENTITY,
    *LIMITS,
    *VERSION,
    *SUITE,
    *EXPIRY,
    *KEYSET,
    *EPOCH_VECTORS,
    *SENDER,
    *NONCE,
    *REPLAY,
    *COMMITMENT,
]
