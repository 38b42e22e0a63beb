"""The format of docs/format.md, section by section, written from that page: plain functions over bytes and dicts.

Stands alone on purpose: standard library, `cryptography` and `blake3` only, so that it can disagree with the product.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

SUITE = "xwing-hkdf-sha512-aes256gcm-blake3"
REQUEST, REPLY = 0, 1
TRAILER_BYTES = 68
RECEIPT_BYTES = 2048
FRAME_BYTES = 512
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Json = dict[str, Any]


# --- sections 1 to 3: notation, canonical JSON, signatures ----------------------------------------------------------


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def prefixed(data: bytes) -> bytes:
    return u32(len(data)) + data


def ceil_to(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def canonical(value: Any) -> bytes:
    return json.dumps(_ordered(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=lambda key: key.encode("utf-16-be"))}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, float):
        raise TypeError("a non-integer travels as a decimal string")
    return value


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def digest(value: Any) -> bytes:
    return sha256(canonical(value))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, purpose: str, payload: bytes) -> bytes:
    return key.sign(b"splitinfer/v1/" + purpose.encode() + b"\x00" + sha256(payload))


# --- sections 4 and 5: sender id, wrap, stream keys -----------------------------------------------------------------


def sender_id(keyset_digest: bytes, device_public_key: bytes) -> str:
    return hmac.digest(keyset_digest, device_public_key, "sha256").hex()


@dataclass(frozen=True)
class Kem:
    """An X-Wing key pair: an ML-KEM-768 key and an X25519 key side by side."""

    mlkem: MLKEM768PrivateKey
    x25519: X25519PrivateKey

    @property
    def public(self) -> bytes:
        return self.mlkem.public_key().public_bytes_raw() + self.x25519.public_key().public_bytes_raw()


def wrap_info(manifest_digest: bytes) -> bytes:
    return b"splitinfer/v1/wrap\x00" + manifest_digest


def wrap(content_key: bytes, kem: Kem, info: bytes) -> bytes:
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA512, AEAD.AES_256_GCM)
    return suite.encrypt(content_key, MLKEM768X25519PrivateKey(kem.mlkem, kem.x25519).public_key(), info=info)


def unwrap(wrapped: bytes, kem: Kem, info: bytes) -> bytes:
    """Open a wrap by RFC 9180 sections 4.1, 5.1 and 5.2, step by step."""
    enc, ciphertext = wrapped[:1120], wrapped[1120:]
    share = enc[1088:]
    secrets = kem.mlkem.decapsulate(enc[:1088]) + kem.x25519.exchange(X25519PublicKey.from_public_bytes(share))
    own = kem.x25519.public_key().public_bytes_raw()
    shared = hashlib.sha3_256(secrets + share + own + bytes.fromhex("5c2e2f2f5e5c")).digest()
    context = b"\x00" + _labeled_extract(b"", b"psk_id_hash", b"") + _labeled_extract(b"", b"info_hash", info)
    secret = _labeled_extract(shared, b"secret", b"")
    key, nonce = _labeled_expand(secret, b"key", context, 32), _labeled_expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


_HPKE_SUITE = b"HPKE" + bytes.fromhex("647a00030002")


def _labeled_extract(salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(64), b"HPKE-v1" + _HPKE_SUITE + label + material, "sha512")


def _labeled_expand(secret: bytes, label: bytes, info: bytes, size: int) -> bytes:
    return expand(secret, size.to_bytes(2, "big") + b"HPKE-v1" + _HPKE_SUITE + label + info, size)


def expand(key: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand with SHA-512 (RFC 5869 section 2.3)."""
    output = block = b""
    index = 1
    while len(output) < size:
        block = hmac.digest(key, block + info + bytes([index]), "sha512")
        output += block
        index += 1
    return output[:size]


@dataclass(frozen=True)
class StreamKeys:
    aead_key: bytes
    base_nonce: bytes
    commitment: bytes


def stream_keys(content_key: bytes, *, direction: int, manifest_digest: bytes, nonce: bytes) -> StreamKeys:
    label = b"splitinfer/v1/stream\x00" + bytes([direction]) + SUITE.encode() + b"\x00"
    okm = expand(content_key, label + manifest_digest + nonce, 76)
    return StreamKeys(okm[:32], okm[32:44], okm[44:])


# --- section 6: schedule --------------------------------------------------------------------------------------------


def pad_tokens(true_tokens: int) -> int:
    tokens = max(true_tokens, 64)
    exponent = tokens.bit_length() - 1
    return ceil_to(ceil_to(tokens, 2 ** (exponent - exponent.bit_length())), 64)


