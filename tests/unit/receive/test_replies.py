from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from splitinfer import errors
from splitinfer.errors import (
    AuthenticationError,
    LimitExceededError,
    ManifestError,
    ModelMismatchError,
    RemoteRefusedError,
    ReplayError,
    SplitInferError,
    TruncatedError,
    VerificationError,
)
from splitinfer.receive.replies import OpenedReply, open_reply, refusal_error
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.frames import Frame, FrameKind, end_frame, pad_frame, refusal_frame, token_frame
from splitinfer.sealing.heads import ReplyHead
from splitinfer.sealing.manifest import RefusalWire
from splitinfer.sealing.receipt import RECEIPT_BYTES, Receipt
from splitinfer.sealing.stream import FRAME_CHUNK_BYTES, TAG_BYTES
from tests.support.device_cloud import (
    EXPECTED,
    Bytes,
    Pair,
    RecordingSink,
    layout_bytes,
    receipt_bytes,
    request_manifest,
    response_manifest,
    slab_sizes,
)

TOKENS = 100
WHOLE = FRAME_CHUNK_BYTES + TAG_BYTES


class Replies:
    """A request that was sent, and the replies that its recipient, or somebody else, could make to it."""

    def __init__(self, kind: str = "prefill") -> None:
        self.pair = Pair()
        self.request = request_manifest(kind, tokens=TOKENS)
        _, self.keys = self.pair.seal([], following_bytes=0, manifest=self.request.to_bytes())
        self.sent = self.pair.sent(self.keys, tokens=TOKENS, manifest=self.request)
        self.key = self.pair.replica.current().receipt
        self.receipt = receipt_bytes(self.key)

    def cache(self, data: bytes, *, kind: str = "cache", receipt: bytes | None = None, **changes: object) -> bytes:
        response = response_manifest("cache", self.request, **{"kind": kind, **changes})
        following = len(data) + RECEIPT_BYTES
        pieces = [data, self.receipt if receipt is None else receipt]
        return self.pair.seal_reply(pieces, self.keys, response=response, following_bytes=following, chunk_bytes=65536)

    def frames(self, *frames: bytes, by: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
        response = response_manifest("tokens", self.request, **{"frames": len(frames), **changes})
        following = len(frames) * FRAME_CHUNK_BYTES + RECEIPT_BYTES
        pieces = [*frames, self.receipt]
        return self.pair.seal_reply(
            pieces, self.keys, response=response, following_bytes=following, chunk_bytes=FRAME_CHUNK_BYTES, by=by
        )

    def refusal(self, refusal: RefusalWire | None) -> bytes:
        response = response_manifest("refusal", self.request, refusal=refusal)
        return self.pair.seal_reply(
            [self.receipt], self.keys, response=response, following_bytes=RECEIPT_BYTES, chunk_bytes=FRAME_CHUNK_BYTES
        )

    def open(self, data: bytes, steps: tuple[int, ...] = (1 << 30,)) -> OpenedReply:
        return open_reply(Bytes(data, steps), self.sent, EXPECTED)


def answer(*tokens: int, frames: int = 17) -> list[bytes]:
    made = [*(token_frame(token) for token in tokens), end_frame("length")]
    return made + [pad_frame()] * (frames - len(made))


def accept(receipt: Receipt) -> None:
    """Find no fault with a receipt."""


def read(reply: OpenedReply) -> tuple[list[Frame], SplitInferError | None]:
    seen: list[Frame] = []
    try:
        seen.extend(reply.frames())
    except SplitInferError as error:
        return seen, error
    return seen, None


@given(steps=st.lists(st.integers(1, 100_000) | st.just(7000), min_size=1, max_size=3).map(tuple))
@settings(deadline=None, max_examples=8)
def test_a_cache_arrives_with_its_receipt(steps: tuple[int, ...]) -> None:
    replies = Replies()
    data = os.urandom(layout_bytes(TOKENS))
    sizes = slab_sizes(TOKENS)
    reply = replies.open(replies.cache(data), steps)
    verified = reply.receive_cache(RecordingSink(sizes), iter(sizes), data_bytes=len(data), check_receipt=accept)
    assert verified.payload == data
    assert reply.receipt is not None
    assert reply.receipt.body.transfer_id == "a" * 32


@pytest.mark.parametrize("block", [bytes(RECEIPT_BYTES), b"\xff" * RECEIPT_BYTES])
def test_a_cache_with_a_malformed_receipt_is_refused_and_wiped(block: bytes) -> None:
    replies = Replies()
    data, sizes = os.urandom(layout_bytes(TOKENS)), slab_sizes(TOKENS)
    sink = RecordingSink(sizes)
    reply = replies.open(replies.cache(data, receipt=block))
    with pytest.raises(ManifestError):
        reply.receive_cache(sink, iter(sizes), data_bytes=len(data), check_receipt=accept)
    assert sink.is_clean


def test_a_cut_cache_is_refused_and_wiped() -> None:
    replies = Replies()
    data, sizes = os.urandom(layout_bytes(TOKENS)), slab_sizes(TOKENS)
    sink = RecordingSink(sizes)
    reply = replies.open(replies.cache(data)[:-1])
    with pytest.raises(TruncatedError):
        reply.receive_cache(sink, iter(sizes), data_bytes=len(data), check_receipt=accept)
    assert sink.is_clean
    assert "finish" not in sink.calls
    assert reply.receipt is None


def test_a_cache_whose_receipt_is_refused_is_never_finished_and_wiped() -> None:
    replies = Replies()
    data, sizes = os.urandom(layout_bytes(TOKENS)), slab_sizes(TOKENS)
    sink = RecordingSink(sizes)
    checked: list[Receipt] = []

    def refuse(receipt: Receipt) -> None:
        checked.append(receipt)
        raise VerificationError("the receipt is of something else")

    reply = replies.open(replies.cache(data))
    with pytest.raises(VerificationError, match="something else"):
        reply.receive_cache(sink, iter(sizes), data_bytes=len(data), check_receipt=refuse)
    assert len(checked) == 1
    assert "finish" not in sink.calls
    assert sink.is_clean


def test_a_receipt_is_not_looked_at_before_the_trailer_verified() -> None:
    replies = Replies()
    data, sizes = os.urandom(layout_bytes(TOKENS)), slab_sizes(TOKENS)
    body = bytearray(replies.cache(data))
    body[-1] ^= 1
    checked: list[Receipt] = []
    with pytest.raises(AuthenticationError):
        replies.open(bytes(body)).receive_cache(
            RecordingSink(sizes), iter(sizes), data_bytes=len(data), check_receipt=checked.append
        )
    assert checked == []


def test_frames_arrive_in_order_with_the_end_and_the_receipt() -> None:
    replies = Replies("decode")
    reply = replies.open(replies.frames(*answer(5, 6, 7)), (1, 1000, 3))
    frames, error = read(reply)
    assert error is None
    assert [frame.token_ids for frame in frames[:-1]] == [(5,), (6,), (7,)]
    assert frames[-1] == Frame(FrameKind.END, finish_reason="length")
    assert reply.receipt is not None


@given(cut=st.integers(1, 21 * WHOLE - 1))
@settings(deadline=None, max_examples=30)
def test_a_cut_answer_gives_the_frames_before_the_cut_and_an_error(cut: int) -> None:
    replies = Replies("decode")
    body = replies.frames(*answer(5, 6, 7))
    frames, error = read(replies.open(body[: len(body) - cut]))
    assert isinstance(error, TruncatedError)
    whole = read(replies.open(body))[0]
    assert frames == whole[: len(frames)]


@pytest.mark.parametrize("bad", range(3))
def test_frames_before_a_changed_one_stay_and_none_follows(bad: int) -> None:
    replies = Replies("decode")
    body = bytearray(replies.frames(*answer(5, 6, 7)))
    chunks_at = len(body) - 30 * WHOLE  # 8 chunks of manifest, 17 frames, 4 of receipt, the final one
    body[chunks_at + (8 + bad) * WHOLE] ^= 1
    reply = replies.open(bytes(body))
    frames, error = read(reply)
    assert isinstance(error, AuthenticationError)
    assert [frame.token_ids for frame in frames] == [(5,), (6,), (7,)][:bad]
    assert reply.receipt is None


def test_what_was_received_of_a_refused_answer_is_wiped() -> None:
    replies = Replies("decode")
    body = bytearray(replies.frames(*answer(5, 6, 7)))
    body[-1] ^= 1
    reply = replies.open(bytes(body))
    assert isinstance(read(reply)[1], AuthenticationError)
    assert not any(reply.reader._plain)


def test_what_was_received_of_an_abandoned_answer_is_wiped() -> None:
    replies = Replies("decode")
    reply = replies.open(replies.frames(*answer(5, 6, 7)))
    frames = reply.frames()
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert not any(reply.reader._plain)


def test_an_answer_without_an_end_is_truncated() -> None:
    replies = Replies("decode")
    frames, error = read(replies.open(replies.frames(token_frame(5), pad_frame())))
    assert [frame.token_ids for frame in frames] == [(5,)]
    assert isinstance(error, TruncatedError)


@pytest.mark.parametrize("late", [token_frame(9), end_frame("stop"), refusal_frame("model")])
def test_frames_after_the_end_are_refused(late: bytes) -> None:
    replies = Replies("decode")
    frames, error = read(replies.open(replies.frames(token_frame(5), end_frame("length"), late)))
    assert isinstance(error, ManifestError)
    assert len(frames) == 2


def test_a_refusal_frame_ends_the_answer_with_the_error_it_names() -> None:
    replies = Replies("decode")
    frames, error = read(replies.open(replies.frames(token_frame(5), refusal_frame("model"), pad_frame())))
    assert error is not None
    assert (len(frames), error.code) == (1, "model")


def test_more_frames_than_one_key_may_seal_are_refused() -> None:
    replies = Replies("decode")
    response = {"frames": 2**31 - 1}
    body = replies.pair.seal_reply(
        [bytes(512)],
        replies.keys,
        response=response_manifest("tokens", replies.request, **response),
        following_bytes=512,
        chunk_bytes=512,
    )
    with pytest.raises(LimitExceededError):
        next(replies.open(body).frames())


def test_a_trailer_of_another_key_is_refused() -> None:
    replies = Replies("decode")
    body = replies.frames(*answer(5), by=Ed25519PrivateKey.generate())
    assert isinstance(read(replies.open(body))[1], AuthenticationError)


def test_a_reply_to_another_transfer_is_refused() -> None:
    mine, other = Replies(), Replies()
    with pytest.raises(ReplayError):
        open_reply(Bytes(other.frames(*answer(5))), mine.sent, EXPECTED)


def test_a_reply_under_another_content_key_is_refused() -> None:
    replies = Replies()
    body = replies.frames(*answer(5))
    replies.sent = replace(replies.sent, keys=replace(replies.keys, content_key=bytes(32)))
    with pytest.raises(AuthenticationError):
        replies.open(body)


def test_a_reply_with_another_commitment_is_refused() -> None:
    replies = Replies("decode")
    body = replies.frames(*answer(5))
    size = int.from_bytes(body[:4], "big")
    head = ReplyHead.model_validate_json(body[4 : 4 + size]).model_copy(update={"commitment": "0" * 64})
    with pytest.raises(AuthenticationError):
        replies.open(prefixed(head.to_bytes()) + body[4 + size :])


def test_a_request_is_not_a_reply_to_itself() -> None:
    pair = Pair()
    manifest = request_manifest()
    body, keys = pair.seal([], following_bytes=0, manifest=manifest.to_bytes())
    data = b"".join(bytes(piece) for piece in body)
    with pytest.raises(VerificationError):
        open_reply(Bytes(data), pair.sent(keys, tokens=TOKENS, manifest=manifest), EXPECTED)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"request_manifest_sha256": "0" * 64}, ReplayError),
        ({"version": 2}, ManifestError),
        ({"model": None}, ManifestError),
    ],
    ids=str,
)
def test_a_response_manifest_that_does_not_fit_is_refused_at_once(
    changes: dict[str, object], error: type[VerificationError]
) -> None:
    replies = Replies("decode")
    with pytest.raises(error):
        replies.open(replies.frames(*answer(5), by=None, **changes))


