"""Later turns of a session: the same tokens as `local`, only what is new crosses, what is not held is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitinfer.answer import Answer
from splitinfer.cloud import CloudService
from splitinfer.cloud.prefixes import PrefixLimits
from splitinfer.cloud.sessions import SessionLimits
from splitinfer.conversation import Link
from splitinfer.errors import ReplayError, TransportError, VerificationError
from splitinfer.handoff import ReleasedTransfer, Reply, Route
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.recall import LOST_NOTE
from splitinfer.segments import answered, document, note, public, question
from splitinfer.transport.memory import MemoryTransport
from tests.support import tiny_models
from tests.support.memory_clouds import Paired, policy_of
from tests.support.turns import (
    FIRST,
    SEEDED,
    SHORT_TAIL,
    after_first_turn,
    codes,
    following,
    held_by,
    is_wiped,
    keeping,
    talk,
    talk_anew,
)
from trust_models.policy import Policy

POLICIES = {
    "local": policy_of("local"),
    "public-prefix": policy_of("public-prefix"),
    "sealed-prefill": policy_of("sealed-prefill"),
    "sealed-prefill, kept": keeping("sealed-prefill"),
    "sealed-decode": policy_of("sealed-decode"),
    "sealed-decode, kept": keeping("sealed-decode"),
}
KEPT = [name for name in POLICIES if name.endswith("kept")]


@pytest.fixture
def cloud(pair: Paired, tiny_on_cloud: Engine) -> CloudService:
    return pair.service(tiny_on_cloud)


@pytest.mark.parametrize("sampling", [{}, SEEDED], ids=["greedy", "seeded"])
def test_tokens_of_every_turn_are_those_of_local_without_memory(
    pair: Paired, tiny: Engine, cloud: CloudService, sampling: dict[str, object]
) -> None:
    wanted = [said.token_ids for said in talk_anew(pair, tiny, **sampling)]
    assert len(set(wanted)) > 1
    for name, policy in POLICIES.items():
        with pair.session(policy, tiny, cloud) as session:
            answers = talk(session, **sampling)
        assert [said.token_ids for said in answers] == wanted, name
        assert all(said.exact for said in answers), name
    assert held_by(cloud) == []


@pytest.mark.parametrize("kind", ["gemma3_text", "mistral"])
def test_layers_with_a_window_go_on_where_their_state_is_the_last(pair: Paired, tmp_path: Path, kind: str) -> None:
    source = str(tiny_models.build(tmp_path / kind, kind, template=SHORT_TAIL))
    device, other = Engine(load(source)), Engine(load(source))
    wanted = [said.token_ids for said in talk_anew(pair, device)]
    for name in ("local", *KEPT):
        with pair.session(POLICIES[name], device, pair.service(other)) as session:
            answers = talk(session)
        assert [said.token_ids for said in answers] == wanted, name
        assert [bool(said.base_tokens) for said in answers] == [False, True, True], name


def test_layers_with_a_window_begin_anew_where_an_earlier_state_would_be_needed(pair: Paired, tmp_path: Path) -> None:
    source = str(tiny_models.build(tmp_path / "gemma", "gemma3_text"))
    device, other = Engine(load(source)), Engine(load(source))
    wanted = [said.token_ids for said in talk_anew(pair, device)]
    for name in KEPT:
        with pair.session(POLICIES[name], device, pair.service(other)) as session:
            answers = talk(session)
        assert [said.token_ids for said in answers] == wanted, name
        assert {said.base_tokens for said in answers} == {0}, name


@pytest.mark.parametrize("codec", ["lossless", "q8"])
@pytest.mark.parametrize("mode", ["sealed-prefill", "sealed-decode"])
def test_every_codec_carries_a_later_turn(
    pair: Paired, tiny: Engine, cloud: CloudService, mode: str, codec: str
) -> None:
    with pair.session(keeping(mode, transfer={"codec": codec}), tiny, cloud) as session:
        answers = talk(session)
    assert all(said.base_tokens for said in answers[1:])
    if codec == "lossless":
        assert [said.token_ids for said in answers] == [said.token_ids for said in talk_anew(pair, tiny)]


def test_local_computes_only_what_is_new(pair: Paired, tiny: Engine) -> None:
    with pair.session("local", tiny) as session:
        said = session.run(FIRST, max_new_tokens=6)
        before = tiny.prefilled_tokens
        later = session.run(following(list(FIRST), said, 0), max_new_tokens=6)
    assert tiny.prefilled_tokens - before == later.prompt_tokens - 1 - later.base_tokens
    assert later.new_tokens == later.prompt_tokens - later.base_tokens < later.prompt_tokens


def test_public_text_is_not_sent_again_and_the_log_says_whence_its_cache_came(
    pair: Paired, tiny: Engine, cloud: CloudService
) -> None:
    with after_first_turn(pair, "public-prefix", tiny, cloud) as (session, segments):
        first = pair.last
        later = session.run(segments, max_new_tokens=6)
        last = pair.last
    assert (later.egress.bytes_sent, later.egress.bytes_received, later.receipt) == (0, 0, None)
    assert later.prefilled_by_cloud_tokens == 0
    assert (last["type"], last["bytes_sent"]) == ("reuse", 0)
    assert last["transfer_id"] == first["calls"][-1]["transfer_id"]
    assert last["received_root"] == first["calls"][-1]["received_root"]


def test_of_new_leading_public_text_only_the_new_rows_come_down(
    pair: Paired, tiny: Engine, cloud: CloudService
) -> None:
    new = public("lid 1")
    wanted = pair.run("local", [FIRST[0], new, *FIRST[1:]], tiny, max_new_tokens=6)
    with pair.session("public-prefix", tiny, cloud) as session:
        first = session.run(FIRST, max_new_tokens=6)
        later = session.run([FIRST[0], new, *FIRST[1:]], max_new_tokens=6)
    assert later.token_ids == wanted.token_ids
    assert later.base_tokens == first.public_tokens
    assert later.prefilled_by_cloud_tokens == later.public_tokens - first.public_tokens
    assert later.receipt is not None
    assert later.receipt.event_count("reused") == first.public_tokens
    assert later.receipt.event_count("kept") == later.public_tokens


def stranger_of(pair: Paired, folder: Path) -> Paired:
    """Return another device that the same cloud allows."""
    stranger = Paired(Home(folder / "stranger"), pair.cloud)
    allow_device(pair.cloud, stranger.device.key("device").public_key().public_bytes_raw().hex())
    stranger.point_at("http://127.0.0.1:9")
    return stranger


def test_public_text_is_found_again_in_the_cloud_by_the_device_that_sent_it_alone(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, cloud: CloudService, tmp_path: Path
) -> None:
    stranger = stranger_of(pair, tmp_path)
    computed, answers = [], []
    for device in (pair, pair, stranger):
        before = tiny_on_cloud.prefilled_tokens
        answers.append(device.run("public-prefix", FIRST, tiny, cloud, max_new_tokens=6))
        computed.append(tiny_on_cloud.prefilled_tokens - before)
    public_tokens = answers[0].public_tokens
    assert computed == [public_tokens, 0, public_tokens]
    assert len({said.token_ids for said in answers}) == 1
    reused = [said.receipt.event_count("reused") for said in answers if said.receipt]
    assert reused == [None, public_tokens, None]


def test_an_operator_can_switch_the_prefix_cache_off(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    cloud = pair.service(tiny_on_cloud, prefixes=PrefixLimits(max_bytes=0))
    for _ in range(2):
        said = pair.run("public-prefix", FIRST, tiny, cloud, max_new_tokens=2)
        assert said.receipt is not None
        assert [said.receipt.event_count(name) for name in ("reused", "kept", "erased")] == [None, None, 1]


def moved(said: Answer) -> int:
    return said.egress.bytes_sent + said.egress.bytes_received


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_session_computes_and_moves_only_what_is_new(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, cloud: CloudService, name: str
) -> None:
    long = [public("x" * 200), *FIRST]
    with pair.session(POLICIES[name], tiny, cloud) as session:
        first = session.run(long, max_new_tokens=6)
        done = tiny.prefilled_tokens, tiny_on_cloud.prefilled_tokens
        later = session.run(following(long, first, 0), max_new_tokens=6)
        computed = tiny.prefilled_tokens - done[0], tiny_on_cloud.prefilled_tokens - done[1]
    assert sum(computed) == later.new_tokens - 1
    assert later.base_tokens >= 200
    assert moved(later) < moved(first)
    assert later.receipt is not None
    events = {event.event: event.count for event in later.receipt.body.events}
    assert events["reused"] == later.base_tokens
    assert events["kept"] == later.prompt_tokens - 1
    assert "erased" not in events


@pytest.mark.parametrize("mode", ["sealed-prefill", "sealed-decode"])
def test_without_leave_the_cloud_keeps_nothing_and_gets_everything_again(
    pair: Paired, tiny: Engine, cloud: CloudService, mode: str
) -> None:
    with after_first_turn(pair, mode, tiny, cloud) as (session, segments):
        assert held_by(cloud) == []
        later = session.run(segments, max_new_tokens=6)
    assert later.base_tokens == 0
    assert later.receipt is not None
    assert (later.receipt.event_count("erased"), later.receipt.event_count("kept")) == (1, None)
    assert later.note is None


@pytest.mark.parametrize("name", KEPT)
def test_closing_a_session_erases_it_at_the_cloud_with_a_receipt(
    pair: Paired, tiny: Engine, cloud: CloudService, name: str
) -> None:
    with after_first_turn(pair, POLICIES[name], tiny, cloud):
        (held,) = held_by(cloud)
        assert not is_wiped(held)
    assert held_by(cloud) == []
    assert is_wiped(held)
    intent, outcome = pair.records()[-2:]
    assert (intent["tokens_bucket"], outcome["status"]) == (0, "completed")
    assert "receipt_commitment" in outcome


def test_a_session_that_cannot_be_ended_is_logged_and_no_error(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    broken = Breaking(MemoryTransport(cloud))
    with pair.session(KEPT_PREFILL, tiny, transport=broken) as session:
        session.run(FIRST, max_new_tokens=2)
        broken.is_broken = True
    assert codes(pair)[-1] == ("failed", "transport")
    assert len(held_by(cloud)) == 1


def test_the_device_wipes_what_it_remembers(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    with after_first_turn(pair, "local", tiny, None) as (session, segments):
        first = session._device.conversation.held
        session.run(segments, max_new_tokens=2)
        second = session._device.conversation.held
        assert first is not None
        assert second is not None
        assert is_wiped(first.snapshot)
        assert not is_wiped(second.snapshot)
    assert is_wiped(second.snapshot)
    assert session._device.conversation.held is None


def test_text_that_was_private_before_is_no_base_to_be_told_of(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    hidden = [FIRST[0], document("Zoe"), FIRST[2]]
    shown = [FIRST[0], public("Zoe"), public("lid 1"), FIRST[2]]
    with pair.session("public-prefix", tiny, cloud) as session:
        first = session.run(hidden, max_new_tokens=2)
        later = session.run(shown, max_new_tokens=2)
    assert first.public_tokens < later.public_tokens
    assert later.base_tokens == first.public_tokens
    assert later.prefilled_by_cloud_tokens == later.public_tokens - first.public_tokens


def test_the_same_prompt_again_moves_nothing_that_is_held(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    with pair.session(KEPT_PREFILL, tiny, cloud) as session:
        first, again = (session.run(FIRST, max_new_tokens=6) for _ in range(2))
    assert again.token_ids == first.token_ids
    assert again.egress.bytes_sent == 0
    with pair.session(KEPT_DECODE, tiny, cloud) as session:
        first, again = (session.run(FIRST, max_new_tokens=6) for _ in range(2))
    assert again.token_ids == first.token_ids
    assert 0 < again.base_tokens < again.prompt_tokens - 1


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_changed_earlier_text_is_gone_on_from_before_the_change(
    pair: Paired, tiny: Engine, cloud: CloudService, name: str
) -> None:
    changed = [FIRST[0], note("Ada"), FIRST[2], answered("so"), question("why?")]
    wanted = pair.run("local", changed, tiny, max_new_tokens=6)
    with after_first_turn(pair, POLICIES[name], tiny, cloud) as (session, _):
        said = session.run(changed, max_new_tokens=6)
    assert said.token_ids == wanted.token_ids
    assert said.base_tokens < said.prompt_tokens - 20


# --- what is not held -----------------------------------------------------------------------------------------------

KEPT_PREFILL, KEPT_DECODE = keeping("sealed-prefill"), keeping("sealed-decode")


class Breaking:
    """A transport that breaks transfers once it is told to; `after` breaks when the cloud has the whole request."""

    def __init__(self, transport: MemoryTransport, *, after: bool = False) -> None:
        self._transport, self._after = transport, after
        self.is_broken = False

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        if self.is_broken and transfer.route is not Route.KEYSET:
            if self._after:
                self._transport.exchange(transfer)
            raise TransportError("the connection is lost")
        return self._transport.exchange(transfer)


@pytest.mark.parametrize("policy", [KEPT_PREFILL, KEPT_DECODE], ids=["prefill", "decode"])
@pytest.mark.parametrize("how", ["restart", "expiry", "eviction"])
def test_a_lost_session_is_sent_again_under_a_new_transfer_and_said(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, policy: Policy, how: str
) -> None:
    clouds = {"restart": [pair.service(tiny_on_cloud), pair.service(tiny_on_cloud)]}
    cloud = pair.service(tiny_on_cloud)
    first, second = clouds.get(how, [cloud, cloud])
    switch = Switch(first)
    with after_first_turn(pair, policy, tiny, switch) as (session, segments):
        held = held_by(first)
        switch.cloud = second
        if how == "expiry":
            first._sessions._limits = SessionLimits(idle_seconds=0)
        if how == "eviction":
            first._sessions._limits = SessionLimits(max_sessions=1)
            with pair.session(policy, tiny, first) as other:
                other.run(FIRST, max_new_tokens=2)
        wanted = pair.run("local", segments, tiny, max_new_tokens=6)
        said = session.run(segments, max_new_tokens=6)
        assert codes(pair)[-2:] == [("refused", "session_lost"), ("completed", "")]
    assert said.token_ids == wanted.token_ids
    assert said.note == LOST_NOTE
    assert said.base_tokens == 0
    assert len(said.egress.calls) == 4
    if how != "restart":
        assert all(is_wiped(snapshot) for snapshot in held)


class Switch:
    """Hands every call to the cloud that is set."""

    def __init__(self, cloud: CloudService) -> None:
        self.cloud = cloud

    def handle(self, route: Route, body: Any) -> Any:
        return self.cloud.handle(route, body)


def _wrong_parent(link: Link) -> Link:
    return replace(link, root="ab" * 32)


def _skipped_turn(link: Link) -> Link:
    return replace(link, turn=link.turn + 1)


def _repeated_turn(link: Link) -> Link:
    return replace(link, turn=link.turn - 1) if link.turn else replace(link, turn=1)


@pytest.mark.parametrize("policy", [KEPT_PREFILL, KEPT_DECODE], ids=["prefill", "decode"])
@pytest.mark.parametrize("change", [_wrong_parent, _skipped_turn, _repeated_turn])
def test_a_turn_that_does_not_go_on_from_what_is_held_is_refused_and_nothing_kept(
    *,
    pair: Paired,
    tiny: Engine,
    tiny_on_cloud: Engine,
    cloud: CloudService,
    policy: Policy,
    change: Callable[[Link], Link],
) -> None:
    with after_first_turn(pair, policy, tiny, cloud) as (session, segments):
        said = session.run(segments, max_new_tokens=6)
        conversation, (held,) = session._device.conversation, held_by(cloud)
        assert conversation.link is not None
        conversation.link = change(conversation.link)
        done = tiny_on_cloud.prefilled_tokens, tiny_on_cloud.decoded_tokens
        with pytest.raises(ReplayError):
            session.run(following(segments, said, 1), max_new_tokens=6)
        assert (tiny_on_cloud.prefilled_tokens, tiny_on_cloud.decoded_tokens) == done
        assert held_by(cloud) == []
        assert is_wiped(held)
        assert codes(pair)[-1] == ("refused", "replay")
        again = session.run(following(segments, said, 1), max_new_tokens=6)
        assert (again.base_tokens, again.note) == (0, None)


@pytest.mark.parametrize("policy", [KEPT_PREFILL, KEPT_DECODE], ids=["prefill", "decode"])
def test_a_base_beyond_what_is_held_is_refused(pair: Paired, tiny: Engine, cloud: CloudService, policy: Policy) -> None:
    with after_first_turn(pair, policy, tiny, cloud) as (session, segments):
        longer = session.run(segments, max_new_tokens=6)
        conversation = session._device.conversation
        linked, held = conversation.link, cloud._sessions._held
        (key,) = held
        held[key] = replace(held[key], snapshot=_shortened(held[key].snapshot))
        assert linked is not None
        with pytest.raises(ReplayError):
            session.run(following(segments, longer, 1), max_new_tokens=6)
        assert held_by(cloud) == []


def _shortened(snapshot: Any) -> Any:
    from splitinfer.cache.snapshot import cut

    return cut(snapshot, 5)


@pytest.mark.parametrize("policy", [KEPT_PREFILL, KEPT_DECODE], ids=["prefill", "decode"])
def test_another_device_finds_nothing_of_a_session_and_does_it_no_harm(
    pair: Paired, tiny: Engine, cloud: CloudService, tmp_path: Path, policy: Policy
) -> None:
    stranger = stranger_of(pair, tmp_path)
    with (
        after_first_turn(pair, policy, tiny, cloud) as (session, segments),
        stranger.session(policy, tiny, cloud) as thief,
    ):
        owner, other = session._device.conversation, thief._device.conversation
        thief.run(FIRST, max_new_tokens=1)
        other.session_id, other.link = owner.session_id, owner.link
        said = thief.run(segments, max_new_tokens=1)
        assert said.note == LOST_NOTE
        assert ("refused", "session_lost") in codes(stranger)
        assert len(held_by(cloud)) == 3
        later = session.run(segments, max_new_tokens=6)
        assert later.base_tokens > 0
        assert later.note is None


def test_a_cache_of_another_model_is_refused(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    with after_first_turn(pair, KEPT_DECODE, tiny, cloud) as (session, segments):
        held = cloud._sessions._held
        (key,) = held
        other = held[key].model.model_copy(update={"weights_sha256": "0" * 64})
        held[key] = replace(held[key], model=other)
        with pytest.raises(ReplayError):
            session.run(segments, max_new_tokens=2)
        assert held_by(cloud) == []


@pytest.mark.parametrize("after", [False, True], ids=["before the cloud has it", "after the cloud has it"])
@pytest.mark.parametrize("policy", [KEPT_PREFILL, KEPT_DECODE], ids=["prefill", "decode"])
def test_a_turn_that_broke_is_followed_by_one_that_brings_everything(
    pair: Paired, tiny: Engine, cloud: CloudService, policy: Policy, after: bool
) -> None:
    broken = Breaking(MemoryTransport(cloud), after=after)
    with pair.session(policy, tiny, transport=broken) as session:
        segments = following(list(FIRST), session.run(FIRST, max_new_tokens=6), 0)
        wanted = pair.run("local", segments, tiny, max_new_tokens=6)
        broken.is_broken = True
        with pytest.raises(TransportError):
            session.run(segments, max_new_tokens=6)
        broken.is_broken = False
        said = session.run(segments, max_new_tokens=6)
        assert said.token_ids == wanted.token_ids
        assert said.base_tokens == 0
        assert len(held_by(cloud)) == 1
    assert held_by(cloud) == []


def test_a_cloud_that_keeps_what_it_was_not_asked_to_is_found(
    pair: Paired, tiny: Engine, cloud: CloudService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitinfer.cloud.sessions.Turn.keep", lambda *_, **__: True)
    with pair.session("sealed-prefill", tiny, cloud) as session, pytest.raises(VerificationError, match="kept"):
        session.run(FIRST, max_new_tokens=2)


def test_a_cloud_without_room_says_erased_and_gets_everything_again(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    cloud = pair.service(tiny_on_cloud, sessions=SessionLimits(max_bytes=100))
    with after_first_turn(pair, KEPT_DECODE, tiny, cloud) as (session, segments):
        said = session.run(segments, max_new_tokens=2)
    assert said.base_tokens == 0
    assert said.note is None
    assert said.receipt is not None
    assert said.receipt.event_count("erased") == 1


def test_fallback_after_a_broken_turn_goes_on_from_what_the_device_holds(
    pair: Paired, tiny: Engine, cloud: CloudService
) -> None:
    policy = policy_of("sealed-decode", on_remote_failure="local", session={"keep": True})
    broken = Breaking(MemoryTransport(cloud))
    with pair.session(policy, tiny, transport=broken) as session:
        segments = following(list(FIRST), session.run(FIRST, max_new_tokens=6), 0)
        wanted = pair.run("local", segments, tiny, max_new_tokens=6)
        broken.is_broken = True
        before = tiny.prefilled_tokens
        said = session.run(segments, max_new_tokens=6)
        assert (said.is_fallback, said.token_ids) == (True, wanted.token_ids)
        assert tiny.prefilled_tokens - before < said.prompt_tokens - 1


def test_a_stopped_server_keeps_nothing(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    with after_first_turn(pair, KEPT_PREFILL, tiny, cloud) as (session, segments):
        (held,) = held_by(cloud)
        cloud.close()
        assert is_wiped(held)
        said = session.run(segments, max_new_tokens=2)
        assert said.note == LOST_NOTE
        assert held_by(cloud) == []


def test_an_answer_closed_early_is_not_kept(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    with pair.session(KEPT_DECODE, tiny, cloud) as session:
        stream = session.stream(FIRST, max_new_tokens=40, temperature=2.0)
        next(iter(stream))
        stream.close()
        assert held_by(cloud) == []
        assert session._device.conversation.link is None


def test_nothing_of_a_session_is_in_the_log(pair: Paired, tiny: Engine, cloud: CloudService) -> None:
    with after_first_turn(pair, KEPT_PREFILL, tiny, cloud) as (session, segments):
        session.run(segments, max_new_tokens=2)
        name = session._device.conversation.session_id
    assert name not in str(pair.records())
