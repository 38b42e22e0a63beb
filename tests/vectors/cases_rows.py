"""Vectors of a prompt that comes as embedding rows: the request kind `rows`."""

from __future__ import annotations

import struct

import world
from reference import Json
from vector import Vector
from world import LAYOUTS, TRUE_TOKENS, RequestCase

ASKS: Json = {"asks": "rows"}


def _rows(sealed: Json | None = None, contents: bytes | None = None) -> RequestCase:
    return RequestCase(kind="rows", sealed=sealed or {}, contents=contents)


HONEST = [
    Vector(
        None,
        "rows-request",
        _rows(),
        "Embedding rows go up to be prefilled, and no token id; accepted.",
        state=ASKS,
    ),
]

LAYOUT = [
    Vector(
        15,
        "rows-with-a-cache",
        _rows({"cache": {"layers": LAYOUTS["full"]}}),
        "A prompt of rows that names a cache; what is not asked for is not carried.",
        state=ASKS,
    ),
    Vector(
        15,
        "rows-with-a-last-token",
        _rows({"last_token": 7}),
        "A token id beside the rows: the last token of the prompt stays with who sends them.",
        state=ASKS,
    ),
    Vector(
        15,
        "rows-with-sampling",
        _rows(
            {
                "sampling": {
                    "max_new_tokens": 8,
                    "temperature": "0.7",
                    "top_p": "0.95",
                    "top_k": 0,
                    "seed": "42",
                    "stop": [],
                }
            }
        ),
        "A choice of tokens for a request that makes none.",
        state=ASKS,
    ),
    Vector(
        15,
        "rows-padding-is-not-zero",
        _rows(contents=world.row_slab(pad=struct.pack("<f", 1.0))),
        "A number stands where padding belongs.",
        state=ASKS,
    ),
    Vector(
        15,
        "rows-padding-is-negative-zero",
        _rows(contents=world.row_slab(pad=struct.pack("<f", -0.0))),
        "A negative zero is not the zero that padding is made of; its sign could carry bits.",
        state=ASKS,
    ),
    Vector(
        15,
        "rows-steps-end-early",
        _rows({"steps": [[0, TRUE_TOKENS - 1]]}),
        "The last row would be left out.",
        state=ASKS,
    ),
    Vector(
        15,
        "rows-length-announced",
        _rows({"codec": "lossless", "coded_bytes": 1024}),
        "Rows have one length, which follows from the manifest.",
        state=ASKS,
    ),
]

SESSION = [
    Vector(
        16,
        "rows-to-be-kept-as-a-session",
        _rows({"session": {"keep": True}}),
        "Rows stand in no session: a later turn would go on from what was noised for this one.",
        state=ASKS,
    ),
    Vector(
        16,
        "rows-of-public-text",
        _rows({"public": True}),
        "Public text is prefilled from its ids, whose cache may be found again.",
        state=ASKS,
    ),
    Vector(
        16,
        "rows-in-a-later-turn",
        _rows({"session": {"turn": 1, "parent_root": "ab" * 32, "base_tokens": 5}}),
        "A later turn of rows; nothing is gone on from.",
        state=ASKS,
    ),
]

ACCEPTED = [
    Vector(
        17,
        "rows-by-the-route-of-decoding",
        _rows(),
        "A prompt of rows that came by the route of decoding.",
        state=ASKS,
        route="decode",
        is_whole=True,
    ),
]

VECTORS = [*HONEST, *LAYOUT, *SESSION, *ACCEPTED]
