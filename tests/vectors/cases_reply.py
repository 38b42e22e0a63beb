"""Vectors of replies that are well sealed but not what was asked for, and of receipts that disagree."""

from __future__ import annotations

from dataclasses import replace

import reference as ref
import world
from cases_honest import CACHE, REFUSAL, TOKENS
from vector import Vector
from world import (
    STRANGER,
)

ASKED = [
    Vector(
        15,
        "cache-where-tokens-were-asked-for",
        replace(CACHE, asked="tokens"),
        "A cache in answer to a decode request.",
        is_whole=True,
    ),
    Vector(
        15,
        "tokens-where-a-cache-was-asked-for",
        replace(TOKENS, asked="cache"),
        "Token frames in answer to a prefill request.",
        is_whole=True,
    ),
    Vector(
        15,
        "more-frames-than-asked-for",
        replace(TOKENS, frames=world.frames_of(world.ANSWER, max_new_tokens=32)),
        "33 frames for 8 new tokens; the device would read on for as long as the cloud likes.",
        is_whole=True,
    ),
    Vector(
        15,
        "fewer-frames-than-asked-for",
        replace(TOKENS, frames=world.frames_of(world.ANSWER)[:4]),
        "4 frames for 8 new tokens; the length of the answer would show.",
        is_whole=True,
    ),
    Vector(
        15,
        "answer-token-outside-the-vocabulary",
        replace(TOKENS, frames=world.frames_of([*world.ANSWER, world.VOCABULARY])),
        "The fourth token does not exist.",
        is_whole=True,
    ),
    Vector(
        15,
        "more-tokens-than-asked-for",
        replace(TOKENS, frames=world.frames_of([*world.ANSWER, *range(6)])),
        "9 tokens where 8 were asked for; the bucket of frames has room for 16.",
        is_whole=True,
    ),
    Vector(
        15,
        "more-tokens-than-asked-for-in-one-frame",
        replace(TOKENS, frames=[ref.frame(1, bytes(4 * 127)), *world.frames_of([])[:16]]),
        "One frame holds 127 tokens where 8 were asked for.",
        is_whole=True,
    ),
]

RECEIPT_FIELDS = {
    "transfer_id": world.OTHER_TRANSFER_ID.hex(),
    "manifest_sha256": ref.sha256(b"other").hex(),
    "ciphertext_root": ref.sha256(b"other").hex(),
    "replica_id": world.OTHER_TRANSFER_ID.hex(),
    "keyset_digest": ref.sha256(b"other").hex(),
    "protection": "none",
    "log_checkpoint": ref.sha256(b"other").hex(),
}

DISAGREEING = [
    Vector(
        0,
        "receipt-signed-by-another-key",
        replace(CACHE, receipt_key=STRANGER),
        "A true stream carries a receipt that somebody else signed; it would prove nothing.",
        error="authentication",
        is_whole=True,
    ),
    *[
        Vector(
            0,
            f"receipt-of-another-{name.replace('_', '-')}",
            replace(CACHE, receipt={name: value}),
            f"The receipt is signed, but its {name} is not the device's own; the cache is not used.",
            error="verification",
            is_whole=True,
        )
        for name, value in RECEIPT_FIELDS.items()
    ],
    Vector(
        0,
        "token-receipt-of-another-ciphertext-root",
        replace(TOKENS, receipt={"ciphertext_root": ref.sha256(b"other").hex()}),
        "The answer is whole, but the receipt is for other chunks than were sent.",
        error="verification",
        is_whole=True,
    ),
    Vector(
        0,
        "refusal-receipt-signed-by-another-key",
        replace(REFUSAL, receipt_key=STRANGER),
        "A true refusal carries a receipt that somebody else signed.",
        error="authentication",
        is_whole=True,
    ),
    Vector(
        0,
        "refusal-receipt-of-another-transfer",
        replace(REFUSAL, receipt={"transfer_id": world.OTHER_TRANSFER_ID.hex()}),
        "A true refusal carries the receipt of another transfer.",
        error="verification",
        is_whole=True,
    ),
]

VECTORS = [*DISAGREEING, *ASKED]
