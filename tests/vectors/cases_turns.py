"""Vectors of later turns: what does not go on from anything, and what a base makes of counts and steps."""

from __future__ import annotations

from dataclasses import replace

import reference as ref
from cases_honest import DECODE, PREFILL
from reference import Json
from vector import Vector
from world import NOW, OTHER_SERVER_NONCE, OTHER_TRANSFER_ID, PADDED_TOKENS, SERVER_NONCE, TOKEN_IDS, TRUE_TOKENS

PARENT = ref.sha256(b"parent").hex()
LATER: Json = {"turn": 1, "parent_root": PARENT, "base_tokens": 5}

CLOSE = replace(
    PREFILL, sealed={"kind": "close", "tokens": {"true": 1, "padded": PADDED_TOKENS}, "steps": []}, contents=b""
)
KEPT = replace(PREFILL, sealed={"session": {"keep": True}})
SECOND = replace(
    PREFILL,
    public={"transfer_id": OTHER_TRANSFER_ID.hex()},
    head={"server_nonce": OTHER_SERVER_NONCE.hex()},
    sealed={
        "session": {"turn": 1, "parent_root": ref.ciphertext_root(KEPT.chunks()).hex(), "base_tokens": 5},
        "tokens": {"padded": 5 + PADDED_TOKENS},
        "steps": [[5, 16], [16, TRUE_TOKENS]],
    },
    contents=ref.token_slab(TOKEN_IDS[5:], PADDED_TOKENS),
)
NONCES: Json = {SERVER_NONCE.hex(): NOW, OTHER_SERVER_NONCE.hex(): NOW}

HONEST = [
    Vector(
        None,
        "close-request",
        CLOSE,
        "A session ends: no contents, and a receipt alone comes back; accepted, whether or not something is held.",
        state={"asks": "close"},
    ),
    Vector(
        None,
        "prefill-request-kept",
        KEPT,
        "A first turn whose cache may be kept for the next; accepted.",
    ),
    Vector(
        None,
        "prefill-request-second-turn",
        SECOND,
        "The turn after it, on the first 5 tokens of what is held: the ids of the others alone; accepted.",
        state={"first": "0000-honest-prefill-request-kept", "nonces": NONCES, "base_tokens": 5},
    ),
]

LAYOUT = [
    Vector(
        15,
        "padded-count-of-a-later-turn-is-that-of-a-first",
        replace(PREFILL, sealed={"session": LATER, "steps": [[5, TRUE_TOKENS]]}),
        "On a base of 5 tokens 16 new ones are padded to 64, so to 69 in all; 64 would cut the slabs elsewhere.",
    ),
    Vector(
        15,
        "base-not-below-the-tokens",
        replace(DECODE, sealed={"session": {**LATER, "base_tokens": TRUE_TOKENS}, "tokens": {"padded": 85}}),
        "A turn that brings nothing.",
    ),
    Vector(
        15,
        "steps-of-a-later-turn-start-at-zero",
        replace(PREFILL, sealed={"session": LATER, "tokens": {"padded": 69}}),
        "Steps over the base: what is held would be computed again onto itself.",
    ),
    Vector(
        15,
        "session-end-that-carries-tokens",
        replace(PREFILL, sealed={"kind": "close"}),
        "A request that ends a session and names tokens; what is not asked for is not carried.",
    ),
]

SESSION = [
    Vector(
        16,
        "later-turn-without-a-base",
        replace(DECODE, sealed={"session": {"turn": 1, "parent_root": PARENT}}),
        "A second turn that brings everything would not be bound to what is held.",
    ),
    Vector(
        16,
        "later-turn-of-public-text",
        replace(PREFILL, sealed={"session": {"turn": 1, "parent_root": PARENT, "base_tokens": 5}, "public": True}),
        "Public text belongs to no session, so that nothing private is taken for it.",
    ),
    Vector(
        16,
        "public-text-to-be-kept-as-a-session",
        replace(PREFILL, sealed={"session": {"keep": True}, "public": True}),
        "Public text belongs to no session.",
    ),
    Vector(
        16,
        "public-text-to-be-decoded",
        replace(DECODE, sealed={"public": True}),
        "A cache to decode from is not public text; it must not come into the prefix cache.",
    ),
]

AFTER_A_TURN = [
    Vector(
        16,
        "second-turn-after-another-parent",
        replace(SECOND, sealed={**SECOND.sealed, "session": {**SECOND.sealed["session"], "parent_root": PARENT}}),
        "A turn that goes on from another request than the one whose cache is held.",
        state={"first": "0000-honest-prefill-request-kept", "nonces": NONCES},
        is_whole=True,
    ),
    Vector(
        16,
        "second-turn-of-another-session",
        replace(
            SECOND,
            sealed={**SECOND.sealed, "session": {**SECOND.sealed["session"], "session_id": "0" * 32}},
        ),
        "The parent of one session under the name of another, of which nothing is held.",
        state={"first": "0000-honest-prefill-request-kept", "nonces": NONCES},
        error="session_lost",
        is_whole=True,
    ),
]

VECTORS = [*HONEST, *LAYOUT, *SESSION, *AFTER_A_TURN]
