"""`on_remote_failure`: the device takes over after transport failures before the first token, and only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from splitinfer.errors import (
    AuthenticationError,
    ModelMismatchError,
    RecipientMismatchError,
    RemoteBusyError,
    RemoteRefusedError,
    SplitInferError,
    TransportError,
    TransportTimeoutError,
    VerificationError,
)
from splitinfer.handoff import Label, ReleasedTransfer, Reply, Route, Segment
from splitinfer.model.engine import Engine
from splitinfer.transport.http import HttpTransport
from splitinfer.transport.memory import MemoryTransport
from tests.integration.conftest import CommandLine
from tests.support import bad_servers
from tests.support.bad_servers import bad_server, cutting_proxy
from tests.support.http_exchange import served
from tests.support.memory_clouds import NOISED_MODES, REMOTE_MODES, LyingEngine, Paired, policy_of

LONG = {"max_new_tokens": 60, "temperature": 2.0, "seed": 4}


class FailingTransport:
    """Raises an error at the n-th call, after having pulled the body; the calls before go to a cloud."""

    def __init__(self, inner: MemoryTransport, error: SplitInferError, *, at: int) -> None:
        self._inner, self._error, self._at = inner, error, at
        self.calls = 0

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        self.calls += 1
        if self.calls == self._at:
            for _ in transfer.body:
                pass
            raise self._error
        return self._inner.exchange(transfer)


FAILURES = (
    TransportError("the connection to the cloud was lost"),
    TransportTimeoutError("the cloud did not answer in time"),
    RemoteBusyError("the cloud is at its limit"),
    RemoteRefusedError("the cloud refused the request"),
)


def local_ids(pair: Paired, segments: list[Segment], engine: Engine, **sampling: object) -> tuple[int, ...]:
    return pair.run("local", segments, engine, **sampling).token_ids


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("mode", REMOTE_MODES)
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: error.code)
def test_device_takes_over_after_a_transport_failure(
    *,
    mode: str,
    error: TransportError,
    at: int,
    pair: Paired,
    tiny: Engine,
    tiny_on_cloud: Engine,
    segments: list[Segment],
) -> None:
    transport = FailingTransport(MemoryTransport(pair.service(tiny_on_cloud)), error, at=at)
    policy = policy_of(mode, on_remote_failure="local", sampling={"max_new_tokens": 8})
    with pair.session(policy, tiny, transport=transport) as session:
        answer = session.run(segments, max_new_tokens=8)
    assert (answer.mode, answer.is_fallback, answer.decoded_on, answer.receipt) == ("local", True, "device", None)
    assert answer.exact
    assert answer.prefilled_by_cloud_tokens == 0
    assert answer.token_ids == local_ids(pair, segments, tiny, max_new_tokens=8)
    # After a connection that was lost in the transfer the device asks twice, and hears that nothing of it is held.
    may_resume = at == 2 and not isinstance(error, RemoteBusyError | RemoteRefusedError)
    assert transport.calls == (6 if may_resume else at)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_fallback_is_logged_after_the_failure_and_names_the_same_policy(
    mode: str, pair: Paired, tiny: Engine, segments: list[Segment]
) -> None:
    policy = policy_of(mode, on_remote_failure="local", sampling={"max_new_tokens": 2})
    transport = HttpTransport(bad_servers.unused_url())
    with pair.session(policy, tiny, transport=transport) as session:
        session.run(segments, max_new_tokens=2)
    *paid, intent, outcome, local = pair.records()
    assert [record["type"] for record in paid] == ["noise"] * (mode in NOISED_MODES)
    assert (intent["type"], intent["mode"]) == ("intent", mode)
    assert (outcome["type"], outcome["status"], outcome["code"]) == ("outcome", "failed", "transport")
    assert (local["type"], local["mode"], local["bytes_sent"]) == ("local", "local", 0)
    assert intent["policy_sha256"] == local["policy_sha256"] == policy.digest


@pytest.mark.parametrize("mode", REMOTE_MODES)
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: error.code)
def test_refuse_is_the_default_and_ends_the_run(
    *, mode: str, error: TransportError, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    transport = FailingTransport(MemoryTransport(pair.service(tiny_on_cloud)), error, at=2)
    decoded = tiny.decoded_tokens
    policy = policy_of(mode, sampling={"max_new_tokens": 8})
    with pair.session(policy, tiny, transport=transport) as session, pytest.raises(type(error)):
        session.run(segments, max_new_tokens=8)
    assert tiny.decoded_tokens == decoded
    assert pair.last["type"] == "outcome"
    assert pair.last["status"] == ("refused" if isinstance(error, RemoteRefusedError) else "unreceipted")


def off_by_one(engine: Engine) -> Engine:
    return Engine(replace(engine._loaded, identity=replace(engine.identity, weights_sha256="0" * 64)))


def test_device_never_takes_over_after_a_model_mismatch(pair: Paired, tiny: Engine, segments: list[Segment]) -> None:
    for mode in REMOTE_MODES:
        policy = policy_of(mode, on_remote_failure="local", sampling={"max_new_tokens": 4})
        with pytest.raises(ModelMismatchError):
            pair.run(policy, segments, tiny, pair.service(off_by_one(tiny)), max_new_tokens=4)
        assert pair.last["type"] == "outcome"


def test_device_never_takes_over_after_a_lying_cache(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    policy = policy_of("public-prefix", verify_rows=64, on_remote_failure="local")
    with pytest.raises(VerificationError):
        pair.run(policy, segments, tiny, pair.service(LyingEngine(tiny_on_cloud, layer=0, row=3)), max_new_tokens=4)
    assert pair.last["code"] == "verification"


def test_device_never_takes_over_after_another_identity(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment], tmp_path: Path
) -> None:
    other = Paired.at(tmp_path / "other").service(tiny_on_cloud)
    for mode in REMOTE_MODES:
        policy = policy_of(mode, on_remote_failure="local", sampling={"max_new_tokens": 4})
        with pytest.raises(RecipientMismatchError):
            pair.run(policy, segments, tiny, other, max_new_tokens=4)
        assert pair.last["type"] == "outcome"


class FlippingTransport:
    """Flips one bit of the n-th byte of the transfer's reply."""

    def __init__(self, inner: MemoryTransport, *, byte: int) -> None:
        self._inner, self._byte = inner, byte

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        reply = self._inner.exchange(transfer)
        return reply if transfer.route is Route.KEYSET else _Flipped(reply, self._byte)  # type: ignore[return-value]


