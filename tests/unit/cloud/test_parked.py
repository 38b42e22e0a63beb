"""Transfers whose connection was lost: who may go on with them, from where, and when they are wiped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.attestation.sender import sender_id
from splitinfer.cloud.parked import Key, Parking, key_of
from splitinfer.cloud.resuming import Resuming
from splitinfer.errors import (
    AuthenticationError,
    LimitExceededError,
    ManifestError,
    RemoteBusyError,
    ReplayError,
    SplitInferError,
    StaleKeysetError,
    TransportError,
    TruncatedError,
)
from splitinfer.handoff import CloudReply
from splitinfer.receive.intake import OpenedRequest, open_request
from splitinfer.receive.resuming import open_state_answer
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.resume import UNSIGNED, ResumeHead, StateBody, StateQuery, signed
from splitinfer.sealing.signing import Purpose, signer
from splitinfer.sealing.transfer import TransferKeys
from tests.support.device_cloud import Bytes, Pair, RecordingSink, joined, request_manifest

CHUNK, SIZE = 512 + 16, 3000
HEAD, REPLY = b"head", [bytes([number]) * 100 for number in range(6)]


class Losing(Bytes):
    """Gives its bytes, then raises TransportError instead of ending."""

    def readinto(self, buffer: memoryview) -> int:
        count = super().readinto(buffer)
        if not count and len(buffer):
            raise TransportError("cut")
        return count


@dataclass
class Sent:
    """One transfer as both sides see it."""

    data: bytes
    head_bytes: int
    keys: TransferKeys
    sink: RecordingSink = field(default_factory=lambda: RecordingSink([SIZE]))
    key: Key = (b"", "", "")
    erased: threading.Event = field(default_factory=threading.Event)
    computing: Callable[[], None] = lambda: None

    def after(self, chunks: int) -> bytes:
        return self.data[self.head_bytes + chunks * CHUNK :]

    @property
    def chunks(self) -> int:
        return (len(self.data) - self.head_bytes) // CHUNK


class Scene:
    """A device, a recipient, and parking without a model: a whole request is answered by `REPLY`."""

    def __init__(self, **limits: int) -> None:
        self.pair = Pair()
        self.parking = Parking(clock=self.pair.clock, **limits)
        recipient: Any = self.pair.recipient
        self.resuming = Resuming(self.parking, recipient)

    def seal(self, key: Ed25519PrivateKey | None = None) -> Sent:
        body, keys = self.pair.seal(
            [b"s" * SIZE], following_bytes=SIZE, manifest=request_manifest().to_bytes(), chunk_bytes=512, key=key
        )
        return Sent(joined(body), len(body.head), keys)

    def begin(self, sent: Sent, chunks: int | None = None) -> CloudReply:
        """Let the request arrive, or only so many of its chunks."""
        cut = None if chunks is None else sent.head_bytes + chunks * CHUNK
        source = Bytes(sent.data) if cut is None else Losing(sent.data[:cut])
        opened = open_request(source, self.pair.recipient)
        sent.key = key_of(opened)
        answer: Any = SimpleNamespace(was_refused=False, wipe=lambda: None)
        return self.parking.begin(opened, answer, lambda: self._answer(opened, sent))

    def lost(self, *, chunks: int, key: Ed25519PrivateKey | None = None) -> Sent:
        sent = self.seal(key)
        with pytest.raises(TransportError):
            self.begin(sent, chunks)
        return sent

    def _answer(self, opened: OpenedRequest, sent: Sent) -> CloudReply:
        opened.manifest()
        opened.receive(sent.sink, iter([SIZE]), data_bytes=SIZE)
        sent.computing()
        return CloudReply(len(HEAD) + sum(map(len, REPLY)), self._reply(sent))

    def _reply(self, sent: Sent) -> Iterator[memoryview | bytes]:
        try:
            yield HEAD
            yield from REPLY
        finally:
            sent.sink.wipe()
            sent.erased.set()

    def state(self, sent: Sent, *, by: Ed25519PrivateKey | None = None, **changes: object) -> StateBody:
        query = signed(
            StateQuery(**self._ids(sent, by, changes)),  # type: ignore[arg-type]
            purpose=Purpose.TRANSFER_STATE,
            signer=signer(by or self.pair.device),
        )
        data = joined(self.resuming.state(Bytes(prefixed(query.to_bytes()))).body)
        public = self.pair.replica.current().receipt.public_key().public_bytes_raw()
        return open_state_answer(data, query=query, receipt_public_key=public)

    def head(self, sent: Sent, *, by: Ed25519PrivateKey | None = None, **changes: object) -> bytes:
        fields = {"request_from": sent.chunks, "reply_from": 0, **self._ids(sent, by, changes)}
        head = signed(
            ResumeHead(**fields),  # type: ignore[arg-type]
            purpose=Purpose.TRANSFER_RESUME,
            signer=signer(by or self.pair.device),
        )
        return prefixed(head.to_bytes())

    def resume(self, sent: Sent, rest: bytes = b"", **changes: Any) -> CloudReply:
        return self.resuming.resume(Bytes(self.head(sent, **changes) + rest))

    def _ids(self, sent: Sent, by: Ed25519PrivateKey | None, changes: dict[str, object]) -> dict[str, object]:
        key = (by or self.pair.device).public_key().public_bytes_raw()
        digest = self.pair.replica.current().digest
        return {
            "version": 1,
            "transfer_id": sent.keys.transfer_id.hex(),
            "manifest_sha256": sent.keys.manifest_digest.hex(),
            "keyset_digest": digest.hex(),
            "sender_id": sender_id(digest, key),
            "server_nonce": self.pair.recipient.nonces.issue().hex(),
            "signature": UNSIGNED,
            **changes,
        }


def take(reply: CloudReply, pieces: int) -> list[bytes]:
    """Take so many pieces, then close as a door does whose client left."""
    taken = [bytes(next(reply.body)) for _ in range(pieces)]
    close: Any = getattr(reply.body, "close")  # noqa: B009
    close()
    return taken


# --- going on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 3, 8, 11])
def test_a_lost_request_is_open_and_goes_on_with_the_next_chunk(chunks: int) -> None:
    scene = Scene()
    sent = scene.lost(chunks=chunks)
    told = scene.state(sent)
    assert (told.state, told.request_chunks) == ("open", chunks)
    reply = scene.resume(sent, sent.after(chunks), request_from=chunks)
    assert joined(reply.body) == HEAD + b"".join(REPLY)


@pytest.mark.parametrize("pieces", [0, 1, 2, 6, 7])
def test_a_lost_reply_goes_on_from_any_chunk_and_is_the_same_bytes(pieces: int) -> None:
    scene = Scene()
    for start in range(max(pieces, 1)):
        sent = scene.seal()
        take(scene.begin(sent), pieces)
        assert scene.state(sent).state == "complete"
        assert not sent.erased.is_set()
        reply = scene.resume(sent, reply_from=start)
        data = joined(reply.body)
        assert data == b"".join(REPLY[start:] if start else [HEAD, *REPLY])
        assert len(data) == reply.body_bytes


def test_a_reply_that_was_made_is_erased_and_its_ciphertext_can_be_sent_again() -> None:
    scene = Scene()
    sent = scene.seal()
    reply = scene.begin(sent)
    joined(reply.body)
    assert sent.erased.is_set()
    take(reply, 0)
    (held,) = scene.parking._transfers.values()
    assert (held.opened, held.answer, held.proceed) == (None, None, None), "no key is kept either"
    assert joined(scene.resume(sent, reply_from=4).body) == b"".join(REPLY[4:])
    assert scene.state(sent).request_chunks == sent.chunks


def test_only_the_newest_chunks_of_a_reply_are_held() -> None:
    scene = Scene(tail_bytes=250)
    sent = scene.seal()
    take(scene.begin(sent), 6)
    with pytest.raises(LimitExceededError):
        scene.resume(sent, reply_from=2)
    assert joined(scene.resume(sent, reply_from=3).body) == b"".join(REPLY[3:])


def test_a_reply_cannot_be_asked_for_beyond_what_was_made() -> None:
    scene = Scene()
    sent = scene.seal()
    take(scene.begin(sent), 3)
    with pytest.raises(TruncatedError):
        scene.resume(sent, reply_from=4)
    assert joined(scene.resume(sent, reply_from=2).body) == b"".join(REPLY[2:])


def test_a_resume_waits_for_a_transfer_that_still_computes() -> None:
    scene = Scene()
    sent, go, computing = scene.seal(), threading.Event(), threading.Event()

    def compute() -> None:
        computing.set()
        go.wait(30)

    sent.computing = compute
    first = threading.Thread(target=lambda: take(scene.begin(sent), 0))
    first.start()
    computing.wait(30)
    assert scene.state(sent).state == "complete"
    threading.Timer(0.1, go.set).start()
    assert joined(scene.resume(sent).body) == HEAD + b"".join(REPLY)
    first.join(30)


# --- who may not ------------------------------------------------------------------------------------------------


def test_another_allowed_device_learns_nothing_and_cannot_go_on() -> None:
    scene, other = Scene(), Ed25519PrivateKey.generate()
    scene.pair.recipient.allowed.append(other.public_key().public_bytes_raw())
    sent = scene.lost(chunks=3)
    assert scene.state(sent, by=other).state == "unknown"
    with pytest.raises(ReplayError):
        scene.resume(sent, sent.after(3), by=other, request_from=3)
    assert scene.state(sent).state == "open"


def test_a_device_that_is_not_allowed_gets_no_answer() -> None:
    scene, other = Scene(), Ed25519PrivateKey.generate()
    sent = scene.lost(chunks=3)
    for call in (scene.state, scene.resume):
        with pytest.raises(AuthenticationError):
            call(sent, by=other)


WRONG: list[tuple[dict[str, object], type[SplitInferError]]] = [
    ({"server_nonce": "0" * 64}, ReplayError),
    ({"keyset_digest": "0" * 64}, StaleKeysetError),
    ({"sender_id": "0" * 64}, AuthenticationError),
    ({"version": 2}, ManifestError),
]


@pytest.mark.parametrize(("changes", "error"), WRONG, ids=str)
def test_a_wrong_member_is_refused(changes: dict[str, object], error: type[SplitInferError]) -> None:
    scene = Scene()
    sent = scene.lost(chunks=3)
    for call in (scene.state, scene.resume):
        with pytest.raises(error):
            call(sent, **changes)


@pytest.mark.parametrize("member", ["transfer_id", "manifest_sha256"])
def test_another_transfer_is_unknown(member: str) -> None:
    scene = Scene()
    sent = scene.lost(chunks=3)
    other = {member: "0" * (32 if member == "transfer_id" else 64)}
    assert scene.state(sent, **other).state == "unknown"
    with pytest.raises(ReplayError):
        scene.resume(sent, sent.after(3), request_from=3, **other)


def test_a_head_whose_start_was_changed_is_not_authentic() -> None:
    scene = Scene()
    sent = scene.lost(chunks=3)
    head = scene.head(sent, request_from=3)
    with pytest.raises(AuthenticationError):
        scene.resuming.resume(Bytes(head.replace(b'"request_from":3', b'"request_from":2') + sent.after(2)))


def test_a_query_is_not_a_resume() -> None:
    """Each has its own context, though the members that both have are the same."""
    scene = Scene()
    sent = scene.lost(chunks=3)
    head = signed(
        ResumeHead(request_from=3, reply_from=0, **scene._ids(sent, None, {})),  # type: ignore[arg-type]
        purpose=Purpose.TRANSFER_STATE,
        signer=signer(scene.pair.device),
    )
    with pytest.raises(AuthenticationError):
        scene.resuming.resume(Bytes(prefixed(head.to_bytes()) + sent.after(3)))


def test_both_calls_are_taken_once() -> None:
    scene = Scene()
    sent = scene.lost(chunks=3)
    nonce = scene.pair.recipient.nonces.issue().hex()
    scene.state(sent, server_nonce=nonce)
    with pytest.raises(ReplayError):
        scene.state(sent, server_nonce=nonce)
    data = scene.head(sent, request_from=3) + sent.after(3)
    take(scene.resuming.resume(Bytes(data)), 1)
    with pytest.raises(ReplayError):
        scene.resuming.resume(Bytes(data))


@pytest.mark.parametrize(("start", "error"), [(2, ReplayError), (4, TruncatedError)])
def test_a_request_goes_on_with_its_next_chunk_only(start: int, error: type[SplitInferError]) -> None:
    scene = Scene()
    sent = scene.lost(chunks=3)
    with pytest.raises(error):
        scene.resume(sent, sent.after(start), request_from=start)
    assert joined(scene.resume(sent, sent.after(3), request_from=3).body) == HEAD + b"".join(REPLY)


def test_a_reply_cannot_go_on_before_its_request_is_whole() -> None:
    scene = Scene()
    sent = scene.lost(chunks=3)
    with pytest.raises(TruncatedError):
        scene.resume(sent, sent.after(3), request_from=3, reply_from=1)


def test_nothing_may_follow_the_head_of_a_resume_whose_request_is_whole() -> None:
    scene = Scene()
    sent = scene.seal()
    take(scene.begin(sent), 2)
    with pytest.raises(TruncatedError):
        scene.resume(sent, b"x")


def test_a_changed_chunk_ends_the_transfer_and_wipes_it() -> None:
    scene = Scene()
    sent = scene.lost(chunks=11)
    rest = bytearray(sent.after(11))
    rest[5] ^= 1
    with pytest.raises(AuthenticationError):
        scene.resume(sent, bytes(rest), request_from=11)
    assert sent.sink.is_clean
    assert scene.state(sent).state == "unknown"


def test_a_refused_transfer_does_not_go_on() -> None:
    scene = Scene()
    sent = scene.seal()
    opened = open_request(Bytes(sent.data), scene.pair.recipient)
    refusing: Any = SimpleNamespace(was_refused=True, wipe=lambda: None)
    take(scene.parking.begin(opened, refusing, lambda: CloudReply(4, iter([HEAD]))), 0)
    assert scene.state(sent).state == "refused"
    with pytest.raises(ReplayError):
        scene.resume(sent)


def test_a_connection_that_is_still_served_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinfer.cloud.parked._STATE_WAIT_SECONDS", 0.01)
    scene = Scene()
    sent, go = scene.seal(), threading.Event()
    opened = open_request(Losing(sent.data[: sent.head_bytes]), scene.pair.recipient)

    def held() -> CloudReply:
        go.wait(30)
        opened.manifest()
        return CloudReply(0, iter([]))

    def run() -> None:
        answer: Any = SimpleNamespace(was_refused=False, wipe=lambda: None)
        with pytest.raises(TransportError):
            scene.parking.begin(opened, answer, held)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert scene.state(sent).state == "busy"
        with pytest.raises(RemoteBusyError):
            scene.resume(sent, request_from=0)
    finally:
        go.set()
        thread.join(30)


def test_of_one_device_one_query_waits_and_the_others_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinfer.cloud.parked._STATE_WAIT_SECONDS", 60.0)
    scene = Scene()
    sent, go, served = scene.seal(), threading.Event(), threading.Event()
    opened = open_request(Losing(sent.data[: sent.head_bytes]), scene.pair.recipient)

    def held() -> CloudReply:
        served.set()
        go.wait(60)
        opened.manifest()
        return CloudReply(0, iter([]))

    def run() -> None:
        answer: Any = SimpleNamespace(was_refused=False, wipe=lambda: None)
        with pytest.raises(TransportError):
            scene.parking.begin(opened, answer, held)

    key, answers = key_of(opened), list[str]()
    threads = [threading.Thread(target=run)]
    threads += [threading.Thread(target=lambda: answers.append(scene.parking.state(key)[0])) for _ in range(3)]
    threads[0].start()
    assert served.wait(30)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 30
    while len(answers) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answers == ["busy", "busy"]
    go.set()
    for thread in threads:
        thread.join(30)
    assert answers == ["busy", "busy", "open"]


# --- what is given up is wiped ----------------------------------------------------------------------------------


def test_what_expired_is_not_held_and_is_wiped() -> None:
    scene = Scene()
    request, reply = scene.lost(chunks=11), scene.seal()
    take(scene.begin(reply), 2)
    assert not request.sink.is_clean
    scene.pair.clock.seconds += 300
    for sent in (request, reply):
        assert scene.state(sent).state == "unknown"
        with pytest.raises(ReplayError):
            scene.resume(sent, sent.after(11), request_from=11)
    scene.parking.drop_expired()
    assert request.sink.is_clean
    assert reply.erased.is_set()


def test_what_is_lost_after_it_expired_is_not_parked() -> None:
    scene = Scene()
    sent = scene.seal()
    reply = scene.begin(sent)
    next(reply.body)
    scene.pair.clock.seconds += 300
    take(reply, 0)
    assert sent.erased.is_set()


def test_a_device_holds_two_and_the_oldest_makes_room() -> None:
    scene, other = Scene(), Ed25519PrivateKey.generate()
    scene.pair.recipient.allowed.append(other.public_key().public_bytes_raw())
    foreign = scene.lost(chunks=11, key=other)
    first, second, third = (scene.lost(chunks=11) for _ in range(3))
    assert first.sink.is_clean
    assert [scene.state(sent).state for sent in (first, second, third)] == ["unknown", "open", "open"]
    assert scene.state(foreign, by=other).state == "open"


def test_transfers_that_ended_well_push_no_other_out() -> None:
    scene = Scene()
    waiting = scene.lost(chunks=11)
    ended = [scene.seal() for _ in range(3)]
    for sent in ended:
        joined(scene.begin(sent).body)
    assert [scene.state(sent).state for sent in (waiting, *ended)] == ["open", "unknown", "unknown", "complete"]


def test_all_devices_together_hold_so_many() -> None:
    scene = Scene(in_all=3)
    keys = [Ed25519PrivateKey.generate() for _ in range(4)]
    scene.pair.recipient.allowed += [key.public_key().public_bytes_raw() for key in keys]
    held = [scene.lost(chunks=11, key=key) for key in keys]
    states = [scene.state(sent, by=key).state for sent, key in zip(held, keys, strict=True)]
    assert states == ["unknown", "open", "open", "open"]
    assert held[0].sink.is_clean


def test_closing_wipes_all_and_nothing_is_parked_afterwards() -> None:
    scene = Scene()
    request, reply, late = scene.lost(chunks=11), scene.seal(), scene.seal()
    take(scene.begin(reply), 2)
    running = scene.begin(late)
    scene.parking.close()
    assert request.sink.is_clean
    assert reply.erased.is_set()
    next(running.body)
    take(running, 0)
    assert late.erased.is_set()
    assert scene.state(request).state == "unknown"


def test_what_failed_while_it_was_made_does_not_go_on() -> None:
    scene = Scene()
    sent = scene.seal()
    opened = open_request(Bytes(sent.data), scene.pair.recipient)

    def failing() -> Iterator[bytes]:
        yield HEAD
        raise ZeroDivisionError

    answer: Any = SimpleNamespace(was_refused=False, wipe=lambda: None)
    reply = scene.parking.begin(opened, answer, lambda: CloudReply(500, failing()))
    with pytest.raises(ZeroDivisionError):
        joined(reply.body)
    take(reply, 0)
    assert scene.state(sent).state == "unknown"


# --- what the device believes -----------------------------------------------------------------------------------


def test_an_answer_of_another_recipient_or_to_another_query_is_refused() -> None:
    scene, other = Scene(), Scene()
    sent = scene.lost(chunks=3)
    query = signed(
        StateQuery(**scene._ids(sent, None, {})),  # type: ignore[arg-type]
        purpose=Purpose.TRANSFER_STATE,
        signer=signer(scene.pair.device),
    )
    data = joined(scene.resuming.state(Bytes(prefixed(query.to_bytes()))).body)
    own, foreign = (one.pair.replica.current().receipt.public_key().public_bytes_raw() for one in (scene, other))
    assert open_state_answer(data, query=query, receipt_public_key=own).state == "open"
    with pytest.raises(AuthenticationError):
        open_state_answer(data, query=query, receipt_public_key=foreign)
    with pytest.raises(AuthenticationError):
        open_state_answer(
            data.replace(b'"request_chunks":3', b'"request_chunks":4'), query=query, receipt_public_key=own
        )
    with pytest.raises(ManifestError):
        open_state_answer(data + b" ", query=query, receipt_public_key=own)
    for member in ("transfer_id", "manifest_sha256", "server_nonce"):
        asked = query.model_copy(update={member: "9" * len(getattr(query, member))})
        with pytest.raises(ReplayError):
            open_state_answer(data, query=asked, receipt_public_key=own)
