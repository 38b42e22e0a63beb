"""Vectors of checks 3 to 10: what is wrong with a clear head whose form is right."""

from __future__ import annotations

from dataclasses import replace

import reference as ref
import world
from cases_honest import CACHE, PREFILL, TOKENS
from reference import Json
from vector import Vector
from world import (
    DEVICE,
    NOW,
    STRANGER,
    STRANGER_KEM,
)


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
        "flipped-expires-at",
        replace(PREFILL, after={"manifest": {"expires_at": NOW + 301}}),
        "One bit of the expiry was flipped after signing; it is a second later.",
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
        state={"first": "0000-honest-prefill-request"},
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
        state={"first": "0000-honest-prefill-request"},
    ),
]

REPLAY = [
    Vector(
        9,
        "transfer-id-reused",
        replace(PREFILL, head={"server_nonce": world.OTHER_SERVER_NONCE.hex()}),
        "A fresh nonce, but a transfer id of this device that was seen before; each is executed at most once.",
        state={
            "first": "0000-honest-prefill-request",
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

VECTORS = [*SUITE, *EXPIRY, *KEYSET, *SENDER, *NONCE, *REPLAY, *COMMITMENT]