class _Flipped:
    def __init__(self, reply: Reply, byte: int) -> None:
        self._reply, self._byte, self._at = reply, byte, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._reply, name)

    def readinto(self, buffer: memoryview) -> int:
        count = self._reply.readinto(buffer)
        if self._at <= self._byte < self._at + count:
            buffer[self._byte - self._at] ^= 1
        self._at += count
        return count


@pytest.mark.parametrize("mode", REMOTE_MODES)
@pytest.mark.parametrize("byte", [300, 5000, 20_000])
def test_device_never_takes_over_after_one_flipped_bit(
    *, mode: str, byte: int, pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    transport = FlippingTransport(MemoryTransport(pair.service(tiny_on_cloud)), byte=byte)
    policy = policy_of(mode, on_remote_failure="local", sampling={"max_new_tokens": 64})
    with pair.session(policy, tiny, transport=transport) as session, pytest.raises(AuthenticationError):
        session.run(segments, max_new_tokens=64)
    assert (pair.last["type"], pair.last["code"]) == ("outcome", "authentication")


def cut_after_first_token(pair: Paired, engine: Engine, check: Callable[[str], None]) -> None:
    with served(pair.service(engine)) as door, cutting_proxy(door.port, down_bytes=(None, 12_000)) as proxy:
        check(proxy.url)


def test_device_never_takes_over_once_a_token_was_shown(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, segments: list[Segment]
) -> None:
    policy = policy_of("sealed-decode", on_remote_failure="local", transfer={"resume_attempts": 0})

    def check(url: str) -> None:
        with pair.session(policy, tiny, transport=HttpTransport(url)) as session:
            stream = session.stream(segments, **LONG)
            shown: list[str] = []
            with pytest.raises(TransportError):
                shown.extend(stream)
            assert stream.has_begun

    decoded = tiny.decoded_tokens
    cut_after_first_token(pair, tiny_on_cloud, check)
    assert tiny.decoded_tokens == decoded
    assert (pair.last["type"], pair.last["status"]) == ("outcome", "unreceipted")


def test_command_line_says_incomplete_and_never_falls_back_once_text_was_shown(
    pair: Paired, tiny_on_cloud: Engine, command: CommandLine, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    text = 'mode = "sealed-decode"\n[remote]\nname = "default"\n[fallback]\non_remote_failure = "local"\n'
    policy.write_text(f"{text}[transfer]\nresume_attempts = 0\n")
    options = ["--private-text", "b", "--max-new-tokens", "60", "--temperature", "2", "--seed", "4"]

    def check(url: str) -> None:
        pair.point_at(url)
        ran = command("run", "--policy", policy, *options, home=pair.device)
        assert ran.is_refusal("transport", 5)
        assert ran.out
        assert "incomplete" in ran.err

    cut_after_first_token(pair, tiny_on_cloud, check)
    cut_after_first_token(pair, tiny_on_cloud, lambda url: _json_is_incomplete(url, pair, command, policy, options))


def _json_is_incomplete(url: str, pair: Paired, command: CommandLine, policy: Path, options: list[str]) -> None:
    import json

    pair.point_at(url)
    ran = command("run", "--policy", policy, *options, "--json", home=pair.device)
    printed = json.loads(ran.out)
    assert printed["incomplete"] is True
    assert printed["error"] == "transport"
    assert "text" not in printed
    assert ran.code == 5


def test_fallback_never_weakens_what_may_leave(pair: Paired, tiny: Engine, segments: list[Segment]) -> None:
    policy = policy_of("public-prefix", on_remote_failure="local")
    with bad_server(bad_servers.hang_up) as server:
        with pair.session(policy, tiny, transport=HttpTransport(server.url)) as session:
            answer = session.run(segments, max_new_tokens=2)
        assert answer.is_fallback
        assert server.connections == 1
    assert answer.egress.bytes_sent == 0


def test_fallback_is_exact_whatever_the_cloud_said_of_its_numerics(
    pair: Paired, tiny: Engine, segments: list[Segment]
) -> None:
    policy = policy_of("sealed-prefill", on_remote_failure="local", transfer={"resume_attempts": 0})
    with (
        served(pair.service(other_numerics(tiny))) as door,
        cutting_proxy(door.port, down_bytes=(None, 20_000)) as proxy,
        pair.session(policy, tiny, transport=HttpTransport(proxy.url)) as session,
    ):
        answer = session.run(segments, max_new_tokens=4)
    assert answer.is_fallback
    assert answer.exact


def other_numerics(engine: Engine) -> Engine:
    return Engine(replace(engine._loaded, numerics=replace(engine.numerics, threads=64)))


def test_prompt_that_the_policy_denies_is_not_run_on_the_device(pair: Paired, tiny: Engine) -> None:
    policy = policy_of("public-prefix", on_remote_failure="local")
    private = [Segment(segment.role, segment.text, Label.PRIVATE) for segment in _private()]
    with pytest.raises(SplitInferError) as caught:
        pair.run(policy, private, tiny, max_new_tokens=2)
    assert caught.value.code == "egress_denied"
    assert [record["type"] for record in pair.records()] == ["denied"]


def _private() -> list[Segment]:
    from splitinfer.segments import note, question

    return [note("a note"), question("who?")]


def test_answer_of_the_command_line_tells_that_it_fell_back(pair: Paired, command: CommandLine, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    text = 'mode = "sealed-decode"\n[remote]\nname = "default"\n[fallback]\non_remote_failure = "local"\n'
    policy.write_text(text)
    pair.point_at(bad_servers.unused_url())
    ran = command("run", "--policy", policy, "--private-text", "b", "--max-new-tokens", 2, "--json", home=pair.device)
    assert ran.code == 0
    assert '"is_fallback": true' in ran.out
    plain = command("run", "--policy", policy, "--private-text", "b", "--max-new-tokens", 2, home=pair.device)
    assert plain.code == 0
    assert "fell back" in plain.err or "fallback" in plain.err
