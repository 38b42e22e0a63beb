"""A transfer goes on after a lost connection: same ciphertext, same tokens, one receipt; and nothing else goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer import schedule
from splitinfer.answer import Answer
from splitinfer.egress.verification import verify
from splitinfer.errors import AuthenticationError, RemoteRefusedError, TransportError, VerificationError
from splitinfer.handoff import CloudReply, Route, Segment, Source
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.sealing.resume import StateAnswer, StateBody, sign_state
from splitinfer.sealing.signing import signer
from splitinfer.segments import note, public, question
from splitinfer.session import load_artefact
from splitinfer.transport.http import HttpTransport
from tests.support.http_exchange import served
from tests.support.lost_connections import Cut, CuttingCloud, breaking_proxy
from tests.support.memory_clouds import Paired, policy_of

MODES = ("sealed-prefill", "sealed-decode")
UNITS = {"sealed-prefill": (4096 + 16, 65536 + 16), "sealed-decode": (65536 + 16, 512 + 16)}
TOKENS = 3


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinfer.resume.BACKOFF_SECONDS", 0.0)


def whole_run(pair: Paired, mode: str, segments: list[Segment], tiny: Engine, on_cloud: Engine) -> Answer:
    return pair.run(mode, segments, tiny, pair.service(on_cloud), max_new_tokens=TOKENS)


def boundaries(total: int, unit: int) -> list[int]:
    """The offsets of all chunk boundaries of a body, its end included."""
    return list(range(total % unit, total + 1, unit))


def cuts_of(mode: str, answer: Answer) -> Iterator[Cut]:
    """A cut at every boundary of request and reply, and some inside chunks and heads."""
    sent, received = (int(str(answer.egress.calls[1][name])) for name in ("bytes_sent", "bytes_received"))
    for name, total, unit in zip(("up", "down"), (sent, received), UNITS[mode], strict=True):
        edges = boundaries(total, unit)
        inside = [edge + unit // 2 for edge in edges[:-1:7]] + [edges[-1] - 1]
        in_head = [] if name == "up" else [0, 3, edges[0] - 1]
        for at in sorted({*edges, *inside, *in_head}):
            yield Cut(**{name: at})


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_anywhere_is_gone_on_after_with_the_same_tokens_and_a_receipt(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    expected = whole_run(pair, mode, segments, tiny, tiny_on_cloud)
    cuts = list(cuts_of(mode, expected))
    assert len(cuts) > 8
    for cut in cuts:
        cloud = CuttingCloud(pair.service(tiny_on_cloud), cut)
        answer = pair.run(mode, segments, tiny, cloud, max_new_tokens=TOKENS)
        assert answer.token_ids == expected.token_ids, cut
        assert answer.exact, cut
        assert not answer.is_fallback, cut
        assert answer.receipt is not None, cut
        assert Route.RESUME in cloud.routes, cut
        outcome = pair.last
        assert outcome["status"] == "completed", cut
        assert [call["route"] for call in outcome["calls"]] == [route.value for route in cloud.routes], cut
        assert outcome["bytes_sent"] == sum(call["bytes_sent"] for call in outcome["calls"]), cut
        assert answer.receipt.body.ciphertext_root == outcome["calls"][-1]["sent_root"], cut
    verify(pair.device.audit, pair.device.key("checkpoint").public_key())


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_transfer_in_a_calibrated_codec_goes_on_with_the_same_tokens(
    mode: str, pair: Paired, engine: Engine, segments: list[Segment]
) -> None:
    policy = policy_of(mode, transfer={"codec": "ftc1-1", "allow_uncertified": True})
    on_cloud, held = Engine(load("embedded")), load_artefact(engine, home=pair.cloud)
    expected = pair.run(policy, segments, engine, pair.service(on_cloud, artefact=held), max_new_tokens=TOKENS)
    sent, received = (int(str(expected.egress.calls[1][name])) for name in ("bytes_sent", "bytes_received"))
    way, total = ("up", sent) if mode == "sealed-decode" else ("down", received)
    for part in (0.2, 0.5, 0.99):
        cloud = CuttingCloud(pair.service(on_cloud, artefact=held), Cut(**{way: int(total * part)}))
        answer = pair.run(policy, segments, engine, cloud, max_new_tokens=TOKENS)
        assert (answer.token_ids, answer.is_fallback) == (expected.token_ids, False), part
        assert answer.receipt is not None, part
        assert Route.RESUME in cloud.routes, part


def test_the_bytes_of_all_calls_stay_within_what_the_intent_announced(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    cloud = CuttingCloud(pair.service(tiny_on_cloud), Cut(down=0), Cut(down=100))
    pair.run("sealed-decode", segments, tiny, cloud, max_new_tokens=TOKENS)
    intent, outcome = pair.records()[-2:]
    assert cloud.routes.count(Route.RESUME) == 2
    assert 0 < outcome["bytes_sent"] <= intent["bytes_up_bound"]


def test_a_resend_is_the_identical_ciphertext(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    whole, cut_at = RecordingCloud(pair.service(tiny_on_cloud)), 4112 + 3600
    pair.run("sealed-prefill", segments, tiny, CuttingCloud(whole, Cut(up=cut_at)), max_new_tokens=1)
    (first, second) = (body for route, body in whole.bodies if route in {Route.PREFILL, Route.RESUME})
    resumed = second[4 + int.from_bytes(second[:4], "big") :]
    head = 4 + int.from_bytes(first[:4], "big")
    verified = (len(first) - head) // 4112
    assert resumed.startswith(first[head + verified * 4112 :])


class RecordingCloud:
    """Notes every body that it hands on."""

    def __init__(self, cloud: Any) -> None:
        self._cloud = cloud
        self.bodies: list[tuple[Route, bytearray]] = []

    def handle(self, route: Route, body: Source) -> CloudReply:
        seen = bytearray()
        self.bodies.append((route, seen))
        reply: CloudReply = self._cloud.handle(route, _Seen(body, seen))
        return reply


class _Seen:
    def __init__(self, source: Source, seen: bytearray) -> None:
        self._source, self._seen = source, seen

    def readinto(self, buffer: memoryview) -> int:
        count = self._source.readinto(buffer)
        self._seen += buffer[:count]
        return count


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_a_transfer_goes_on_as_often_as_the_policy_says(
    attempts: int, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    policy = policy_of("sealed-decode", transfer={"resume_attempts": attempts})
    cloud = CuttingCloud(pair.service(tiny_on_cloud), *[Cut(down=700)] * attempts)
    assert pair.run(policy, segments, tiny, cloud, max_new_tokens=TOKENS).receipt is not None
    assert cloud.routes.count(Route.RESUME) == attempts
    cloud = CuttingCloud(pair.service(tiny_on_cloud), *[Cut(down=700)] * (attempts + 1))
    with pytest.raises(TransportError):
        pair.run(policy, segments, tiny, cloud, max_new_tokens=TOKENS)
    assert cloud.routes.count(Route.RESUME) == attempts
    assert (pair.last["status"], pair.last["code"]) == ("unreceipted", "transport")


# --- what does not go on ----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.mark.parametrize("mode", MODES)
def test_nothing_goes_on_after_the_transfer_expired(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    clock = Clock()
    cloud = CuttingCloud(pair.service(tiny_on_cloud, clock=clock), Cut(down=5000))

    def later(route: Route) -> None:
        clock.ahead = 301.0 if route is Route.STATE else 0.0

    cloud.before = later
    with pytest.raises(TransportError):
        pair.run(mode, segments, tiny, cloud, max_new_tokens=TOKENS)
    assert Route.STATE in cloud.routes
    assert Route.RESUME not in cloud.routes


def test_nothing_goes_on_with_another_replica(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    first, second = pair.service(tiny_on_cloud), pair.service(tiny_on_cloud)
    cloud = CuttingCloud(first, Cut(down=700))

    def switch(_route: Route) -> None:
        cloud.cloud = second if len(cloud.routes) > 1 else first

    cloud.before = switch
    with pytest.raises(TransportError):
        pair.run("sealed-decode", segments, tiny, cloud, max_new_tokens=TOKENS)
    assert cloud.routes[2:] == [Route.KEYSET]


def test_a_refused_transfer_does_not_go_on_and_the_device_does_not_take_over(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    from tests.integration.test_fallback import off_by_one

    cloud = CuttingCloud(pair.service(off_by_one(tiny_on_cloud)), Cut(down=100))
    policy = policy_of("sealed-prefill", on_remote_failure="local")
    with pytest.raises(RemoteRefusedError):
        pair.run(policy, segments, tiny, cloud, max_new_tokens=TOKENS)
    assert cloud.routes[-1] is Route.STATE
    assert pair.last["status"] == "refused"


class Flipping:
    """Flips a bit of the reply of the transfer, then loses the connection some bytes later."""

    def __init__(self, cloud: Any, *, at: int) -> None:
        self._cloud, self._at = cloud, at
        self.routes: list[Route] = []

    def handle(self, route: Route, body: Source) -> CloudReply:
        self.routes.append(route)
        reply: CloudReply = self._cloud.handle(route, body)
        return reply if route is Route.KEYSET else CloudReply(reply.body_bytes, self._flipped(reply.body))

    def _flipped(self, body: Iterator[memoryview | bytes]) -> Iterator[bytes]:
        seen = 0
        for piece in body:
            data = bytearray(piece)
            if seen <= self._at < seen + len(data):
                data[self._at - seen] ^= 1
            seen += len(data)
            yield bytes(data)


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_check_never_leads_to_a_resume_or_to_the_device_taking_over(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    cloud = Flipping(pair.service(tiny_on_cloud), at=5000)
    with pytest.raises(AuthenticationError):
        pair.run(policy_of(mode, on_remote_failure="local"), segments, tiny, cloud, max_new_tokens=TOKENS)
    assert len(cloud.routes) == 2
    assert pair.last["type"] == "outcome"


class LyingState:
    """Signs another state than the true one, with the right receipt key or another."""

    def __init__(self, cloud: Any, replica: Any, *, forged: bool = False, **lie: object) -> None:
        self._cloud, self._replica, self._lie, self._forged = cloud, replica, lie, forged

    def handle(self, route: Route, body: Source) -> CloudReply:
        reply: CloudReply = self._cloud.handle(route, body)
        if route is not Route.STATE:
            return reply
        answer = StateAnswer.model_validate_json(b"".join(map(bytes, reply.body)))
        told = StateBody(**{**answer.body.model_dump(), **self._lie})
        held = self._replica.current()
        key = Ed25519PrivateKey.generate() if self._forged else held.receipt
        data = sign_state(told, signer=signer(key)).to_bytes()
        return CloudReply(len(data), iter([data]))


LIES: list[tuple[dict[str, object], type[Exception]]] = [
    ({"state": "open", "request_chunks": 900}, VerificationError),
    ({"state": "complete", "request_chunks": 1}, VerificationError),
    ({"state": "open", "request_chunks": 0}, VerificationError),
    ({"state": "unknown"}, TransportError),
    ({"state": "busy"}, TransportError),
    ({"state": "refused"}, RemoteRefusedError),
    ({"server_nonce": "0" * 64}, VerificationError),
    ({"transfer_id": "0" * 32}, VerificationError),
    ({"forged": True}, AuthenticationError),
]


@pytest.mark.parametrize(("lie", "error"), LIES, ids=str)
def test_a_state_that_is_not_true_harms_only_the_cloud(
    *,
    lie: dict[str, object],
    error: type[Exception],
    pair: Paired,
    tiny: Engine,
    tiny_on_cloud: Engine,
    segments: list[Segment],
) -> None:
    from splitinfer.home.cloud_state import make_replica

    replica = make_replica(pair.cloud)
    cutting = CuttingCloud(pair.service(tiny_on_cloud, replica=replica), Cut(down=9000))
    cloud = LyingState(cutting, replica, **lie)  # type: ignore[arg-type]
    with pytest.raises(error):
        pair.run("sealed-decode", segments, tiny, cloud, max_new_tokens=TOKENS)
    assert Route.RESUME not in cutting.routes
    assert pair.last["type"] == "outcome"


# --- partial acceptance -----------------------------------------------------------------------------------------


STEP = 64


@pytest.fixture
def _short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has 512 positions, so that all its tokens would be one range."""
    monkeypatch.setattr(schedule, "RANGE_TOKENS", STEP)


