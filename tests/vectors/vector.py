"""One vector: an honest or changed case, the check that must refuse it, and what `vector.json` says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import reference as ref
import world
from reference import Json
from world import KeysetCase, ReplyCase, RequestCase, ResumeCase, Wraps

ERRORS = {
    0: "recipient_mismatch",
    1: "limit_exceeded",
    2: "manifest",
    3: "manifest",
    4: "manifest",
    5: "keyset_stale",
    6: "keyset_stale",
    7: "authentication",
    8: "replay",
    9: "replay",
    10: "authentication",
    11: "authentication",
    12: "truncated",
    13: "authentication",
    14: "model_mismatch",
    15: "layout_mismatch",
    16: "replay",
    17: "manifest",
}
PER_CHECK = 100


@dataclass(frozen=True)
class Vector:
    """`check` is a number of docs/format.md section 11, 0 for what has none, None for an honest vector.

    `state` is what the side that reads remembers; `route` is the route of a request where it is not the case's kind.
    `is_whole` says that intake alone cannot refuse it: only who knows what was asked for can.
    """

    check: int | None
    slug: str
    case: RequestCase | ReplyCase | KeysetCase | ResumeCase
    sentence: str
    now: int = world.NOW
    state: Json = field(default_factory=dict)
    route: str = ""
    error: str = ""
    is_whole: bool = False

    @property
    def side(self) -> str:
        return "cloud" if isinstance(self.case, RequestCase | ResumeCase) else "device"

    @property
    def file_name(self) -> str:
        if isinstance(self.case, ResumeCase):
            return f"{self.case.kind}.bin"
        names = {RequestCase: "request.bin", ReplyCase: "reply.bin", KeysetCase: "keyset.bin"}
        return names[type(self.case)]

    def data(self, wraps: Wraps) -> bytes:
        return self.case.body() if isinstance(self.case, KeysetCase) else self.case.body(wraps)

    def description(self, wraps: Wraps) -> Json:
        """Return vector.json."""
        return {
            "sentence": self.sentence,
            "side": self.side,
            "check": self.check,
            "error": None if self.check is None else self.error or ERRORS[self.check],
            "whole": self.is_whole,
            "file": self.file_name,
            "sha256": ref.sha256(self.data(wraps)).hex(),
            "now": self.now,
            **self._how(),
        }

    def _how(self) -> Json:
        if isinstance(self.case, KeysetCase):
            seen: Json = {"epochs": {}, "generations": {}}
            return {"seen": world.merged(seen, self.state)}
        if isinstance(self.case, ResumeCase):
            nonces = {world.SERVER_NONCE.hex(): world.NOW, world.OTHER_SERVER_NONCE.hex(): world.NOW}
            state = {"nonces": nonces, "first": "0000-honest-prefill-request", "came": self.case.came}
            return {"layout": self.case.request.layout, **world.merged(state, self.state)}
        if isinstance(self.case, RequestCase):
            state: Json = {"nonces": {world.SERVER_NONCE.hex(): world.NOW}, "first": None}
            state = world.merged(state, self.state)
            route = self.route or {"rows": "prefill"}.get(self.case.kind, self.case.kind)
            state["content_key"] = self.case.content_key.hex()
            state["sealed_manifest_sha256"] = self.case.sealed_digest.hex()
            return {"route": route, "layout": self.case.layout, **state}
        return {"read": self.case.asked or self.case.kind, "layout": self.case.layout, "sent": _sent(self.case.request)}


def _sent(request: RequestCase) -> Json:
    return {
        "transfer_id": world.TRANSFER_ID.hex(),
        "content_key": world.CONTENT_KEY.hex(),
        "manifest_sha256": request.manifest_digest.hex(),
        "sealed_manifest_sha256": request.sealed_digest.hex(),
        "tokens": world.TRUE_TOKENS,
        "chunk_bytes": request.public_manifest()["chunk_bytes"],
        "manifest": request.sealed_manifest(),
    }


def context() -> Json:
    """Return context.json: what all vectors share, private keys of the fixed world included."""
    return {
        "identity_sha256": world.PINNED,
        "keyset_digest": world.KEYSET_DIGEST.hex(),
        "kem": {
            "mlkem_seed": world.secret("recipient ML-KEM", 64).hex(),
            "x25519": world.secret("recipient X25519").hex(),
        },
        "allowed_devices": [ref.public(world.DEVICE).hex()],
        "device_private_key": world.secret("device").hex(),
        "receipt_public_key": ref.public(world.RECEIPT).hex(),
        "receipt_private_key": world.secret("receipt").hex(),
        "model": world.MODEL,
        "layouts": world.LAYOUTS,
        "max_positions": world.MAX_POSITIONS,
        "vocabulary": world.VOCABULARY,
        "token_ids": world.TOKEN_IDS,
        "row_bytes": 4 * world.ROW_NUMBERS,
        "rows_hex": world.row_slab(padded=world.TRUE_TOKENS).hex(),
        "answer": world.ANSWER,
        "cache_hex": {name: world.cache_contents(name).hex() for name in world.LAYOUTS},
        "max_new_tokens": world.MAX_NEW_TOKENS,
    }


def numbered(vectors: list[Vector]) -> dict[str, Vector]:
    """Name the vectors: 100 numbers a check, in the order of the list, so that a new last one moves none."""
    counts: dict[int, int] = {}
    named: dict[str, Vector] = {}
    for vector in vectors:
        if vector.check is None:
            named[f"0000-honest-{vector.slug}"] = vector
            continue
        place = counts.get(vector.check, 1 if vector.check == 0 else 0)
        counts[vector.check] = place + 1
        if place >= PER_CHECK:
            raise ValueError(f"check {vector.check} has more than {PER_CHECK} vectors")
        named[f"{vector.check * PER_CHECK + place:04d}-{vector.slug}"] = vector
    if len(named) != len(vectors):
        raise ValueError("two vectors have one name")
    return named