def test_a_sealed_refusal_is_the_error_it_names() -> None:
    replies = Replies()
    fields = {"weights_sha256_cloud": "1" * 64}
    reply = replies.open(replies.refusal(RefusalWire(code="model_mismatch", fields=fields)))
    error = reply.refuse()
    assert isinstance(error, ModelMismatchError)
    assert "1" * 64 in str(error)
    assert reply.receipt is not None


def test_a_refusal_that_names_nothing_is_refused() -> None:
    replies = Replies()
    assert isinstance(replies.open(replies.refusal(None)).refuse(), ManifestError)


def test_a_cut_refusal_is_truncated() -> None:
    replies = Replies()
    body = replies.refusal(RefusalWire(code="model", fields={}))
    with pytest.raises(TruncatedError):
        replies.open(body[:-1]).refuse()


@pytest.mark.parametrize("code", ["nonsense", "remote_refused"])
def test_an_unknown_refusal_keeps_its_word(code: str) -> None:
    error = refusal_error(code, RefusalWire(code=code, fields={}))
    assert isinstance(error, RemoteRefusedError)
    assert error.remote_code == code


@pytest.mark.parametrize("text", ["\x1b[2J", "line\nline", "\x00", "\u202e"])
def test_control_characters_of_a_refusal_do_not_reach_the_terminal(text: str) -> None:
    for fields in (
        {"code": text, "fields": {}},
        {"code": "model", "fields": {text: "x"}},
        {"code": "model", "fields": {"x": text}},
    ):
        try:
            refusal = RefusalWire.model_validate(fields)
        except ValidationError:
            continue
        assert str(refusal_error(refusal.code, refusal)).isprintable()


def test_the_cloud_names_faults_of_the_request_and_cannot_speak_for_the_device() -> None:
    of_the_request = (VerificationError, errors.ModelError, errors.CodecError, errors.PromptError, errors.UsageError)
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, SplitInferError):
            expected = kind if issubclass(kind, of_the_request) else errors.RemoteRefusedError
            assert type(refusal_error(kind.code, RefusalWire(code=kind.code, fields={}))) is expected


def test_an_opened_reply_shows_no_key() -> None:
    replies = Replies()
    assert replies.keys.content_key.hex() not in repr(replies.sent)
    assert repr(replies.keys.content_key) not in repr(replies.open(replies.refusal(None)))