def long_segments() -> list[Segment]:
    return [public("word " * 70), note("a private note"), question("Who?")]


def partly(
    pair: Paired, tiny: Engine, on_cloud: Engine, *, down: int, mode: str = "sealed-prefill", **transfer: object
) -> Answer:
    policy = policy_of(
        mode, on_remote_failure="local", transfer={"resume_attempts": 0, "chunk_tokens": STEP, **transfer}
    )
    cloud = CuttingCloud(pair.service(on_cloud), Cut(down=down))
    return pair.run(policy, long_segments(), tiny, cloud, max_new_tokens=TOKENS)


@pytest.mark.usefixtures("_short_ranges")
def test_steps_that_came_whole_are_used_and_the_rest_is_prefilled_here(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    steps = policy_of("local", transfer={"chunk_tokens": STEP})
    local = pair.run(steps, long_segments(), tiny, max_new_tokens=TOKENS)
    whole = whole_run(pair, "sealed-prefill", long_segments(), tiny, tiny_on_cloud)
    received = int(str(whole.egress.calls[1]["bytes_received"]))
    accepted = set()
    for part in (0.05, 0.7, 0.99):
        before = tiny.prefilled_tokens
        answer = partly(pair, tiny, tiny_on_cloud, down=int(received * part))
        assert answer.token_ids == local.token_ids
        assert (answer.mode, answer.is_fallback, answer.exact, answer.receipt) == ("local", True, True, None)
        taken = answer.prefilled_by_cloud_tokens
        assert tiny.prefilled_tokens - before == local.prompt_tokens - 1 - taken
        accepted.add(taken)
        assert (taken > 0) == ("were used" in (answer.note or ""))
        record = pair.last
        assert record["type"] == "local"
        assert ("transfer_id" in record) == (taken > 0)
    assert 0 in accepted
    assert len(accepted) > 1
    assert all(taken % STEP == 0 for taken in accepted), "ends of steps"


@pytest.mark.usefixtures("_short_ranges")
def test_rows_of_a_part_are_recomputed_where_the_policy_says_so(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    from tests.support.memory_clouds import LyingEngine

    down = cut_behind_a_step(pair, tiny, tiny_on_cloud)
    honest = partly(pair, tiny, tiny_on_cloud, down=down, mode="public-prefix", verify_rows=2)
    assert honest.prefilled_by_cloud_tokens > 0
    every_row: Any = slice(None)
    lying: Any = LyingEngine(tiny_on_cloud, layer=0, row=every_row)
    with pytest.raises(VerificationError):
        partly(pair, tiny, lying, down=down, mode="public-prefix", verify_rows=2)
    assert pair.last["type"] == "outcome"


def cut_behind_a_step(pair: Paired, tiny: Engine, on_cloud: Engine) -> int:
    whole = pair.run(policy_of("public-prefix"), long_segments(), tiny, pair.service(on_cloud), max_new_tokens=1)
    return int(str(whole.egress.calls[1]["bytes_received"])) - 10


# --- over HTTP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_is_gone_on_after_over_http(
    *,
    mode: str,
    pair: Paired,
    tiny: Engine,
    tiny_on_cloud: Engine,
    segments: list[Segment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitinfer.resume.BACKOFF_SECONDS", 0.2)
    policy = policy_of(mode, transfer={"resume_attempts": 5})
    expected = whole_run(pair, mode, segments, tiny, tiny_on_cloud)
    sent, received = (int(str(expected.egress.calls[1][name])) for name in ("bytes_sent", "bytes_received"))
    samples = [Cut(up=int(sent * part)) for part in (0.75, 0.97)]
    samples += [Cut(down=int(received * part)) for part in (0.0, 0.3, 0.9)]
    with served(pair.service(tiny_on_cloud)) as door:
        for cut in samples:
            with breaking_proxy(door.port, Cut(), Cut(up=cut.up, down=cut.down if cut.down else None)) as proxy:
                transport = HttpTransport(proxy.url)
                with pair.session(policy, tiny, transport=transport) as session:
                    answer = session.run(segments, max_new_tokens=TOKENS)
            assert answer.token_ids == expected.token_ids, cut
            assert answer.receipt is not None, cut
            outcome = pair.last
            assert outcome["status"] == "completed"
            assert all(call["bytes_sent"] >= 0 for call in outcome["calls"])
