"""Sections 22 and 23 of docs/format.md: records, their keys and parts, and parts that are refused."""

from __future__ import annotations

import hashlib
import struct

import reference as ref
import world
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from reference import Json

PART_BYTES = 1 << 20
CLOSE, OPEN, SCORES, QKV = 0, 1, 4, 6
Name = tuple[int, int, int]
"""Step, layer, operation."""


def record(name: Name, blobs: list[bytes]) -> bytes:
    """Section 22."""
    head = struct.pack(">QIBI", *name, len(blobs))
    return head + b"".join(ref.prefixed(blob) for blob in blobs)


def record_keys(content_key: bytes, *, direction: int, manifest_digest: bytes, nonces: tuple[bytes, bytes]) -> Json:
    """Section 23, "Keys"."""
    info = b"splitinfer/v1/records\x00" + bytes([direction]) + ref.SUITE.encode() + b"\x00"
    okm = ref.expand(content_key, info + manifest_digest + b"".join(nonces), 76)
    return {"aead_key": okm[:32].hex(), "base_nonce": okm[32:44].hex()}


def part(
    keys: Json, plain: bytes, name: Name, *, direction: int, counter: int, number: int = 0, final: int = 1
) -> bytes:
    """Section 23, "Part"."""
    head = struct.pack(">QQIBIBI", counter, *name, number, final, len(plain))
    nonce = int.from_bytes(bytes.fromhex(keys["base_nonce"]), "big") ^ (counter << 32 | number)
    aad = world.TRANSFER_ID + bytes([direction]) + head
    return head + AESGCM(bytes.fromhex(keys["aead_key"])).encrypt(nonce.to_bytes(12, "big"), plain, aad)


def rounds() -> Json:
    """Return keys of both directions, a session's records with their parts and roots, and what is refused."""
    digest, nonces = world.RequestCase().manifest_digest, (world.REQUEST_NONCE, world.REPLY_NONCE)
    keys = [
        record_keys(world.CONTENT_KEY, direction=direction, manifest_digest=digest, nonces=nonces)
        for direction in (ref.REQUEST, ref.REPLY)
    ]
    return {
        "content_key": world.CONTENT_KEY.hex(),
        "manifest_sha256": digest.hex(),
        "nonces": [nonce.hex() for nonce in nonces],
        "transfer_id": world.TRANSFER_ID.hex(),
        "keys": keys,
        "directions": [_direction(one, direction) for direction, one in enumerate(keys)],
        "long": _long(keys[ref.REQUEST]),
        "refused": _refused(keys),
    }


def _direction(keys: Json, direction: int) -> Json:
    """A session of three records, with as many blobs as each operation has."""
    sent: list[tuple[Name, list[bytes]]] = [
        ((0, 0, OPEN), [world.secret(f"opening {direction}", 90), b"", world.secret("keys", 40)]),
        ((2**40, 511, SCORES), [world.secret(f"scores {direction}", 33)]),
        ((0, 0, CLOSE), []),
    ]
    made = []
    for counter, (name, blobs) in enumerate(sent):
        plain = record(name, blobs)
        sealed = part(keys, plain, name, direction=direction, counter=counter)
        made.append(
            {"name": name, "blobs": [blob.hex() for blob in blobs], "record": plain.hex(), "part": sealed.hex()}
        )
    root = ref.ciphertext_root([bytes.fromhex(one["part"]) for one in made])
    return {"direction": direction, "records": made, "root": root.hex()}


def _long(keys: Json) -> Json:
    """A record of two parts; the blob is zeros."""
    blob_bytes, name = PART_BYTES, (1, 0, QKV)
    plain = record(name, [bytes(blob_bytes)])
    parts = [
        part(keys, cut, name, direction=ref.REQUEST, counter=0, number=number, final=number)
        for number, cut in enumerate((plain[:PART_BYTES], plain[PART_BYTES:]))
    ]
    return {
        "name": name,
        "blob_bytes": blob_bytes,
        "parts": [{"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for one in parts],
    }


def _refused(keys: list[Json]) -> list[Json]:
    """Replies to record 0, which asked for `asked`; each is refused with the code, before a later one is read."""
    asked: Name = (3, 1, SCORES)
    plain = record(asked, [world.secret("reply", 24)])

    def sealed(name: Name = asked, contents: bytes = plain, **changes: int) -> bytes:
        return part(keys[ref.REPLY], contents, name, **{"direction": ref.REPLY, "counter": 0, **changes})

    honest = sealed()
    cases = [
        ("honest", "", honest),
        ("a bit of the tag", "authentication", honest[:-1] + bytes([honest[-1] ^ 1])),
        ("sealed by the other direction's keys", "authentication", part(keys[0], plain, asked, direction=1, counter=0)),
        ("sealed for the other direction", "authentication", sealed(direction=ref.REQUEST)),
        ("the next record's counter", "replay", sealed(counter=1)),
        ("a part in front is left out", "replay", sealed(number=1)),
        ("another step", "replay", sealed((4, 1, SCORES), record((4, 1, SCORES), []))),
        ("another layer", "replay", sealed((3, 2, SCORES), record((3, 2, SCORES), []))),
        ("another operation", "replay", sealed((3, 1, QKV), record((3, 1, QKV), []))),
        ("final is neither 0 nor 1", "manifest", sealed(final=2)),
        ("a short part that is not final", "manifest", sealed(final=0)),
        ("no bytes", "manifest", sealed(contents=b"")),
        ("longer than a part", "manifest", honest[:26] + ref.u32(PART_BYTES + 1) + honest[30:]),
        ("contents of another layer", "manifest", sealed(contents=record((3, 2, SCORES), []))),
        ("an operation that is none", "manifest", sealed(contents=record((3, 1, 11), []))),
        ("contents end inside a blob", "truncated", sealed(contents=plain[:-1])),
        ("contents go on after the last blob", "truncated", sealed(contents=plain + b"\x00")),
        ("the connection ends inside the head", "truncated", honest[:29]),
        ("the connection ends inside the part", "truncated", honest[:-1]),
    ]
    return [{"case": case, "asked": asked, "code": code, "data": data.hex()} for case, code, data in cases]
