"""Vectors of the two calls by which a broken transfer goes on, about the honest prefill of which one chunk had come."""

from __future__ import annotations

from dataclasses import replace

from vector import Vector
from world import OTHER_SERVER_NONCE, OTHER_TRANSFER_ID, SERVER_NONCE, STRANGER, Chunks, ResumeCase

STATE, RESUME = ResumeCase("state"), ResumeCase("resume")


def _flipped(chunks: Chunks) -> Chunks:
    return [bytes([chunks[0][0] ^ 1]) + chunks[0][1:], *chunks[1:]]


HONEST = [
    Vector(None, "state-query", STATE, "How far is the transfer? One chunk of its request was verified."),
    Vector(
        None, "resume", RESUME, "The rest of the request, from the second chunk on; its reply is that of the whole."
    ),
]

CHANGED = [
    Vector(2, "state-query-version-2", replace(STATE, head={"version": 2}), "A version that is not spoken here."),
    Vector(
        5,
        "state-query-of-an-unknown-keyset",
        replace(STATE, head={"keyset_digest": "0" * 64}),
        "A keyset that is not held here, as after a restart.",
    ),
    Vector(7, "state-query-signed-by-another-key", replace(STATE, key=STRANGER), "A stranger asks about the transfer."),
    Vector(
        7,
        "state-query-signed-as-a-resume",
        replace(STATE, purpose="transfer-resume"),
        "A signature of another purpose, so that neither call can be made from the other.",
    ),
    Vector(
        8,
        "state-query-with-a-spent-nonce",
        replace(STATE, head={"server_nonce": SERVER_NONCE.hex()}),
        "The nonce of the request itself; a query that was overheard must not be asked again.",
    ),
    Vector(7, "resume-signed-by-another-key", replace(RESUME, key=STRANGER), "A stranger goes on with the transfer."),
    Vector(
        7,
        "resume-from-changed-after-signing",
        replace(RESUME, after={"request_from": 0}),
        "The place to go on from was changed on the way.",
    ),
    Vector(
        8,
        "resume-with-a-spent-nonce",
        replace(RESUME, head={"server_nonce": SERVER_NONCE.hex()}),
        "The nonce of the request itself; a resume that was overheard must not run again.",
    ),
    Vector(
        9,
        "resume-of-another-transfer",
        replace(RESUME, head={"transfer_id": OTHER_TRANSFER_ID.hex()}),
        "Nothing of this transfer is held; these chunks belong to another.",
    ),
    Vector(
        9,
        "resume-of-another-manifest",
        replace(RESUME, head={"manifest_sha256": "0" * 64}),
        "The transfer's id with another manifest.",
    ),
    Vector(
        9,
        "resume-with-a-chunk-that-was-verified",
        replace(RESUME, sent_from=0),
        "The first chunk once more; a second ciphertext for it must never be tried.",
    ),
    Vector(
        12,
        "resume-that-leaves-a-chunk-out",
        replace(RESUME, sent_from=2),
        "From the third chunk on, where the second is awaited.",
    ),
    Vector(
        12,
        "resume-of-a-reply-that-was-not-begun",
        replace(RESUME, head={"reply_from": 1}),
        "A later part of the reply, while the request is not whole.",
    ),
    Vector(
        11,
        "resumed-chunk-flipped",
        replace(RESUME, change_chunks=_flipped),
        "One bit of the chunk that went on; it is checked as if it had come at once.",
    ),
    Vector(
        12,
        "resumed-request-goes-on-after-its-end",
        replace(RESUME, change_chunks=lambda chunks: [*chunks, OTHER_SERVER_NONCE]),
        "Bytes behind the final chunk.",
    ),
]

VECTORS = [*HONEST, *CHANGED]
