"""Vectors of checks 14 to 17: what an authentic manifest says and its contents are."""

from __future__ import annotations

import struct
from dataclasses import replace

import reference as ref
import world
from cases_honest import CACHE, DECODE, PREFILL, SLIDING, TOKENS
from reference import Json
from vector import Vector
from world import (
    LAYOUTS,
    PADDED_TOKENS,
    TOKEN_IDS,
    TRUE_TOKENS,
    attention,
)

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
        14,
        "weights-digest-differs-in-a-token-reply",
        replace(TOKENS, sealed={"model": {"weights_sha256": ref.sha256(b"other").hex()}}),
        "Another model answered.",
    ),
]


def _cache(change: Json) -> Json:
    return {"cache": {"layers": [{**run, **change} for run in LAYOUTS["full"]]}}


def _tensors(keys: Json, values: Json) -> Json:
    """Change a layer's keys and values."""
    return {"tensors": [{**form, **change} for form, change in zip(attention("tokens"), (keys, values), strict=True)]}


def _counts(true: int, padded: int) -> Json:
    return {"tokens": {"true": true, "padded": padded}, "steps": [[0, true]]}


def _slab_with(at: int, token: int) -> bytes:
    slab = bytearray(ref.token_slab(TOKEN_IDS, PADDED_TOKENS))
    slab[4 * at : 4 * at + 4] = ref.u32(token)
    return bytes(slab)


_CACHE_CHANGES: list[tuple[str, Json, str]] = [
    ("layer-count-differs", {"count": 3}, "Three layers for a model of two."),
    ("heads-differ", _tensors({"before": [2]}, {}), "Two key heads for a model of one."),
    ("dim-differs", _tensors({}, {"after": [8]}), "Values of 8 columns for a model of 4."),
    ("dtype-differs", _tensors({"dtype": "float16"}, {"dtype": "float16"}), "Half as many bytes an element."),
    ("window-on-a-full-layer", {"window": 16}, "A window on layers that have none."),
    (
        "sliding-for-full",
        {"kind": "sliding", "window": 16, "tensors": attention("window")},
        "Sliding layers for a model of full ones.",
    ),
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

LAYOUT += [
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
        replace(CACHE, sealed=_cache(_tensors({}, {"after": [8]}))),
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
    Vector(
        15,
        "length-announced-for-a-fixed-rate",
        replace(DECODE, sealed={"coded_bytes": 4096}),
        "A length that follows from the layout is stated, and could be another.",
    ),
    Vector(
        15,
        "length-announced-for-token-ids",
        replace(PREFILL, sealed={"codec": "lossless", "coded_bytes": 256}),
        "A request without a cache states the length of one.",
    ),
    Vector(
        15,
        "length-of-a-variable-rate-missing",
        replace(DECODE, sealed={"codec": "lossless"}),
        "A cache of variable length that does not say how long it is.",
    ),
    Vector(
        15,
        "length-above-what-the-layout-needs",
        replace(DECODE, sealed={"codec": "lossless", "coded_bytes": 2**30}),
        "A gibibyte is announced for a small cache; no memory is taken for it.",
    ),
    Vector(
        15,
        "length-is-no-size-class",
        replace(DECODE, sealed={"codec": "lossless", "coded_bytes": 1001}),
        "A length that is no size class shows more of the contents than the format allows.",
    ),
    Vector(
        15,
        "reply-length-above-what-the-layout-needs",
        replace(CACHE, sealed={"codec": "lossless", "coded_bytes": 2**30}),
        "A gibibyte is announced for a small returned cache.",
    ),
]


SESSION = [
    Vector(
        16,
        "turn-not-zero",
        replace(PREFILL, sealed={"session": {"turn": 1}}),
        "A second turn that goes on from nothing.",
    ),
    Vector(
        16,
        "parent-not-empty",
        replace(PREFILL, sealed={"session": {"parent_root": ref.sha256(b"parent").hex()}}),
        "A first turn that has a parent.",
    ),
    Vector(
        16,
        "base-not-zero",
        replace(DECODE, sealed={"session": {"base_tokens": 21}}),
        "A first turn on tokens that are not held here; a smaller cache would be taken for a whole one.",
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
        "reply-codec-differs",
        replace(CACHE, sealed={"codec": "q8"}),
        "The cloud answers in a lossy codec to a request for an exact one.",
        is_whole=True,
    ),
    Vector(
        17,
        "kind-of-another-route",
        PREFILL,
        "A prefill request that came by the route of decoding; what the cloud does is what the device asked for.",
        route="decode",
        is_whole=True,
    ),
    Vector(
        17,
        "decode-by-the-route-of-prefill",
        DECODE,
        "A decode request that came by the route of prefilling.",
        route="prefill",
        is_whole=True,
    ),
]

VECTORS = [*MODEL, *LAYOUT, *SESSION, *ACCEPTED]
