"""Vectors of checks 11 to 13: chunks, their number and order, trailers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import reference as ref
import world
from cases_honest import CACHE, DECODE, PREFILL, REFUSAL, TOKENS
from reference import Tweaks
from vector import Vector
from world import (
    STRANGER,
    Chunks,
    RequestCase,
)


def _flipped(index: int, at: int = 100) -> Callable[[Chunks], Chunks]:
    def change(chunks: Chunks) -> Chunks:
        chunk = bytearray(chunks[index])
        chunk[at] ^= 1
        chunks[index] = bytes(chunk)
        return chunks

    return change


def _swapped(first: int, second: int) -> Callable[[Chunks], Chunks]:
    def change(chunks: Chunks) -> Chunks:
        chunks[first], chunks[second] = chunks[second], chunks[first]
        return chunks

    return change


def _spliced(other: Callable[[], Chunks], index: int) -> Callable[[Chunks], Chunks]:
    return lambda chunks: [*chunks[:index], other()[index], *chunks[index + 1 :]]


def _request_chunks() -> Chunks:
    """Return the request's own chunks, of the size of the reply's."""
    return RequestCase(chunk_bytes=512).chunks()


def _other_transfer() -> Chunks:
    return replace(DECODE, public={"transfer_id": world.OTHER_TRANSFER_ID.hex()}).chunks()


TAGS = [
    Vector(
        11,
        "first-chunk-flipped",
        replace(PREFILL, change_chunks=_flipped(0)),
        "One bit of the chunk with the sealed manifest was flipped.",
    ),
    Vector(
        11,
        "content-chunk-flipped",
        replace(DECODE, change_chunks=_flipped(10)),
        "One bit of a chunk with cache rows was flipped; a wrong cache would give a wrong answer without a word.",
    ),
    Vector(
        11,
        "final-chunk-flipped",
        replace(PREFILL, change_chunks=_flipped(-1)),
        "One bit of the final chunk was flipped.",
    ),
    Vector(
        11,
        "tag-flipped",
        replace(DECODE, change_chunks=_flipped(9, at=-1)),
        "One bit of a tag was flipped.",
    ),
    Vector(
        11,
        "chunks-swapped",
        replace(DECODE, change_chunks=_swapped(9, 10)),
        "Two chunks changed places; rows would land in other rows' places.",
    ),
    Vector(
        11,
        "chunk-duplicated",
        replace(DECODE, change_chunks=lambda chunks: [*chunks[:10], chunks[9], *chunks[10:]]),
        "One chunk stands twice.",
    ),
    Vector(
        11,
        "chunk-dropped",
        replace(DECODE, change_chunks=lambda chunks: chunks[:9] + chunks[10:]),
        "A chunk in the middle is missing.",
    ),
    Vector(
        11,
        "first-chunk-dropped",
        replace(DECODE, change_chunks=lambda chunks: chunks[1:]),
        "The first chunk is missing.",
    ),
    Vector(
        11,
        "final-flag-on-the-last-but-one",
        replace(DECODE, tweaks=Tweaks(final_index=15)),
        "The flag of the final chunk stands on the one before; a stream could end there.",
    ),
    Vector(
        11,
        "final-flag-missing",
        replace(DECODE, tweaks=Tweaks(final_index=-1)),
        "No chunk is flagged final.",
    ),
    Vector(
        11,
        "final-flag-on-the-first",
        replace(PREFILL, tweaks=Tweaks(final_index=0)),
        "The flag of the final chunk stands on the manifest's; a manifest must not be a whole stream.",
    ),
    Vector(
        11,
        "indices-from-one",
        replace(DECODE, tweaks=Tweaks(first_index=1)),
        "The chunks are sealed under indices from 1.",
    ),
    Vector(
        11,
        "chunks-in-the-other-direction",
        replace(DECODE, tweaks=Tweaks(aad_direction=ref.REPLY)),
        "The chunks name the other direction in what they authenticate.",
    ),
    Vector(
        11,
        "chunk-of-another-transfer",
        replace(DECODE, change_chunks=_spliced(_other_transfer, 10)),
        "A chunk of another transfer of the same device was put in.",
    ),
    Vector(
        11,
        "stream-under-another-content-key",
        replace(
            PREFILL,
            stream_content_key=world.OTHER_CONTENT_KEY,
            head={
                "commitment": ref.stream_keys(
                    world.CONTENT_KEY,
                    direction=ref.REQUEST,
                    manifest_digest=PREFILL.manifest_digest,
                    nonce=world.REQUEST_NONCE,
                ).commitment.hex()
            },
        ),
        "Wrap and commitment agree, but the chunks are sealed under another key.",
    ),
    Vector(
        11,
        "reply-chunk-flipped",
        replace(CACHE, change_chunks=_flipped(9)),
        "One bit of a returned cache was flipped.",
    ),
    Vector(
        11,
        "request-chunks-spliced-into-the-reply",
        replace(CACHE, change_chunks=_spliced(_request_chunks, 0)),
        "The device's own first chunk comes back as the reply's.",
    ),
    Vector(
        11,
        "frame-flipped",
        replace(TOKENS, change_chunks=_flipped(9)),
        "One bit of the second token's frame was flipped; the first token stands, the answer is incomplete.",
    ),
    Vector(
        11,
        "frames-swapped",
        replace(TOKENS, change_chunks=_swapped(8, 9)),
        "Two frames changed places; the answer's words would.",
    ),
    Vector(
        11,
        "reply-chunk-size-halved",
        replace(CACHE, chunk_bytes=4096, head={"chunk_bytes": 512}),
        "The reply's head, which nobody signs, names another chunk size than the stream was cut in.",
    ),
]

COUNT = [
    Vector(
        12,
        "final-chunk-missing",
        replace(DECODE, change_chunks=lambda chunks: chunks[:-1]),
        "The stream ends one chunk early; what came is not used.",
    ),
    Vector(
        12,
        "ends-within-a-chunk",
        replace(DECODE, change_body=lambda body: body[:-1]),
        "The last byte is missing.",
    ),
    Vector(12, "ends-after-the-head", replace(PREFILL, change_chunks=lambda _: []), "A head without a stream."),
    Vector(12, "ends-within-the-head", replace(PREFILL, change_body=lambda body: body[:100]), "Half a head."),
    Vector(12, "empty-body", replace(PREFILL, change_body=lambda _: b""), "Nothing at all."),
    Vector(
        12,
        "ends-after-the-manifest",
        replace(DECODE, change_chunks=lambda chunks: chunks[:8]),
        "The manifest came, the cache did not.",
    ),
    Vector(
        12,
        "one-byte-after-the-end",
        replace(DECODE, change_body=lambda body: body + b"\x00"),
        "A byte follows the final chunk; nothing may ride along unread.",
    ),
    Vector(
        12,
        "a-chunk-after-the-end",
        replace(DECODE, change_chunks=lambda chunks: [*chunks, chunks[-1]]),
        "The final chunk comes twice.",
    ),
    Vector(
        12,
        "trailer-states-another-count",
        replace(DECODE, tweaks=Tweaks(trailer_count=18)),
        "The signed count is not the number of chunks.",
    ),
    Vector(
        12,
        "reply-without-its-final-chunk",
        replace(CACHE, change_chunks=lambda chunks: chunks[:-1]),
        "A returned cache without its end.",
    ),
    Vector(
        12,
        "reply-goes-on",
        replace(CACHE, change_body=lambda body: body + b"\x00"),
        "A byte follows the reply's final chunk.",
    ),
    Vector(
        12,
        "frames-cut-off",
        replace(TOKENS, change_chunks=lambda chunks: chunks[:10]),
        "Two frames came; a closed connection is never the end of an answer.",
    ),
    Vector(
        12,
        "missing-end-frame",
        replace(TOKENS, frames=world.frames_of(world.ANSWER)[:3] + [ref.frame(0)] * 14),
        "Padding follows the last token without an end frame; the answer may be shorter than it was.",
    ),
    Vector(
        12,
        "padding-before-the-end",
        replace(TOKENS, frames=[ref.frame(0), *world.frames_of(world.ANSWER)[:-1]]),
        "A pad frame stands before the first token; padding comes after the end only.",
    ),
]

TRAILER = [
    Vector(
        13,
        "trailer-signed-by-another-key",
        replace(PREFILL, tweaks=Tweaks(trailer_key=STRANGER)),
        "Whoever holds the content key could seal another end; only the device can sign one.",
    ),
    Vector(
        13,
        "trailer-over-another-root",
        replace(DECODE, tweaks=Tweaks(trailer_root=ref.sha256(b"other"))),
        "The device signed other chunks than these.",
    ),
    Vector(
        13,
        "trailer-over-another-manifest",
        replace(PREFILL, tweaks=Tweaks(trailer_manifest_digest=ref.sha256(b"other"))),
        "The device signed the end of another transfer.",
    ),
    Vector(
        13,
        "trailer-of-another-purpose",
        replace(PREFILL, tweaks=Tweaks(trailer_purpose="request")),
        "The signature is under another context.",
    ),
    Vector(
        13,
        "reply-trailer-signed-by-another-key",
        replace(CACHE, key=STRANGER),
        "Not the receipt key of the keyset that was sealed to.",
    ),
    Vector(
        13,
        "reply-trailer-of-the-request-purpose",
        replace(CACHE, tweaks=Tweaks(trailer_purpose="request-trailer")),
        "A reply ends with the signature of a request.",
    ),
    Vector(
        13,
        "token-reply-trailer-signed-by-another-key",
        replace(TOKENS, key=STRANGER),
        "All frames verified, the end does not; the answer is incomplete.",
    ),
    Vector(
        13,
        "refusal-trailer-signed-by-another-key",
        replace(REFUSAL, key=STRANGER),
        "A sealed refusal is believed only with the recipient's signature.",
    ),
]

VECTORS = [*TAGS, *COUNT, *TRAILER]