def padme(size: int) -> int:
    exponent = size.bit_length() - 1
    return ceil_to(size, 2 ** (exponent - exponent.bit_length()))


def expanded(runs: list[Json]) -> list[Json]:
    return [run for run in runs for _ in range(run["count"])]


def held_rows(layer: Json, tensor: Json, tokens: int) -> int:
    """Return how many rows a tensor has after so many tokens; a fixed state is one row."""
    window, stride = layer["window"], layer["stride"]
    rules: dict[str, Callable[[], int]] = {
        "tokens": lambda: tokens,
        "window": lambda: min(tokens, window - 1),
        "entries": lambda: tokens // stride,
        "remainder": lambda: tokens % stride,
        "overlap": lambda: stride if tokens >= stride else 0,
        "fixed": lambda: 1,
    }
    return rules[tensor["rows"]]()


def slabs(runs: list[Json], padded: int, base: int = 0) -> Iterator[tuple[int, str, int, int, int]]:
    """Yield (layer, tensor, start, stop, bytes)."""
    whole = pad_tokens(padded) if base else padded
    tensors = [(i, layer, tensor) for i, layer in enumerate(expanded(runs)) for tensor in layer["tensors"]]
    found: list[tuple[int, Json, int, int]] = []
    for start in range(base, padded, 512):
        stop = min(start + 512, padded)
        for index, layer, tensor in tensors:
            if tensor["rows"] == "tokens":
                found.append((index, tensor, start, stop))
            if tensor["rows"] == "entries":
                first, last = (_entries(layer["stride"], at, base, padded) for at in (start, stop))
                found.append((index, tensor, first, last))
    for index, layer, tensor in tensors:
        if tensor["rows"] == "window":
            found.append((index, tensor, 0, min(layer["window"] - 1, whole)))
    for index, layer, tensor in tensors:
        if tensor["rows"] == "remainder":
            found.append((index, tensor, 0, min(layer["stride"] - 1, whole)))
        if tensor["rows"] in {"overlap", "fixed"}:
            found.append((index, tensor, 0, held_rows(layer, tensor, whole)))
    for index, tensor, start, stop in found:
        if start < stop:
            row = math.prod(tensor["before"]) * math.prod(tensor["after"]) * ITEM_BYTES[tensor["dtype"]]
            yield index, tensor["name"], start, stop, row * (stop - start)


def lossless_slab(raw: bytes, item: int) -> bytes:
    """Return a slab of codec `lossless`: the second form where it is shorter, behind its length."""
    words = [int.from_bytes(raw[start : start + item], "little") for start in range(0, len(raw), item)]
    turned = [(word << 1 | word >> (8 * item - 1)) % (1 << 8 * item) for word in words]
    *lower, top = (bytes(word >> (8 * index) & 255 for word in turned) for index in range(item))
    second = b"\x01" + b"".join(lower) + zstd_runs(top)
    slab = min(second, b"\x00" + raw, key=len)
    return len(slab).to_bytes(4, "little") + slab


def zstd_runs(data: bytes) -> bytes:
    """Return a zstd frame of less than 65,792 bytes of runs, each an RLE block (RFC 8878 section 3.1.1)."""
    size = bytes([0x20, len(data)]) if len(data) < 256 else b"\x60" + (len(data) - 256).to_bytes(2, "little")
    runs = [(byte, sum(1 for _ in run)) for byte, run in itertools.groupby(data)]
    blocks = [
        ((index == len(runs) - 1) | 1 << 1 | count << 3).to_bytes(3, "little") + bytes([byte])
        for index, (byte, count) in enumerate(runs)
    ]
    return bytes.fromhex("28b52ffd") + size + b"".join(blocks)


def _entries(stride: int, at: int, base: int, padded: int) -> int:
    if base == 0:
        return at // stride
    return base // stride + (at - base) // stride + (1 if at == padded else 0)


def token_slab(token_ids: list[int], padded: int) -> bytes:
    return b"".join(u32(token) for token in token_ids).ljust(4 * padded, b"\x00")


def cache_chunk_bytes(total_bytes: int) -> int:
    return next((size for size in (65536, 262144) if total_bytes <= 64 * size), 1048576)


# --- section 7: streams ---------------------------------------------------------------------------------------------


def region(manifest: bytes, chunk_bytes: int, *, fill: bytes = b"\x00") -> bytes:
    data = prefixed(manifest)
    return data.ljust(ceil_to(len(data), max(4096, chunk_bytes)), fill)


