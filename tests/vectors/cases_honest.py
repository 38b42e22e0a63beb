"""The honest vectors, of which every other one is a change."""

from __future__ import annotations

from dataclasses import replace

import reference as ref
import world
from vector import Vector
from world import (
    KeysetCase,
    ReplyCase,
    RequestCase,
)

PREFILL, DECODE = RequestCase(), RequestCase(kind="decode")

CACHE, TOKENS = ReplyCase(), ReplyCase(kind="tokens")

REFUSAL = ReplyCase(kind="refusal")

SLIDING = replace(DECODE, layout="sliding")

STATES = replace(DECODE, layout="states")


def lossless(slabs: list[bytes], coded_bytes: int | None = None) -> ReplyCase:
    """Return a cache reply in codec `lossless` of these slabs, each behind its length."""
    data = b"".join(slabs)
    coded = ref.padme(len(data)) if coded_bytes is None else coded_bytes
    return replace(CACHE, codec="lossless", sealed={"coded_bytes": coded}, contents=data.ljust(coded, b"\x00"))


HONEST = [
    Vector(None, "prefill-request", PREFILL, "Token ids go up to be prefilled; accepted."),
    Vector(
        None,
        "prefill-request-public",
        replace(PREFILL, sealed={"public": True}),
        "The same ids, all of public text, whose cache the cloud may keep for this device; accepted.",
    ),
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
    Vector(
        None,
        "decode-request-states",
        STATES,
        "Every rule of rows: fixed states, compressed entries, indexer keys, a layer of nothing; accepted.",
    ),
    Vector(None, "cache-reply-states", replace(CACHE, layout="states"), "The same as a reply; accepted."),
    Vector(
        None,
        "cache-reply-lossless",
        lossless(world.lossless_slabs("full")),
        "The same cache compressed without loss, padded to its size class; accepted.",
    ),
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

VECTORS = [*HONEST]
