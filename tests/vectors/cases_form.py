"""Vectors of checks 1 and 2: limits, versions, encodings, zeros where zeros belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import reference as ref
import world
from cases_honest import CACHE, DECODE, PREFILL, REFUSAL, SLIDING, TOKENS
from reference import Json, Tweaks
from vector import Vector
from world import (
    NOW,
    KeysetCase,
)


def _declare(size: int) -> Callable[[bytes], bytes]:
    return lambda body: ref.u32(size) + body[4:]


LIMITS = [
    Vector(
        1,
        "head-declares-more-than-16-kib",
        replace(PREFILL, change_body=_declare(16 * 1024 + 1)),
        "The head declares more than its limit; it is refused before that much is read.",
    ),
    Vector(
        1,
        "head-declares-4-gib",
        replace(PREFILL, change_body=_declare(2**32 - 1)),
        "The largest length that can be declared must not make the recipient allocate it.",
    ),
    Vector(
        1,
        "chunk-size-not-in-the-table",
        replace(PREFILL, chunk_bytes=1024),
        "A properly signed head with a chunk size outside the closed table.",
    ),
    Vector(
        1,
        "chunk-size-zero",
        replace(PREFILL, after={"manifest": {"chunk_bytes": 0}}),
        "A chunk size of nothing would never end.",
    ),
    Vector(
        1,
        "flipped-chunk-bytes",
        replace(PREFILL, after={"manifest": {"chunk_bytes": 4097}}),
        "One bit of the chunk size was flipped; it is no longer in the table.",
    ),
    Vector(
        1,
        "sealed-manifest-over-1-mib",
        replace(PREFILL, tweaks=Tweaks(declared_manifest_bytes=2**20 - 3)),
        "The sealed manifest declares one byte more than its limit; an allowed device must not fill memory.",
    ),
    Vector(
        1,
        "reply-head-declares-more-than-16-kib",
        replace(CACHE, change_body=_declare(16 * 1024 + 1)),
        "A reply's head is bounded too; the cloud is not trusted.",
    ),
    Vector(
        1,
        "reply-chunk-size-not-in-the-table",
        replace(CACHE, head={"chunk_bytes": 1024}),
        "A reply with a chunk size outside the closed table.",
    ),
    Vector(
        1,
        "frame-declares-more-than-it-holds",
        replace(TOKENS, frames=[b"\x01\x01\xfe" + bytes(509), *world.frames_of(world.ANSWER)[1:]]),
        "A frame declares 510 bytes of payload and holds 509; reading on would take bytes of the next frame.",
    ),
]


def _spaced(head: Json) -> bytes:
    return ref.canonical(head).replace(b'":', b'": ', 1)


def _reversed(head: Json) -> bytes:
    body = b",".join(ref.canonical({name: head[name]})[1:-1] for name in sorted(head, reverse=True))
    return b"{" + body + b"}"


def _doubled(head: Json) -> bytes:
    first = ref.canonical({"commitment": head["commitment"]})[1:-1]
    return b"{" + first + b"," + ref.canonical(head)[1:]


VERSION = [
    Vector(
        2,
        "flipped-version",
        replace(PREFILL, after={"manifest": {"version": 0}}),
        "One bit of the version was flipped; there is no version 0.",
    ),
    Vector(
        2,
        "version-2",
        replace(PREFILL, public={"version": 2}),
        "A properly signed head of a later version; its rules are unknown here.",
    ),
    Vector(
        2,
        "unknown-field-in-the-head",
        replace(PREFILL, head={"comment": ""}),
        "An unknown member of the head; what is not understood is refused, never skipped.",
    ),
    Vector(
        2,
        "unknown-field-in-the-public-manifest",
        replace(PREFILL, public={"model": "0" * 64}),
        "The public manifest says more than it may: a member about the model would leak what is sealed.",
    ),
    Vector(
        2,
        "missing-field-in-the-head",
        replace(PREFILL, head={"commitment": ...}),
        "Without a commitment a wrap could open to several keys.",
    ),
    Vector(
        2,
        "head-with-white-space",
        replace(PREFILL, encode_head=_spaced),
        "The same head with one space; two encodings of one head would have two digests.",
    ),
    Vector(
        2,
        "head-members-out-of-order",
        replace(PREFILL, encode_head=_reversed),
        "The same head with its members in another order.",
    ),
    Vector(
        2,
        "duplicate-key-in-the-head",
        replace(PREFILL, encode_head=_doubled),
        "A member stands twice; two parsers could each read another one.",
    ),
    Vector(
        2,
        "upper-case-hexadecimal",
        replace(PREFILL, encode_head=lambda head: ref.canonical({**head, "commitment": head["commitment"].upper()})),
        "Upper-case digits are another encoding of the same bytes.",
    ),
    Vector(
        2,
        "boolean-for-an-integer",
        replace(PREFILL, public={"version": True}),
        "true is not 1, though some languages say so.",
    ),
    Vector(
        2,
        "string-for-an-integer",
        replace(PREFILL, public={"expires_at": str(NOW + 300)}),
        "Digits in a string are no integer.",
    ),
    Vector(
        2,
        "fraction-for-an-integer",
        replace(PREFILL, encode_head=lambda head: ref.canonical(head).replace(b'"version":1', b'"version":1.0')),
        "1.0 is not the canonical form of 1.",
    ),
    Vector(
        2,
        "byte-order-mark-before-the-head",
        replace(PREFILL, encode_head=lambda head: b"\xef\xbb\xbf" + ref.canonical(head)),
        "A byte order mark is not canonical JSON.",
    ),
    Vector(2, "head-is-not-an-object", replace(PREFILL, encode_head=lambda _: b"[]"), "An array is no head."),
    Vector(2, "head-is-not-json", replace(PREFILL, encode_head=lambda _: b"\xff\xfe"), "Bytes that are not UTF-8."),
    Vector(2, "empty-head", replace(PREFILL, encode_head=lambda _: b""), "A head of no bytes."),
    Vector(
        2,
        "reply-version-2",
        replace(CACHE, head={"version": 2}),
        "A reply head of a later version; its rules are unknown here.",
    ),
    Vector(
        2,
        "keyset-version-2",
        KeysetCase(keyset={"version": 2}),
        "A properly signed keyset of a later version.",
    ),
    Vector(
        2,
        "unknown-field-in-the-keyset",
        KeysetCase(keyset={"evidence": ""}),
        "A keyset with a member that this version does not know, properly signed.",
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


def _block(receipt: bytes) -> bytes:
    return ref.prefixed(receipt).ljust(ref.RECEIPT_BYTES, b"\x00")


REPLIES = [
    Vector(
        2,
        "receipt-not-padded-with-zeros",
        replace(CACHE, block_fill=b"\x01"),
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
    Vector(
        2,
        "reply-without-a-model",
        replace(CACHE, sealed={"model": None}),
        "Only a refusal may leave the model out.",
    ),
]


def _with_version(text: bytes) -> Callable[[Json], bytes]:
    return lambda head: ref.canonical(head).replace(b'"version":1', b'"version":' + text)


TRAPS = [
    Vector(
        2,
        "integer-beyond-2-to-the-53",
        replace(PREFILL, encode_head=_with_version(b"9007199254740993")),
        "Some parsers would round this number, others not.",
    ),
    Vector(
        2,
        "number-that-is-none",
        replace(PREFILL, encode_head=_with_version(b"NaN")),
        "NaN is not JSON, though some parsers take it.",
    ),
    Vector(
        2,
        "lone-surrogate",
        replace(PREFILL, encode_head=_with_version(b'"\\ud800"')),
        "Half a character has no UTF-8 form.",
    ),
    Vector(
        2,
        "head-nested-8000-deep",
        replace(PREFILL, encode_head=lambda _: b"[" * 8000),
        "A parser that recurses must not fall over.",
    ),
    Vector(
        2,
        "null-for-an-object",
        replace(PREFILL, sealed={"tokens": None}),
        "Token counts are always there.",
    ),
    Vector(
        2,
        "padding-before-the-final-chunk-is-not-zero",
        replace(SLIDING, tweaks=Tweaks(tail_fill=b"\x01")),
        "The trailer does not fit behind the contents; what stands in their last chunk and before the trailer is zero.",
    ),
    Vector(
        2,
        "refusal-without-a-code",
        replace(REFUSAL, sealed={"refusal": None}),
        "A refusal that says nothing is refused itself.",
        is_whole=True,
    ),
    *[
        Vector(
            2,
            f"refusal-frame-{slug}",
            replace(TOKENS, frames=[ref.frame(3, code), *[ref.frame(0)] * 16]),
            "What the other side says ends up on a terminal, so a code is 1 to 40 lower-case letters.",
        )
        for slug, code in (("with-control-characters", b"\x1b[2J"), ("without-a-code", b""), ("too-long", b"a" * 41))
    ],
    Vector(
        2,
        "end-frame-of-an-unknown-reason",
        replace(TOKENS, frames=[ref.frame(2, b"\x03"), *[ref.frame(0)] * 16]),
        "A reason to end that this version lacks.",
    ),
    Vector(
        2,
        "pad-frame-with-a-payload",
        replace(TOKENS, frames=[*world.frames_of(world.ANSWER)[:-1], ref.frame(0, b"hidden")]),
        "Padding carries bytes.",
    ),
    Vector(
        2,
        "token-frame-of-three-bytes",
        replace(TOKENS, frames=[ref.frame(1, bytes(3)), *world.frames_of(world.ANSWER)[1:]]),
        "Three quarters of a token.",
    ),
]

VECTORS = [*LIMITS, *VERSION, *FORM, *REPLIES, *TRAPS]
