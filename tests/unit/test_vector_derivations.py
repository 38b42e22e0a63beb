"""The pure functions of the format against tables that an independent script derived; and its independence."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer import schedule
from splitinfer.attestation.keyset import Keyset, identity_sha256
from splitinfer.attestation.sender import sender_id
from splitinfer.egress.checkpoint import open_checkpoint, sign_checkpoint
from splitinfer.egress.records import framed, record_bytes
from splitinfer.errors import SplitInferError
from splitinfer.merkle import leaf_hash, root_of
from splitinfer.receive.records import read_record
from splitinfer.receive.resuming import open_state_answer
from splitinfer.receive.tokens import token_slab
from splitinfer.rounds import Operation, Record
from splitinfer.sealing import frames
from splitinfer.sealing.encoding import canonical, parse_canonical, prefixed
from splitinfer.sealing.keys import Direction, StreamKeys, derive_record_keys, derive_stream_keys, unwrap_content_key
from splitinfer.sealing.receipt import ReceiptBody, read_receipt_region, receipt_region, sign_receipt
from splitinfer.sealing.records import RecordOpener, RecordSealer
from splitinfer.sealing.resume import ResumeHead, StateQuery
from splitinfer.sealing.signing import Purpose, sign, signer, verify
from splitinfer.sealing.stream import TRAILER_PURPOSE, ChunkCipher, ChunkRoot, trailer_payload
from tests.support.vectors import FOLDER, BytesSource, derivation, layout_of, replica_keys

_MAY_IMPORT = {"blake3", "cryptography"} | sys.stdlib_module_names


def _key(private_hex: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private_hex))


def _bytes(row: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(row[name])


def test_script_imports_nothing_of_the_product() -> None:
    scripts = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")}
    imported = {name for tree in scripts.values() for name in _imports(tree)}
    assert "make_vectors" in scripts
    assert imported <= _MAY_IMPORT | set(scripts)


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Name):
            assert node.id not in {"__import__", "exec", "eval"}
    return names


def test_frozen_files_are_what_the_script_derives() -> None:
    command = [sys.executable, "-B", str(FOLDER / "make_vectors.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


@pytest.mark.parametrize("row", derivation("canonical-json"), ids=lambda row: row["case"])
def test_canonical_json(row: dict[str, Any]) -> None:
    data = _bytes(row, "canonical_hex")
    assert canonical(row["value"]) == data
    assert parse_canonical(data, what="case") == row["value"]


@pytest.mark.parametrize("row", derivation("signatures"), ids=lambda row: row["purpose"])
def test_signature(row: dict[str, Any]) -> None:
    assert sign(_key(row["private_key"]), Purpose(row["purpose"]), _bytes(row, "payload_hex")).hex() == row["signature"]


def test_resume() -> None:
    row = derivation("resume")
    device, receipt = _key(row["device_private_key"]), _key(row["receipt_private_key"])
    for name, model, purpose in (
        ("query", StateQuery, Purpose.TRANSFER_STATE),
        ("head", ResumeHead, Purpose.TRANSFER_RESUME),
    ):
        made = model.model_validate(row[name])
        assert prefixed(made.to_bytes()) == _bytes(row, "query_body" if name == "query" else "head_bytes")
        assert sign(device, purpose, made.signed_bytes()).hex() == made.signature
    query = StateQuery.model_validate(row["query"])
    public = receipt.public_key().public_bytes_raw()
    answer = open_state_answer(_bytes(row, "answer_body"), query=query, receipt_public_key=public)
    assert answer.model_dump() == row["answer"]["body"]


def test_signature_vectors_cover_every_purpose() -> None:
    assert {row["purpose"] for row in derivation("signatures")} == {purpose.value for purpose in Purpose}


def test_keyset_digest_identity_and_sender_id() -> None:
    row = derivation("keyset")
    keyset = Keyset.model_validate(row["keyset"])
    assert keyset.digest.hex() == row["keyset_digest"]
    assert identity_sha256(_bytes(row, "identity_public_key")) == row["identity_sha256"]
    assert sender_id(keyset.digest, _bytes(row, "device_public_key")) == row["sender_id"]
    replica_key = bytes.fromhex(keyset.certificate.body.replica_key)
    verify(replica_key, Purpose.KEYSET, keyset.to_bytes(), _bytes(row, "signature"))


def test_wrap_opens_to_the_content_key() -> None:
    row = derivation("wrap")
    kem = replica_keys().kem
    assert kem.public_bytes.hex() == row["kem_public_key"]
    opened = unwrap_content_key(_bytes(row, "wrap"), private_key=kem, manifest_digest=_bytes(row, "manifest_sha256"))
    assert opened.hex() == row["content_key"]


@pytest.mark.parametrize("row", derivation("stream-keys"), ids=lambda row: f"direction-{row['direction']}")
def test_stream_keys(row: dict[str, Any]) -> None:
    keys = derive_stream_keys(
        _bytes(row, "content_key"),
        direction=Direction(row["direction"]),
        manifest_digest=_bytes(row, "manifest_sha256"),
        nonce=_bytes(row, "nonce"),
    )
    found = (keys.aead_key.hex(), keys.base_nonce.hex(), keys.commitment.hex())
    assert found == (row["aead_key"], row["base_nonce"], row["commitment"])


def test_pad_tokens() -> None:
    table = derivation("pad-tokens")
    assert [[tokens, schedule.pad_tokens(tokens)] for tokens, _ in table] == table


@pytest.mark.parametrize(
    "row", derivation("schedule"), ids=lambda row: f"{row['layout']}-{row['padded']}-{row['base']}"
)
def test_schedule(row: dict[str, Any]) -> None:
    specs = list(schedule.slabs(layout_of(row["layers"]), row["padded"], row["base"]))
    assert [[spec.layer, spec.part, spec.start, spec.stop, spec.size_bytes] for spec in specs] == row["slabs"]
    assert schedule.cache_chunk_bytes(row["total_bytes"]) == row["chunk_bytes"]


@pytest.mark.parametrize("row", derivation("token-slab"), ids=lambda row: f"{len(row['token_ids'])}-ids")
def test_token_slab(row: dict[str, Any]) -> None:
    assert token_slab(tuple(row["token_ids"]), padded_tokens=row["padded"]).hex() == row["slab"]


@pytest.mark.parametrize("row", derivation("chunks"), ids=lambda row: f"chunk-{row['index']}")
def test_chunk_is_sealed_and_opened(row: dict[str, Any]) -> None:
    keys = StreamKeys(_bytes(row, "aead_key"), _bytes(row, "base_nonce"), b"")
    cipher = ChunkCipher(keys, transfer_id=_bytes(row, "transfer_id"), direction=Direction(row["direction"]))
    plain, chunk = _bytes(row, "plain"), _bytes(row, "chunk")
    sealed, opened = bytearray(len(chunk)), bytearray(len(plain))
    cipher.seal_into(row["index"], memoryview(plain), memoryview(sealed), final=row["final"])
    cipher.open_into(row["index"], memoryview(chunk), memoryview(opened), final=row["final"])
    assert (bytes(sealed), bytes(opened)) == (chunk, plain)


@pytest.mark.parametrize("row", derivation("ciphertext-root"), ids=lambda row: f"{len(row['chunks'])}-chunks")
def test_ciphertext_root(row: dict[str, Any]) -> None:
    root = ChunkRoot()
    for chunk in row["chunks"]:
        root.add(memoryview(bytes.fromhex(chunk)))
    assert root.root().hex() == row["root"]


@pytest.mark.parametrize("row", derivation("trailer"), ids=lambda row: row["purpose"])
def test_trailer(row: dict[str, Any]) -> None:
    payload = trailer_payload(_bytes(row, "manifest_sha256"), row["count"], _bytes(row, "root"))
    signature = sign(_key(row["private_key"]), Purpose(row["purpose"]), payload)
    assert (row["count"].to_bytes(4, "big") + signature).hex() == row["trailer"]
    assert Purpose(row["purpose"]) in TRAILER_PURPOSE.values()


def test_frames() -> None:
    table = derivation("frames")
    assert frames.pad_frame().hex() == table["pad"]
    assert [[token, frames.token_frame(token).hex()] for token, _ in table["token"]] == table["token"]
    assert {reason: frames.end_frame(reason).hex() for reason in frames.FINISH_REASONS} == table["end"]
    assert [[code, frames.refusal_frame(code).hex()] for code, _ in table["refusal"]] == table["refusal"]
    assert [[tokens, frames.frame_count(tokens)] for tokens, _ in table["count"]] == table["count"]


def test_receipt() -> None:
    row = derivation("receipt")
    receipt = sign_receipt(ReceiptBody.model_validate(row["body"]), signer=signer(_key(row["private_key"])))
    assert receipt.signature == row["signature"]
    assert receipt_region(receipt).hex() == row["block"]
    assert read_receipt_region(_bytes(row, "block")) == receipt


ROUNDS = derivation("rounds")


def _record(name: list[int], *blobs: bytes) -> Record:
    return Record(name[0], name[1], Operation(name[2]), blobs)


def _record_keys(direction: Direction) -> StreamKeys:
    first, second = (bytes.fromhex(nonce) for nonce in ROUNDS["nonces"])
    return derive_record_keys(
        _bytes(ROUNDS, "content_key"),
        direction=direction,
        manifest_digest=_bytes(ROUNDS, "manifest_sha256"),
        nonces=(first, second),
    )


def _sealer(direction: Direction, chunks: ChunkRoot) -> RecordSealer:
    keys = _record_keys(direction)
    return RecordSealer(keys, transfer_id=_bytes(ROUNDS, "transfer_id"), direction=direction, chunks=chunks)


def _opener(direction: Direction, chunks: ChunkRoot) -> RecordOpener:
    keys = _record_keys(direction)
    return RecordOpener(keys, transfer_id=_bytes(ROUNDS, "transfer_id"), direction=direction, chunks=chunks)


@pytest.mark.parametrize("direction", list(Direction))
def test_record_keys(direction: Direction) -> None:
    keys, row = _record_keys(direction), ROUNDS["keys"][direction]
    assert (keys.aead_key.hex(), keys.base_nonce.hex()) == (row["aead_key"], row["base_nonce"])


@pytest.mark.parametrize("direction", list(Direction))
def test_records_of_a_session_are_sealed_and_opened(direction: Direction) -> None:
    row, up, down = ROUNDS["directions"][direction], ChunkRoot(), ChunkRoot()
    sealer, opener = _sealer(direction, up), _opener(direction, down)
    for one in row["records"]:
        record = _record(one["name"], *(bytes.fromhex(blob) for blob in one["blobs"]))
        assert record.to_bytes().hex() == one["record"]
        assert [part.hex() for part in sealer.seal(record)] == [one["part"]]
        assert read_record(BytesSource(_bytes(one, "part")), opener, asked=record) == record
    assert up.root().hex() == down.root().hex() == row["root"]


def test_a_record_of_two_parts() -> None:
    row = ROUNDS["long"]
    parts = list(_sealer(Direction.REQUEST, ChunkRoot()).seal(_record(row["name"], bytes(row["blob_bytes"]))))
    found = [{"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()} for part in parts]
    assert found == row["parts"]


@pytest.mark.parametrize("row", ROUNDS["refused"], ids=lambda row: row["case"])
def test_replies_that_are_refused(row: dict[str, Any]) -> None:
    opener, asked = _opener(Direction.REPLY, ChunkRoot()), _record(row["asked"])
    if not row["code"]:
        assert read_record(BytesSource(_bytes(row, "data")), opener, asked=asked).name == asked.name
        return
    with pytest.raises(SplitInferError) as raised:
        read_record(BytesSource(_bytes(row, "data")), opener, asked=asked)
    assert raised.value.code == row["code"]


def test_audit_log() -> None:
    row = derivation("audit-log")
    payloads = [record_bytes(record) for record in row["records"]]
    root = root_of([leaf_hash(payload) for payload in payloads])
    key = _key(row["checkpoint_private_key"])
    assert [framed(payload).hex() for payload in payloads] == row["frames"]
    assert root.hex() == row["root"]
    assert sign_checkpoint(key, origin=row["origin"], size=len(payloads), root=root).note == row["checkpoint"]
    assert open_checkpoint(row["checkpoint"], key.public_key(), origin=row["origin"]).root == root
