"""The table of what an attacker on the network can do to a transfer, and the one error that each must end in.

A `Mutation` changes one message. `error` is what the device raises, exactly; `code` is the cloud's word where it
refuses before a stream is open. `fault_chunk` is the first reply chunk that is no longer what the cloud sealed.
Generators take an earlier, untampered `Transfer` of the same mode, for its sizes and as a source of other bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from splitinfer import errors
from tests.support.tampering_proxy import Change, Transfer, Where
from tests.support.wire import (
    TAG_BYTES,
    Message,
    Path,
    WireBody,
    canonical,
    flip_bit,
    flipped_value,
    leaves,
    value_at,
    with_value,
)

Error = type[errors.SplitInferError]
BodyChange = Callable[[WireBody], WireBody]
HTML = b"<html><body>It works!</body></html>"
ALL = 1 << 20

# The clear head of a request: the cloud answers with a code, before it knows who sends.
REQUEST_HEAD = {
    "version": "manifest",
    "suite": "manifest",
    "transfer_id": "authentication",
    "keyset_digest": "keyset_stale",
    "sender_id": "authentication",
    "chunk_bytes": "limit_exceeded",
    "expires_at": "authentication",
    "wrap": "authentication",
    "stream_nonce": "authentication",
    "commitment": "authentication",
    "server_nonce": "authentication",
    "signature": "authentication",
}
REPLY_HEAD: dict[str, Error] = {
    "version": errors.ManifestError,
    "transfer_id": errors.ReplayError,
    "chunk_bytes": errors.LimitExceededError,
    "stream_nonce": errors.AuthenticationError,
    "commitment": errors.AuthenticationError,
}
# Everything else in a keyset is under a signature that ends at the pinned identity.
KEYSET: dict[Path, Error] = {
    ("keyset", "version"): errors.ManifestError,
    ("keyset", "certificate", "body", "version"): errors.ManifestError,
    ("nonce",): errors.RemoteRefusedError,
}


@dataclass(frozen=True)
class Mutation:
    """One attack: where it strikes, what it changes, and what must come of it."""

    name: str
    where: Where
    change: Change
    error: Error
    code: str | None = None
    fault_chunk: int = 0


def _on_body(change: BodyChange) -> Change:
    return lambda message: message.with_body(change(WireBody.parse(message.body)).to_bytes())


def _on_bytes(change: Callable[[bytes], bytes]) -> Change:
    return lambda message: message.with_body(change(message.body))


def _cut_to(size: int) -> Change:
    return _on_bytes(lambda data: data[:size])


def _lost_after(size: int) -> Change:
    return lambda message: message.cut(size)


def _longer_by(extra: bytes) -> Change:
    return _on_bytes(lambda data: data + extra)


def _replaced(body: bytes) -> Change:
    return _on_bytes(lambda _: body)


def flipped_at(byte: int, bit: int) -> Change:
    return _on_bytes(lambda data: flip_bit(data, byte, bit))


def _with_status(status: int) -> Change:
    return lambda message: message.with_status(status)


def _put(path: Path, value: object) -> BodyChange:
    return lambda body: body.with_value(path, value)


def _put_chunk(index: int, chunk: bytes) -> BodyChange:
    return lambda body: body.with_chunk(index, chunk)


# --- keyset ---------------------------------------------------------------------------------------------------


def keyset_mutations(earlier: Message) -> Iterator[Mutation]:
    """Yield attacks on the keyset reply; `earlier` is one of the same cloud whose nonce is spent."""
    reply = json.loads(earlier.body)

    def keyset(name: str, change: Change, error: Error, code: str | None = None) -> Mutation:
        return Mutation(f"keyset {name}", "keyset", change, error, code)

    for path, _ in leaves(reply):
        error = KEYSET.get(path, errors.RemoteRefusedError if path == ("nonce",) else errors.RecipientMismatchError)
        code = "replay" if error is errors.RemoteRefusedError else None
        yield keyset(f"flip {'.'.join(map(str, path))}", _flip_field(path), error, code)
    manifest = errors.ManifestError
    body = earlier.body
    for name, at, bit in (("brace", 0, 0), ("quote", 1, 0), ("colon", body.index(b":"), 0), ("last brace", -1, 0)):
        yield keyset(f"flip {name}", flipped_at(at, bit), manifest)
    yield keyset(
        "hex digit to no digit", _on_bytes(lambda data: flip_bit(data, data.index(b'"nonce":"') + 9, 6)), manifest
    )
    yield keyset("unknown key", _on_bytes(lambda data: canonical({**json.loads(data), "x": 1})), manifest)
    yield keyset("lacks its nonce", _on_bytes(lambda data: canonical(_without(json.loads(data), "nonce"))), manifest)
    yield keyset("not canonical", _on_bytes(lambda data: data.replace(b",", b", ", 1)), manifest)
    yield keyset("same key twice", _on_bytes(lambda data: b'{"nonce":"' + b"0" * 64 + b'",' + data[1:]), manifest)
    yield keyset("one byte longer", _on_bytes(lambda data: data + b" "), manifest)
    yield keyset("endless", _on_bytes(lambda data: data + b" " * 70_000), errors.LimitExceededError)
    for size in (0, 1, len(body) // 2, len(body) - 1):
        yield keyset(f"cut to {size} bytes", _cut_to(size), manifest)
        yield keyset(f"lost after {size} bytes", _lost_after(size), errors.TransportError)
    swapped = with_value(
        with_value(reply, ("signature",), value_at(reply, ("keyset", "certificate", "signature"))),
        ("keyset", "certificate", "signature"),
        reply["signature"],
    )
    yield keyset("signatures swapped", _on_bytes(lambda _: canonical(swapped)), errors.RecipientMismatchError)
    yield keyset("earlier one again", _on_bytes(lambda _: body), errors.RemoteRefusedError, "replay")
    yield keyset("HTML as JSON", _on_bytes(lambda _: HTML), manifest)
    yield from _http_mutations("keyset", "application/json")


def _flip_field(path: Path) -> Change:
    def change(message: Message) -> Message:
        value = json.loads(message.body)
        return message.with_body(canonical(with_value(value, path, flipped_value(value_at(value, path)))))

    return change


def _without(value: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: inner for key, inner in value.items() if key not in keys}


# --- request --------------------------------------------------------------------------------------------------


def request_head_mutations(earlier: Transfer) -> Iterator[Mutation]:
    """Yield attacks on the clear head of a request; nothing of it may be opened."""
    past = earlier.sent

    def head(name: str, change: BodyChange, code: str) -> Mutation:
        return Mutation(f"request head {name}", "request", _on_body(change), errors.RemoteRefusedError, code)

    def raw(name: str, change: Callable[[bytes], bytes], code: str) -> Mutation:
        return Mutation(f"request head {name}", "request", _on_bytes(change), errors.RemoteRefusedError, code)

    for path, _ in leaves(past.fields):
        yield head(f"flip {'.'.join(map(str, path))}", _flip_leaf(path), REQUEST_HEAD[str(path[-1])])
        swapped = past.get(*path)
        if path[-1] in {"transfer_id", "wrap", "stream_nonce", "commitment", "server_nonce", "signature"}:
            name = f"{path[-1]} of another transfer"
            yield head(name, _put(path, swapped), "authentication")
        yield head(f"lacks {path[-1]}", _drop_leaf(path), "manifest")
    soon = ("manifest", "expires_at")
    yield head("another chunk size", _other_chunk_size(("manifest", "chunk_bytes")), "authentication")
    yield head("chunk size 0", lambda body: body.with_value(("manifest", "chunk_bytes"), 0), "limit_exceeded")
    yield head("expired", lambda body: body.with_value(soon, int(time.time()) - 1), "manifest")
    yield head("expires late", lambda body: body.with_value(soon, int(time.time()) + 3600), "manifest")
    yield head("expires later", lambda body: body.with_value(soon, int(time.time()) + 500), "authentication")
    yield head("version 2", lambda body: body.with_value(("manifest", "version"), 2), "manifest")
    yield head("nonces swapped", _swap_nonces, "authentication")
    yield head("of another transfer", lambda body: replace(body, head=past.head), "replay")
    yield head("manifest of another", _take("manifest", past), "authentication")
    yield head("unknown key", lambda body: body.with_fields({**body.fields, "x": 1}), "manifest")
    yield raw("replayed whole", lambda _: past.to_bytes(), "replay")
    yield from (raw(*row) for row in _raw_head("manifest", "limit_exceeded"))


def _raw_head(manifest: str, limit: str) -> Iterator[tuple[str, Callable[[bytes], bytes], str]]:
    yield "flip first length byte", lambda data: flip_bit(data, 0), limit
    yield "flip second length byte", lambda data: flip_bit(data, 1), limit
    yield "flip last length byte", lambda data: flip_bit(data, 3), manifest
    yield "flip brace", lambda data: flip_bit(data, 4), manifest
    yield "flip quote", lambda data: flip_bit(data, 5), manifest
    yield "flip colon", lambda data: flip_bit(data, data.index(b":")), manifest
    yield "hex digit to no digit", lambda data: flip_bit(data, data.index(b'"commitment":"') + 14, 6), manifest
    yield "upper-case digit", _upper_digit, manifest
    yield "length 0", lambda data: b"\x00\x00\x00\x00" + data[4:], manifest


def _upper_digit(data: bytes) -> bytes:
    at = data.index(b'"stream_nonce":"') + 16
    nonce = data[at : at + 64]
    return data[:at] + nonce.upper() + data[at + 64 :] if nonce != nonce.upper() else flip_bit(data, at, 6)


def _flip_leaf(path: Path) -> BodyChange:
    return lambda body: body.with_value(path, flipped_value(body.get(*path)))


def _drop_leaf(path: Path) -> BodyChange:
    def change(body: WireBody) -> WireBody:
        if len(path) == 1:
            return body.with_fields(_without(body.fields, str(path[0])))
        inner = body.fields[str(path[0])]
        kept = _without(dict(inner), str(path[1])) if isinstance(inner, dict) else {}
        return body.with_fields({**body.fields, str(path[0]): kept})

    return change


def _other_chunk_size(path: Path, sizes: Sequence[int] = (4096, 64 * 1024)) -> BodyChange:
    return lambda body: body.with_value(path, next(size for size in sizes if size != body.get(*path)))


def _swap_nonces(body: WireBody) -> WireBody:
    fields = body.fields
    return body.with_fields({**fields, "stream_nonce": fields["server_nonce"], "server_nonce": fields["stream_nonce"]})


def _take(key: str, other: WireBody) -> BodyChange:
    return lambda body: body.with_value((key,), other.get(key))


def request_stream_mutations(earlier: Transfer) -> Iterator[Mutation]:
    """Yield attacks on the chunks of a request; the cloud refuses them under seal and computes nothing."""
    yield from _stream_mutations("request", earlier.sent, earlier.received)
    for at in (0, 2, 4, 4 + len(earlier.sent.head) // 2):
        change = _cut_to(at)
        yield Mutation(f"request cut to {at} bytes", "request", change, errors.RemoteRefusedError, "truncated")


# --- reply ----------------------------------------------------------------------------------------------------


def reply_head_mutations(earlier: Transfer) -> Iterator[Mutation]:
    """Yield attacks on the clear head of a reply."""
    past, request = earlier.received, earlier.sent

    def head(name: str, change: BodyChange, error: Error) -> Mutation:
        return Mutation(f"reply head {name}", "reply", _on_body(change), error)

    def raw(name: str, change: Callable[[bytes], bytes], error: Error) -> Mutation:
        return Mutation(f"reply head {name}", "reply", _on_bytes(change), error)

    for path, _ in leaves(past.fields):
        yield head(f"flip {path[-1]}", _flip_leaf(path), REPLY_HEAD[str(path[-1])])
        yield head(f"lacks {path[-1]}", _drop_leaf(path), errors.ManifestError)
    for key in ("stream_nonce", "commitment"):
        yield head(f"{key} of another reply", _take(key, past), errors.AuthenticationError)
        yield head(f"{key} of a request", _take(key, request), errors.AuthenticationError)
    yield head("nonce empty", lambda body: body.with_value(("stream_nonce",), ""), errors.ManifestError)
    yield head("nonce zero", lambda body: body.with_value(("stream_nonce",), "0" * 64), errors.AuthenticationError)
    smaller = _other_chunk_size(("chunk_bytes",), (4096, 512))
    yield head("another chunk size", smaller, errors.AuthenticationError)
    yield head("chunks of 1 MiB", lambda body: body.with_value(("chunk_bytes",), 1 << 20), errors.TruncatedError)
    yield head("of another reply", lambda body: replace(body, head=past.head), errors.ReplayError)
    yield head("unknown key", lambda body: body.with_fields({**body.fields, "x": 1}), errors.ManifestError)
    yield raw("earlier reply", lambda _: past.to_bytes(), errors.ReplayError)
    yield head(
        "earlier reply under this transfer id",
        lambda body: past.with_value(("transfer_id",), body.get("transfer_id")),
        errors.AuthenticationError,
    )
    yield head("a request as the reply", lambda _: request, errors.ManifestError)
    for name, change, kind in _raw_head("manifest", "limit_exceeded"):
        yield raw(name, change, errors.ManifestError if kind == "manifest" else errors.LimitExceededError)


def reply_stream_mutations(earlier: Transfer) -> Iterator[Mutation]:
    """Yield attacks on the chunks of a reply."""
    yield from _stream_mutations("reply", earlier.received, earlier.sent)
    for at in (0, 2, 4, 4 + len(earlier.received.head) // 2):
        change = _cut_to(at)
        yield Mutation(f"reply cut to {at} bytes", "reply", change, errors.TruncatedError)


def reply_http_mutations() -> Iterator[Mutation]:
    """Yield answers that are no splitinfer stream, or say that they are and are not."""
    yield from _http_mutations("reply", "application/octet-stream")
    for name, body, error in (
        ("empty body", b"", errors.TruncatedError),
        ("HTML", HTML, errors.LimitExceededError),
        ("noise", b"\xff" * 2000, errors.LimitExceededError),
        ("zeros", bytes(2000), errors.ManifestError),
    ):
        yield Mutation(f"reply 200 with {name}", "reply", _replaced(body), error)


def _http_mutations(where: Where, media_type: str) -> Iterator[Mutation]:
    def http(name: str, change: Change, error: Error, code: str | None = None) -> Mutation:
        return Mutation(f"{where} {name}", where, change, error, code)

    def problem(status: int) -> Change:
        body = json.dumps({"code": "keyset_stale"}).encode()
        typed = "application/problem+json"
        return lambda message: message.with_status(status).with_header("content-type", typed).with_body(body)

    lost = errors.TransportError
    yield http("never comes", lambda _: None, lost)
    yield http("HTML page", lambda m: m.with_header("content-type", "text/html").with_body(HTML), lost)
    yield http("type with parameter", lambda m: m.with_header("content-type", f"{media_type}; charset=x"), lost)
    for status in (204, 206, 302, 404, 500):
        yield http(f"status {status}", _with_status(status), lost)
    yield http("no length", lambda m: m.with_header("content-length", None), lost)
    yield http("chunked", lambda m: m.with_header("transfer-encoding", "chunked"), lost)
    yield http("encoded", lambda m: m.with_header("content-encoding", "gzip"), lost)
    yield http("no type", lambda m: m.with_header("content-type", None), lost)
    yield http("problem", problem(422), errors.RemoteRefusedError, "keyset_stale")
    yield http("busy", problem(429), errors.RemoteBusyError)


# --- chunks, in either direction ------------------------------------------------------------------------------


def _stream_mutations(where: Where, past: WireBody, other: WireBody) -> Iterator[Mutation]:
    """Yield attacks on a stream that has as many chunks as `past`; `other` ran in the other direction."""
    count = len(past.chunks)
    last = count - 1

    def stream(name: str, change: BodyChange, error: Error, fault: int) -> Mutation:
        return Mutation(f"{where} {name}", where, _on_body(change), error, fault_chunk=fault)

    for index in chosen_chunks(count):
        for name, byte, bit in (("first byte", 0, 0), ("last byte", -TAG_BYTES - 1, 7), ("tag", -1, 3)):
            yield stream(
                f"chunk {index} flip {name}", flip_in_chunk(index, byte, bit), errors.AuthenticationError, index
            )
        yield from (stream(*row) for row in _rearranged(index, last))
        spliced = past.chunks[index]
        yield stream(
            f"chunk {index} of an earlier transfer",
            _put_chunk(index, spliced),
            errors.AuthenticationError,
            index,
        )
        foreign = b"".join(other.chunks)[: len(spliced)].ljust(len(spliced), b"\x00")
        yield stream(
            f"chunk {index} of the other direction",
            _put_chunk(index, foreign),
            errors.AuthenticationError,
            index,
        )
    reversed_ = _on_chunks(lambda chunks: chunks[::-1])
    yield stream("chunks reversed", reversed_, errors.AuthenticationError, 0)
    yield stream("final chunk first", _on_chunks(lambda c: [c[-1], *c[:-1]]), errors.AuthenticationError, 0)
    yield stream("final chunk one earlier", _on_chunks(_final_earlier), errors.AuthenticationError, last - 1)
    yield stream(
        "all chunks of an earlier transfer",
        lambda body: body.with_chunks(past.chunks),
        errors.AuthenticationError,
        0,
    )
    yield from _truncated(where, past)
    for name, extra in (("a byte", b"\x00"), ("a chunk of zeros", bytes(len(past.chunks[0]))), ("a head", past.head)):
        change = _longer_by(extra)
        yield Mutation(f"{where} goes on with {name}", where, change, errors.TruncatedError, fault_chunk=ALL)


def chosen_chunks(count: int) -> list[int]:
    """Return every chunk; of many: manifest, frames of tokens, end and padding, receipt and the final one."""
    if count <= 6:
        return list(range(count))
    return sorted({index for index in (0, 8, 11, 16, count - 10, count - 4, count - 1) if 0 <= index < count})


def flip_in_chunk(index: int, byte: int, bit: int) -> BodyChange:
    return lambda body: body.with_chunk(index, flip_bit(body.chunks[index], byte, bit))


def flip_mutation(where: Where, index: int, byte: int, bit: int) -> Mutation:
    change = _on_body(flip_in_chunk(index, byte, bit))
    return Mutation(f"{where} chunk {index} byte {byte}", where, change, errors.AuthenticationError, fault_chunk=index)


def _on_chunks(change: Callable[[list[bytes]], list[bytes]]) -> BodyChange:
    return lambda body: body.with_chunks(change(list(body.chunks)))


def _final_earlier(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:-2], chunks[-1], chunks[-2]]


def _rearranged(index: int, last: int) -> Iterator[tuple[str, BodyChange, Error, int]]:
    wrong, ended = errors.AuthenticationError, errors.TruncatedError
    dropped = _on_chunks(lambda c: [*c[:index], *c[index + 1 :]])
    yield f"chunk {index} dropped", dropped, ended if index == last else wrong, index
    doubled = _on_chunks(lambda c: [*c[: index + 1], *c[index:]])
    yield f"chunk {index} twice", doubled, ended if index == last else wrong, ALL if index == last else index + 1
    if index < last:
        swapped = _on_chunks(lambda c: [*c[:index], c[index + 1], c[index], *c[index + 2 :]])
        yield f"chunks {index} and {index + 1} swapped", swapped, wrong, index
        moved = _on_chunks(lambda c: [*c[:index], c[-1], *c[index + 1 :]])
        yield f"chunk {index} replaced by the final one", moved, wrong, index


def _truncated(where: Where, past: WireBody) -> Iterator[Mutation]:
    """Cut before every chosen chunk and in its middle: with the length made to fit, and by a lost connection."""
    unit = len(past.chunks[0])
    first = 4 + len(past.head)
    chunks = chosen_chunks(len(past.chunks))
    for at in (0, 2, 4, first - 1):
        yield Mutation(f"{where} lost after {at} bytes", where, _lost_after(at), errors.TransportError)
    for index, offset in ((index, offset) for index in chunks for offset in (0, unit - 1)):
        at = first + index * unit + offset
        name = f"chunk {index}, byte {offset}"
        cut = _cut_to(at)
        yield Mutation(f"{where} cut at {name}", where, cut, errors.TruncatedError, fault_chunk=index)
        yield Mutation(f"{where} lost at {name}", where, _lost_after(at), errors.TransportError, fault_chunk=index)
