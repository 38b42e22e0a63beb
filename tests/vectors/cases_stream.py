"""Vectors of checks 11 to 17, and of check 2 inside the streams: chunks, trailers, sealed manifests, contents."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import reference as ref
import world
from cases_head import CACHE, DECODE, PREFILL, TOKENS
from reference import Json, Tweaks
from vector import Vector
from world import LAYOUTS, PADDED_TOKENS, STRANGER, TOKEN_IDS, TRUE_TOKENS, Chunks, ReplyCase, RequestCase

REFUSAL = ReplyCase(kind="refusal")
SLIDING = replace(DECODE, layout="sliding")


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


def _block(receipt: bytes) -> bytes:
    return ref.prefixed(receipt).ljust(ref.RECEIPT_BYTES, b"\x00")


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

FORM = [
    Vector(
        2,
        "sealed-version-2",
        replace(PREFILL, sealed={"version": 2}),
        "The sealed manifest is of a later version than the head.",
    ),
    Vector(2, "sealed-unknown-kind", replace(PREFILL, sealed={"kind": "embed"}), "A kind that this version lacks."),
    Vector(
        2,
        "sealed-unknown-field",
        replace(PREFILL, sealed={"priority": 1}),
        "An unknown member of the sealed manifest; a later meaning must not be skipped.",
    ),
    Vector(
        2,
        "sealed-not-canonical",
        replace(PREFILL, encode_sealed=lambda manifest: ref.canonical(manifest) + b" "),
        "White space after the sealed manifest; its digest would be another than the other side's.",
    ),
    Vector(
        2,
        "sealed-missing-field",
        replace(DECODE, sealed={"sampling": ...}),
        "Members are there, with null where they do not apply.",
    ),
    Vector(
        2,
        "manifest-region-not-padded-with-zeros",
        replace(PREFILL, tweaks=Tweaks(region_fill=b"\x01")),
        "Something other than zeros stands behind the manifest; it would be a place to hide bytes in.",
    ),
    Vector(
        2,
        "stream-not-padded-with-zeros",
        replace(PREFILL, tweaks=Tweaks(tail_fill=b"\x01")),
        "Something other than zeros stands between the contents and the trailer.",
    ),
    Vector(
        2,
        "frames-after-the-end",
        replace(TOKENS, frames=[*world.frames_of(world.ANSWER)[:-1], ref.frame(1, ref.u32(14))]),
        "A token follows the end of the answer.",
    ),
    Vector(
        2,
        "frame-of-an-unknown-kind",
        replace(TOKENS, frames=[ref.frame(9), *world.frames_of(world.ANSWER)[1:]]),
        "A frame kind that this version lacks.",
    ),
    Vector(
        2,
        "frame-not-padded-with-zeros",
        replace(TOKENS, frames=[ref.frame(1, ref.u32(11), fill=b"\x01"), *world.frames_of(world.ANSWER)[1:]]),
        "Something other than zeros stands behind a token.",
    ),
]

RECEIPTS = [
    Vector(
        2,
        "receipt-not-padded-with-zeros",
        replace(CACHE, block=ref.prefixed(b"{}").ljust(ref.RECEIPT_BYTES, b"\x01")),
        "Something other than zeros stands behind the receipt.",
    ),
    Vector(2, "receipt-without-fields", replace(CACHE, block=_block(b"{}")), "A receipt that says nothing."),
    Vector(2, "receipt-version-2", replace(CACHE, receipt={"version": 2}), "A receipt of a later version."),
    Vector(
        2,
        "receipt-longer-than-its-block",
        replace(TOKENS, block=ref.u32(2045) + bytes(2044)),
        "The receipt declares more than its block holds.",
    ),
    Vector(
        2,
        "refusal-code-with-control-characters",
        replace(REFUSAL, sealed={"refusal": {"code": "\x1b[2J"}}),
        "What the other side says ends up on a terminal, so a code is lower-case letters only.",
    ),
    Vector(
        2,
        "refusal-field-with-control-characters",
        replace(REFUSAL, sealed={"refusal": {"fields": {"weights_sha256_cloud": "\x1b[2J"}}}),
        "What the other side says ends up on a terminal, so a field is printable only.",
    ),
]

MODEL = [
    Vector(
        14,
        f"{part}-digest-differs{suffix}",
        replace(case, sealed={"model": {f"{part}_sha256": ref.sha256(b"other").hex()}}),
        f"The {part} of the other side's model are not ours: its cache would mean something else here.",
    )
    for case, suffix in ((PREFILL, ""), (CACHE, "-in-the-reply"))
    for part in ("weights", "config", "tokenizer")
]
MODEL += [
    Vector(
        2,
        "reply-without-a-model",
        replace(CACHE, sealed={"model": None}),
        "Only a refusal may leave the model out.",
    ),
    Vector(
        14,
        "weights-digest-differs-in-a-token-reply",
        replace(TOKENS, sealed={"model": {"weights_sha256": ref.sha256(b"other").hex()}}),
        "Another model answered.",
    ),
]


def _cache(change: Json, *, layout: str = "full", runs: list[Json] | None = None) -> Json:
    return {"cache": {"layers": [{**run, **change} for run in runs or LAYOUTS[layout]]}}


def _counts(true: int, padded: int) -> Json:
    return {"tokens": {"true": true, "padded": padded}, "steps": [[0, true]]}


def _slab_with(at: int, token: int) -> bytes:
    slab = bytearray(ref.token_slab(TOKEN_IDS, PADDED_TOKENS))
    slab[4 * at : 4 * at + 4] = ref.u32(token)
    return bytes(slab)


_CACHE_CHANGES: list[tuple[str, Json, str]] = [
    ("layer-count-differs", {"count": 3}, "Three layers for a model of two."),
    ("heads-differ", {"key_heads": 2}, "Two key heads for a model of one."),
    ("dim-differs", {"value_dim": 8}, "Values of 8 columns for a model of 4."),
    ("dtype-differs", {"dtype": "float16"}, "Half as many bytes an element."),
    ("window-on-a-full-layer", {"window": 16}, "A window on layers that have none."),
    ("sliding-for-full", {"kind": "sliding", "window": 16}, "Sliding layers for a model of full ones."),
]
LAYOUT = [
    *[
        Vector(15, slug, replace(DECODE, sealed=_cache(change)), f"{sentence} The slabs would be cut elsewhere.")
        for slug, change, sentence in _CACHE_CHANGES
    ],
    Vector(
        15,
        "many-layers-in-few-bytes",
        replace(DECODE, sealed={"cache": {"layers": [{**world.FULL_RUN, "count": 4096}] * 8}}),
        "Runs of layers that expand to far more than the model has; counted before they are expanded.",
    ),
    Vector(
        15,
        "window-differs",
        replace(
            SLIDING, sealed={"cache": {"layers": [LAYOUTS["sliding"][0], {**LAYOUTS["sliding"][1], "window": 32}]}}
        ),
        "A window of 32 for a model of 16.",
    ),
    Vector(
        15,
        "padded-count-is-not-the-size-class",
        replace(PREFILL, sealed={"tokens": {"padded": 128}}, contents=ref.token_slab(TOKEN_IDS, 128)),
        "128 is a size class, but not that of 21 tokens.",
    ),
    Vector(
        15,
        "padded-count-below-the-true-one",
        replace(PREFILL, sealed={"tokens": {"padded": 16}}, contents=ref.token_slab(TOKEN_IDS[:16], 16)),
        "Fewer rows than tokens.",
    ),
    Vector(
        15,
        "more-tokens-than-positions",
        replace(PREFILL, sealed=_counts(257, 320), contents=bytes(4 * 320)),
        "257 tokens for a model of 256 positions.",
    ),
    Vector(
        15,
        "prompt-and-answer-exceed-the-positions",
        replace(DECODE, sealed={"sampling": {"max_new_tokens": 235}}),
        "21 tokens, the last one and 235 new ones are one more than 256 positions.",
    ),
    *[
        Vector(15, f"steps-{slug}", replace(PREFILL, sealed={"steps": steps}), sentence)
        for slug, steps, sentence in [
            ("overlap", [[0, 16], [15, 21]], "A token would be prefilled twice."),
            ("leave-a-gap", [[0, 15], [16, 21]], "A token would be left out."),
            ("end-early", [[0, 20]], "The last token would be left out."),
            ("end-late", [[0, 22]], "One token more than there is."),
            ("start-late", [[1, 21]], "The first token would be left out."),
            ("are-missing", [], "No steps for 21 tokens."),
            ("hold-an-empty-one", [[0, 16], [16, 16], [16, 21]], "A step of no tokens."),
            ("out-of-order", [[16, 21], [0, 16]], "The steps stand in the wrong order."),
            ("run-backwards", [[0, 21], [21, 16], [16, 21]], "A step that ends before it starts."),
        ]
    ],
    Vector(
        15,
        "prefill-with-a-cache",
        replace(PREFILL, sealed={"cache": {"layers": LAYOUTS["full"]}}),
        "A prefill request that names a cache; what is not asked for is not carried.",
    ),
    Vector(
        15,
        "decode-without-a-cache",
        replace(DECODE, sealed={"cache": None}),
        "A decode request without the layout of its cache.",
    ),
    Vector(
        15,
        "last-token-outside-the-vocabulary",
        replace(DECODE, sealed={"last_token": world.VOCABULARY}),
        "The token to be fed first does not exist; it would index past the embedding.",
    ),
    Vector(
        15,
        "token-id-outside-the-vocabulary",
        replace(PREFILL, contents=_slab_with(3, world.VOCABULARY)),
        "A token id that does not exist; it would index past the embedding.",
    ),
    Vector(
        15,
        "token-padding-is-not-zero",
        replace(PREFILL, contents=_slab_with(TRUE_TOKENS, 1)),
        "A token stands where padding belongs.",
    ),
    Vector(
        15,
        "padding-row-is-not-zero",
        replace(DECODE, contents=world.cache_contents("full", pad=struct.pack("<f", 1.0))),
        "Padding rows of a full layer hold numbers.",
    ),
]
LAYOUT_MORE = [
    Vector(
        15,
        "sliding-padding-row-is-not-zero",
        replace(
            SLIDING,
            sealed={**_counts(10, 64)},
            contents=world.cache_contents("full", true=10)[:2048]
            + world.cache_contents("sliding", true=10, pad=struct.pack("<f", 1.0))[2048:],
        ),
        "10 tokens fill 10 of 15 rows of the window; the others hold numbers.",
    ),
    Vector(
        15,
        "padding-row-is-negative-zero",
        replace(DECODE, contents=world.cache_contents("full", pad=struct.pack("<f", -0.0))),
        "A negative zero is not the zero that padding is made of; its sign could carry bits.",
    ),
    Vector(
        15,
        "reply-of-another-token-count",
        replace(CACHE, sealed={"tokens": {"true": 20}}),
        "A cache of 20 tokens for a prompt of 21.",
    ),
    Vector(
        15,
        "reply-without-a-layout",
        replace(CACHE, sealed={"cache": None}),
        "A cache that does not say what it is.",
    ),
    Vector(
        15,
        "reply-without-token-counts",
        replace(CACHE, sealed={"tokens": None}),
        "A cache that does not say how many of its rows are tokens.",
    ),
    Vector(
        15,
        "reply-layout-differs",
        replace(CACHE, sealed=_cache({"value_dim": 8})),
        "The returned layout is not the model's; the slabs would be cut elsewhere.",
    ),
    Vector(
        15,
        "reply-padded-count-is-not-the-size-class",
        replace(CACHE, sealed={"tokens": {"padded": 128}}),
        "128 is a size class, but not that of 21 tokens.",
    ),
    Vector(
        15,
        "reply-padding-row-is-not-zero",
        replace(CACHE, contents=world.cache_contents("full", pad=struct.pack("<f", 1.0))),
        "Padding rows of a returned cache hold numbers.",
    ),
]
LAYOUT += LAYOUT_MORE

SESSION = [
    Vector(16, "turn-not-zero", replace(PREFILL, sealed={"session": {"turn": 1}}), "A second turn; no cache is kept."),
    Vector(
        16,
        "parent-not-empty",
        replace(PREFILL, sealed={"session": {"parent_root": ref.sha256(b"parent").hex()}}),
        "It continues a cache that is not held here.",
    ),
    Vector(
        16,
        "base-not-zero",
        replace(DECODE, sealed={"session": {"base_tokens": 21}}),
        "It builds on tokens that are not held here; a smaller cache would be taken for a whole one.",
    ),
]

ACCEPTED = [
    Vector(
        17,
        "protection-unknown",
        replace(PREFILL, sealed={"protection": "plain"}),
        "A protection outside the closed table; nothing weaker is agreed to.",
    ),
    Vector(17, "codec-unknown", replace(DECODE, sealed={"codec": "q2"}), "A codec outside the closed table."),
    Vector(17, "pad-unknown", replace(PREFILL, sealed={"pad": "none"}), "Unpadded sizes show exact token counts."),
    Vector(
        17,
        "reply-codec-unknown",
        replace(CACHE, sealed={"codec": "q2"}),
        "The cloud answers in a codec that nobody asked for.",
    ),
    Vector(
        17,
        "kind-of-another-route",
        PREFILL,
        "A prefill request that came by the route of decoding; what the cloud does is what the device asked for.",
        route="decode",
        is_whole=True,
    ),
]

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
]

VECTORS = [*DISAGREEING, *FORM, *RECEIPTS, *TAGS, *COUNT, *TRAILER, *MODEL, *LAYOUT, *ASKED, *SESSION, *ACCEPTED]
