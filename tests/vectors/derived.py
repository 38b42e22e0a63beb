"""The derivation vectors: inputs and outputs of every pure function of docs/format.md, a file a topic."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import reference as ref
import world
from reference import Json
from rounds import rounds
from world import LAYOUTS, KeysetCase, ReplyCase, RequestCase, Wraps


def derivations(wraps: Wraps) -> dict[str, Any]:
    """Return the contents of derivations/NAME.json by name."""
    return {
        "canonical-json": _canonical(),
        "signatures": _signatures(),
        "keyset": _keyset(),
        "wrap": _wrap(wraps),
        "stream-keys": _stream_keys(),
        "pad-tokens": _pad_tokens(),
        "schedule": _schedule(),
        "token-slab": _token_slab(),
        "chunks": _chunks(),
        "ciphertext-root": _roots(),
        "trailer": _trailer(),
        "frames": _frames(),
        "receipt": _receipt(),
        "resume": _resume(),
        "rounds": rounds(),
        "audit-log": _audit_log(),
    }


def _canonical() -> list[Json]:
    values: list[tuple[str, Any]] = [
        ("empty", {}),
        ("members are sorted", {"b": 1, "a": 2, "aa": 3, "A": 4}),
        ("nested", {"z": [{"b": None, "a": True}, [], {}], "a": {"y": False, "x": ""}}),
        ("largest integers", {"most": 2**53 - 1, "least": -(2**53 - 1), "zero": 0}),
        ("control characters", {"text": "\x00\x01\b\t\n\x0b\f\r\x1f\x7f"}),
        ("quotes and slashes", {'"': '\\ " /'}),
        ("beyond ASCII", {"text": "grün € 𝄞 \u2028\u2029"}),
        ("sorted by UTF-16 units, not code points", {"\ufb33": 1, "\U0001f600": 2, "é": 3, "1": 4}),
    ]
    return [
        {"case": case, "value": value, "canonical_hex": ref.canonical(value).hex(), "sha256": ref.digest(value).hex()}
        for case, value in values
    ]


def _signatures() -> list[Json]:
    purposes = (
        *("replica-certificate", "keyset", "request", "request-trailer", "reply-trailer", "receipt"),
        *("transfer-state", "transfer-state-answer", "transfer-resume"),
    )
    return [
        {
            "purpose": purpose,
            "private_key": world.secret("device").hex(),
            "payload_hex": b"payload".hex(),
            "signature": ref.sign(world.DEVICE, purpose, b"payload").hex(),
        }
        for purpose in purposes
    ]


def _keyset() -> Json:
    keyset, signature = KeysetCase().parts()
    device = ref.public(world.DEVICE)
    return {
        "identity_public_key": ref.public(world.IDENTITY).hex(),
        "identity_sha256": world.PINNED,
        "keyset": keyset,
        "signature": signature,
        "keyset_digest": world.KEYSET_DIGEST.hex(),
        "device_public_key": device.hex(),
        "sender_id": ref.sender_id(world.KEYSET_DIGEST, device),
    }


def _wrap(wraps: Wraps) -> Json:
    digest = RequestCase().manifest_digest
    return {
        "mlkem_seed": world.secret("recipient ML-KEM", 64).hex(),
        "x25519_private_key": world.secret("recipient X25519").hex(),
        "kem_public_key": world.RECIPIENT_KEM.public.hex(),
        "manifest_sha256": digest.hex(),
        "info_hex": ref.wrap_info(digest).hex(),
        "content_key": world.CONTENT_KEY.hex(),
        "wrap": wraps.wrap(world.CONTENT_KEY, world.RECIPIENT_KEM, ref.wrap_info(digest)).hex(),
    }


def _stream_keys() -> list[Json]:
    digest = RequestCase().manifest_digest
    made = []
    for direction, nonce in ((ref.REQUEST, world.REQUEST_NONCE), (ref.REPLY, world.REPLY_NONCE)):
        keys = ref.stream_keys(world.CONTENT_KEY, direction=direction, manifest_digest=digest, nonce=nonce)
        made.append(
            {
                "content_key": world.CONTENT_KEY.hex(),
                "direction": direction,
                "manifest_sha256": digest.hex(),
                "nonce": nonce.hex(),
                "aead_key": keys.aead_key.hex(),
                "base_nonce": keys.base_nonce.hex(),
                "commitment": keys.commitment.hex(),
            }
        )
    return made


def _pad_tokens() -> list[list[int]]:
    edges = [1, 2, 63, 300, 1000, 5000, 100_000, 2**24 - 1, 2**24]
    edges += [near for power in range(6, 24) for near in (2**power - 1, 2**power, 2**power + 1)]
    edges += list(range(60, 1100, 31))
    return [[tokens, ref.pad_tokens(tokens)] for tokens in sorted(set(edges))]


def _schedule() -> list[Json]:
    windows, rows = (
        [world.tensor("keys", rule, [2], [8], "bfloat16"), world.tensor("values", rule, [2], [4], "bfloat16")]
        for rule in ("window", "tokens")
    )
    long_stride = world.layer("compressed", [*windows[:1], *world.compressor("compressor")[:3]], window=32, stride=128)
    layouts = {
        **LAYOUTS,
        "all-sliding": [world.layer("sliding", windows, window=128, count=2)],
        "mixed": [
            world.layer("sliding", windows, window=32, count=2),
            world.layer("full", rows),
            world.layer("sliding", windows, window=4096),
        ],
        "long-stride": [long_stride, world.layer("linear", world.STATES), long_stride],
    }
    made = []
    for name, runs in layouts.items():
        for padded, base in ((64, 0), (512, 0), (576, 0), (1088, 0), (67, 3), (641, 577), (1600, 1024)):
            specs = list(ref.slabs(runs, padded, base))
            total = sum(size_bytes for *_, size_bytes in specs)
            made.append(
                {
                    "layout": name,
                    "layers": runs,
                    "padded": padded,
                    "base": base,
                    "slabs": specs,
                    "total_bytes": total,
                    "chunk_bytes": ref.cache_chunk_bytes(total),
                }
            )
    return made


def _token_slab() -> list[Json]:
    cases = [([0], 64), ([1, 256, 65536, 2**31 - 1], 64), (world.TOKEN_IDS, world.PADDED_TOKENS)]
    return [{"token_ids": ids, "padded": padded, "slab": ref.token_slab(ids, padded).hex()} for ids, padded in cases]


def _chunks() -> list[Json]:
    keys = RequestCase().keys()
    places: list[tuple[int, bool, int]] = [(0, False, 0), (1, False, 1), (255, False, 0), (65536, True, 0)]
    made = []
    for index, is_final, direction in places:
        plain = world.secret(f"chunk {index}", 512)
        chunk = ref.seal_chunk(
            keys, plain, transfer_id=world.TRANSFER_ID, direction=direction, index=index, is_final=is_final
        )
        made.append(
            {
                "aead_key": keys.aead_key.hex(),
                "base_nonce": keys.base_nonce.hex(),
                "transfer_id": world.TRANSFER_ID.hex(),
                "direction": direction,
                "index": index,
                "final": is_final,
                "plain": plain.hex(),
                "chunk": chunk.hex(),
            }
        )
    return made


def _roots() -> list[Json]:
    chunks = [world.secret(f"root {index}", 24 + index) for index in range(17)]
    return [
        {"chunks": [chunk.hex() for chunk in chunks[:count]], "root": ref.ciphertext_root(chunks[:count]).hex()}
        for count in (0, 1, 2, 3, 4, 7, 8, 17)
    ]


def _trailer() -> list[Json]:
    digest = RequestCase().manifest_digest
    made = []
    for purpose, key, name in (
        ("request-trailer", world.DEVICE, "device"),
        ("reply-trailer", world.RECEIPT, "receipt"),
    ):
        root = ref.ciphertext_root([b"chunk"])
        payload = ref.trailer_payload(digest, 2, root)
        made.append(
            {
                "purpose": purpose,
                "private_key": world.secret(name).hex(),
                "manifest_sha256": digest.hex(),
                "count": 2,
                "root": root.hex(),
                "trailer": (ref.u32(2) + ref.sign(key, purpose, payload)).hex(),
            }
        )
    return made


def _frames() -> Json:
    return {
        "pad": ref.frame(0).hex(),
        "token": [[token, ref.frame(1, ref.u32(token)).hex()] for token in (0, 11, 2**31 - 1)],
        "end": {
            reason: ref.frame(2, bytes([code])).hex() for code, reason in enumerate(("length", "end_of_text", "stop"))
        },
        "refusal": [[code, ref.frame(3, code.encode()).hex()] for code in ("model", "transport_timeout")],
        "count": [[tokens, ref.frame_count(tokens)] for tokens in (1, 8, 16, 17, 32, 33, 64, 65, 1000, 2**20)],
    }


def _receipt() -> Json:
    body = ReplyCase().receipt_body()
    receipt = {"body": body, "signature": ref.sign(world.RECEIPT, "receipt", ref.canonical(body)).hex()}
    return {
        "private_key": world.secret("receipt").hex(),
        "public_key": ref.public(world.RECEIPT).hex(),
        "body": body,
        "signature": receipt["signature"],
        "block": ref.receipt_region(receipt).hex(),
    }


def _resume() -> Json:
    """Section 21: a query, its answer, a head, each with its bytes in a body."""
    request = RequestCase()
    ids: Json = {
        "version": 1,
        "transfer_id": request.public_manifest()["transfer_id"],
        "manifest_sha256": request.manifest_digest.hex(),
    }
    query = {
        **ids,
        "keyset_digest": world.KEYSET_DIGEST.hex(),
        "sender_id": ref.sender_id(world.KEYSET_DIGEST, ref.public(world.DEVICE)),
        "server_nonce": world.secret("resume nonce").hex(),
        "signature": "0" * 128,
    }
    head = {**query, "request_from": 2, "reply_from": 0}
    query["signature"] = ref.sign(world.DEVICE, "transfer-state", ref.canonical(query)).hex()
    head["signature"] = ref.sign(world.DEVICE, "transfer-resume", ref.canonical(head)).hex()
    body = {**ids, "server_nonce": query["server_nonce"], "state": "open", "request_chunks": 2}
    answer = {"body": body, "signature": ref.sign(world.RECEIPT, "transfer-state-answer", ref.canonical(body)).hex()}
    return {
        "device_private_key": world.secret("device").hex(),
        "receipt_private_key": world.secret("receipt").hex(),
        "query": query,
        "query_body": ref.prefixed(ref.canonical(query)).hex(),
        "answer": answer,
        "answer_body": ref.canonical(answer).hex(),
        "head": head,
        "head_bytes": ref.prefixed(ref.canonical(head)).hex(),
    }


def _audit_log() -> Json:
    records = [{"type": "local", "seq": seq, "time": 1000 * world.NOW + seq, "bytes_sent": 0} for seq in range(5)]
    payloads = [ref.canonical(record) for record in records]
    root = ref.tree_root([ref.leaf(payload) for payload in payloads])
    salt = world.secret("salt")
    return {
        "records": records,
        "frames": [_log_frame(payload).hex() for payload in payloads],
        "root": root.hex(),
        "checkpoint_private_key": world.secret("checkpoint").hex(),
        "origin": "splitinfer-test",
        "checkpoint": ref.checkpoint_note(world.ed25519("checkpoint"), origin="splitinfer-test", size=5, root=root),
        "salt": salt.hex(),
        "salt_id": ref.sha256(salt).hex()[:32],
        "committed_hex": b"value".hex(),
        "commitment": ref.sha256(salt + b"value").hex(),
    }


def _log_frame(payload: bytes) -> bytes:
    head = struct.pack(">II", len(payload), zlib.crc32(payload))
    return head + struct.pack(">I", zlib.crc32(head)) + payload