def seal_chunk(
    keys: StreamKeys, plain: bytes, *, transfer_id: bytes, direction: int, index: int, is_final: bool
) -> bytes:
    nonce = (int.from_bytes(keys.base_nonce, "big") ^ index).to_bytes(12, "big")
    return AESGCM(keys.aead_key).encrypt(
        nonce, plain, transfer_id + bytes([direction]) + u32(index) + bytes([is_final])
    )


def leaf(data: bytes) -> bytes:
    return sha256(b"\x00" + data)


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"")
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + tree_root(leaves[:half]) + tree_root(leaves[half:]))


def ciphertext_root(chunks: list[bytes]) -> bytes:
    return tree_root([leaf(blake3(chunk).digest()) for chunk in chunks])


def trailer_payload(manifest_digest: bytes, count: int, root: bytes) -> bytes:
    return manifest_digest + u32(count) + root


@dataclass(frozen=True)
class Tweaks:
    """What a refusing vector does differently while it seals; the defaults are the format."""

    region_fill: bytes = b"\x00"
    declared_manifest_bytes: int | None = None
    tail_fill: bytes = b"\x00"
    trailer_count: int | None = None
    trailer_key: Ed25519PrivateKey | None = None
    trailer_purpose: str | None = None
    trailer_manifest_digest: bytes | None = None
    trailer_root: bytes | None = None
    final_index: int | None = None
    aad_direction: int | None = None
    first_index: int = 0


@dataclass(frozen=True)
class Stream:
    """All that sealing one stream needs."""

    keys: StreamKeys
    direction: int
    transfer_id: bytes
    manifest_digest: bytes
    chunk_bytes: int
    key: Ed25519PrivateKey
    tweaks: Tweaks = Tweaks()

    def seal(self, manifest: bytes, contents: bytes) -> list[bytes]:
        tweaks, size = self.tweaks, self.chunk_bytes
        data = region(manifest, size, fill=tweaks.region_fill) + contents
        if tweaks.declared_manifest_bytes is not None:
            data = u32(tweaks.declared_manifest_bytes) + data[4:]
        count = -(-(len(data) + TRAILER_BYTES) // size)
        data = data.ljust(count * size - TRAILER_BYTES, tweaks.tail_fill)
        chunks: list[bytes] = []
        for index in range(count - 1):
            chunks.append(self._chunk(data[index * size : (index + 1) * size], index, count))
        last = data[(count - 1) * size :] + self._trailer(count, chunks)
        return [*chunks, self._chunk(last, count - 1, count)]

    def _chunk(self, plain: bytes, index: int, count: int) -> bytes:
        tweaks = self.tweaks
        final_index = count - 1 if tweaks.final_index is None else tweaks.final_index
        return seal_chunk(
            self.keys,
            plain,
            transfer_id=self.transfer_id,
            direction=self.direction if tweaks.aad_direction is None else tweaks.aad_direction,
            index=index + tweaks.first_index,
            is_final=index == final_index,
        )

    def _trailer(self, count: int, chunks: list[bytes]) -> bytes:
        tweaks = self.tweaks
        stated = count if tweaks.trailer_count is None else tweaks.trailer_count
        root = tweaks.trailer_root or ciphertext_root(chunks)
        payload = trailer_payload(tweaks.trailer_manifest_digest or self.manifest_digest, stated, root)
        purpose = tweaks.trailer_purpose or ("request-trailer", "reply-trailer")[self.direction]
        return u32(stated) + sign(tweaks.trailer_key or self.key, purpose, payload)


# --- sections 9 and 10: frames, receipts ----------------------------------------------------------------------------


def frame(kind: int, payload: bytes = b"", *, fill: bytes = b"\x00") -> bytes:
    return (bytes([kind]) + len(payload).to_bytes(2, "big") + payload).ljust(FRAME_BYTES, fill)


def frame_count(max_new_tokens: int) -> int:
    count = 16
    while count < max_new_tokens:
        count *= 2
    return count + 1


def receipt_region(receipt: Json, *, fill: bytes = b"\x00") -> bytes:
    return prefixed(canonical(receipt)).ljust(RECEIPT_BYTES, fill)


# --- section 17: audit log ------------------------------------------------------------------------------------------


def checkpoint_note(key: Ed25519PrivateKey, *, origin: str, size: int, root: bytes) -> str:
    body = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    key_id = sha256(origin.encode() + b"\n\x01" + public(key))[:4]
    signature = base64.b64encode(key_id + key.sign(body.encode())).decode()
    return f"{body}\n\N{EM DASH} {origin} {signature}\n"
