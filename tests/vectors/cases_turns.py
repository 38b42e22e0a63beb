"""Vectors of later turns: what does not go on from anything, and what a base makes of counts and steps."""

from __future__ import annotations

from dataclasses import replace

import reference as ref
from cases_honest import DECODE, PREFILL
from reference import Json
from vector import Vector
from world import TRUE_TOKENS

PARENT = ref.sha256(b"parent").hex()
LATER: Json = {"turn": 1, "parent_root": PARENT, "base_tokens": 5}

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

VECTORS = [*LAYOUT, *SESSION]
