"""An attacker owns the network between device and cloud: every change to a transfer is refused, by name."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer import errors
from splitinfer.attestation.keyset import Replica, certify
from splitinfer.cli.main import main
from splitinfer.egress.verification import read_records, verify
from splitinfer.handoff import ModelIdentity, SamplingParams, Segment
from splitinfer.home import Home
from splitinfer.model.loading import LoadedModel, load
from splitinfer.sealing.stream import ChunkCipher
from splitinfer.segments import note, public, question
from tests.support import mutations as table
from tests.support.attack_scene import AttackScene, WatchedEngine, counted_cloud
from tests.support.mutations import Mutation
from tests.support.processes import cloud_process, route_through, run_cli
from tests.support.recording_proxy import RecordingProxy
from tests.support.tampering_proxy import Change, TamperingProxy, Transfer, Where
from tests.support.wire import TAG_BYTES, Message, WireBody, WireError

NOISED = ("noised-decode", "noised-prefill")
REMOTE_MODES = ("public-prefix", "sealed-prefill", "sealed-decode", *NOISED)
# The modes whose cloud decodes: text is shown frame by frame.
DECODED_THERE = ("sealed-decode", "noised-decode")
DOCUMENT, NOTE = "Price list: Belsa lamp $19.90", "Customer: Maria Lopez\nPhone: 415-203-7786"
QUESTION = "What is the phone number of Maria Lopez?"
SEGMENTS = (public(DOCUMENT), note(NOTE), question(QUESTION))
# Long enough that a prompt's token slab fills a chunk of its own.
DIRECTORY = "\n".join(f"- Guest {number}: phone number 555-{number:04d}" for number in range(70))
LONG_SEGMENTS = (public(f"{DIRECTORY}\n- Maria Lopez: phone number 415-203-7786"), question(QUESTION))
ANSWER_TOKENS = 8
MANIFEST_FRAMES = 8
TALLY: Counter[str] = Counter()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("embedded")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> Iterator[AttackScene]:
    """The cloud is a process of its own."""
    base = tmp_path_factory.mktemp("tampering")
    with cloud_process(base) as cloud, TamperingProxy(cloud.port) as proxy:
        route_through(base / "device", proxy.url)
        yield AttackScene(proxy, Home(base / "device"), WatchedEngine(loaded), base)


@pytest.fixture(scope="module", autouse=True)
def summary(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end how many attacks there were."""
    yield
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if capture is not None and reporter is not None and TALLY["mutations"]:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\ntampering: {TALLY['refused']} of {TALLY['mutations']} refused")


def refuse_all(
    scene: AttackScene, mode: str, mutations: Sequence[Mutation], segments: Sequence[Segment] = SEGMENTS
) -> None:
    """Attack with each, honest runs before and after; every one must end as the table says."""
    assert mutations
    assert len({mutation.name for mutation in mutations}) == len(mutations)
    shown = _shown_by_chunk(scene, mode)
    scene.honest(mode, segments, max_new_tokens=ANSWER_TOKENS)
    faults = []
    for mutation in mutations:
        TALLY["mutations"] += 1
        try:
            result = scene.attack(mutation, mode, segments, max_new_tokens=ANSWER_TOKENS)
            expected = shown[: max(0, mutation.fault_chunk - MANIFEST_FRAMES)] if mutation.where == "reply" else []
            assert result.pieces == [piece for piece in expected if piece], f"{len(result.pieces)} pieces were shown"
        except AssertionError as fault:
            faults.append(f"{mutation.name}: {fault}")
        else:
            TALLY["refused"] += 1
    scene.honest(mode, segments, max_new_tokens=ANSWER_TOKENS)
    assert faults == []


def _shown_by_chunk(scene: AttackScene, mode: str) -> list[str]:
    """Return the text that each verified token frame shows; only a cloud that decodes shows any before the end."""
    if mode not in DECODED_THERE:
        return []
    scene.proxy.arm()
    ids = scene.engine.tokenize(SEGMENTS).token_ids
    snapshot = scene.engine.prefill(ids[:-1], steps=[(0, len(ids) - 1)])
    params = SamplingParams(max_new_tokens=ANSWER_TOKENS)
    tokens = [token for token, _ in scene.engine.decode(snapshot, last_token=ids[-1], params=params)]
    stream = scene.engine.text_stream()
    pieces = [stream.push(token) for token in tokens]
    assert len([piece for piece in pieces if piece]) >= 4
    return pieces


def earlier(scene: AttackScene, mode: str, segments: Sequence[Segment] = SEGMENTS) -> Transfer:
    return scene.honest(mode, segments, max_new_tokens=ANSWER_TOKENS)


def test_an_attack_that_changes_nothing_or_ends_otherwise_is_noticed(scene: AttackScene) -> None:
    """The checks of an attack can fail: nothing changed, nothing struck, another error than the table says."""
    same = Mutation("same", "reply", lambda message: message, errors.AuthenticationError)
    with pytest.raises(AssertionError, match="not delivered"):
        scene.attack(same, "sealed-prefill", SEGMENTS)
    header = Mutation("header", "reply", lambda m: m.with_header("x-more", "1"), errors.AuthenticationError)
    with pytest.raises(AssertionError, match="not refused"):
        scene.attack(header, "sealed-prefill", SEGMENTS)
    other = table.flip_mutation("reply", 0, 0, 0)
    with pytest.raises(AssertionError, match="AuthenticationError"):
        scene.attack(replace(other, error=errors.TruncatedError), "sealed-prefill", SEGMENTS)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_keyset_is_refused_before_anything_is_sent(scene: AttackScene, mode: str) -> None:
    earlier(scene, mode)
    keyset = scene.proxy.transfers[0].reply
    assert keyset is not None
    chosen = list(table.keyset_mutations(keyset))
    refuse_all(scene, mode, chosen if mode == "sealed-prefill" else chosen[::4])


def _chosen(mode: str, mutations: Iterable[Mutation]) -> list[Mutation]:
    """Take all, and a part where the same bytes run through the same code as under a sealed mode."""
    every = list(mutations)
    if mode in NOISED:
        return every[::6]
    return every[::3] if mode == "public-prefix" else every


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_attack_is_refused_under_public_prefix_too(scene: AttackScene) -> None:
    past = earlier(scene, "public-prefix")
    mutations = [
        *table.request_head_mutations(past),
        *table.request_stream_mutations(past),
        *table.reply_head_mutations(past),
        *table.reply_stream_mutations(past),
    ]
    refuse_all(scene, "public-prefix", mutations)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_request_head_is_refused(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, _chosen(mode, table.request_head_mutations(earlier(scene, mode))))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_request_stream_is_refused(scene: AttackScene, mode: str) -> None:
    segments = SEGMENTS if mode == "sealed-decode" or mode in NOISED else LONG_SEGMENTS
    past = earlier(scene, mode, segments)
    assert len(past.sent.chunks) >= 3, "a manifest chunk, one of slabs, the final one"
    refuse_all(scene, mode, _chosen(mode, table.request_stream_mutations(past)), segments)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_reply_head_is_refused(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, _chosen(mode, table.reply_head_mutations(earlier(scene, mode))))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_reply_stream_is_refused_and_only_verified_text_is_shown(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, _chosen(mode, table.reply_stream_mutations(earlier(scene, mode))))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_an_answer_that_is_no_splitinfer_stream_is_refused(scene: AttackScene, mode: str) -> None:
    refuse_all(scene, mode, _chosen(mode, table.reply_http_mutations()))


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_changed_request_makes_the_cloud_compute_nothing(mode: str, tmp_path: Path, loaded: LoadedModel) -> None:
    """The same attacks on requests, with a cloud whose counters can be read."""
    with counted_cloud(tmp_path, loaded) as scene:
        past = earlier(scene, mode)
        assert scene.cloud_engine is not None
        assert scene.cloud_engine.work != (0, 0, 0), "an honest request is computed"
        chosen = [*table.request_head_mutations(past), *table.request_stream_mutations(past)]
        refuse_all(scene, mode, chosen[:: 6 if mode in NOISED else 3])


class OtherModelEngine(WatchedEngine):
    """An engine whose weights are said to be others."""

    @property
    def identity(self) -> ModelIdentity:
        return replace(super().identity, weights_sha256="0" * 64)


def test_a_sealed_refusal_that_comes_before_the_body_was_sent_is_still_read(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model mismatch shows in the manifest: the device must learn of it, not of a lost connection."""
    seal_into = ChunkCipher.seal_into

    def slowly(self: ChunkCipher, index: int, plain: memoryview, *rest: Any, **named: Any) -> None:
        time.sleep(0.1 if len(plain) > 1 << 15 else 0)
        seal_into(self, index, plain, *rest, **named)

    with counted_cloud(tmp_path, loaded) as scene, RecordingProxy(scene.proxy.target_port) as direct:
        route_through(scene.device.path, direct.url)
        scene.engine = OtherModelEngine(loaded)
        for seal in (seal_into, slowly):
            monkeypatch.setattr(ChunkCipher, "seal_into", seal)
            result = scene.run("sealed-decode", SEGMENTS)
            assert type(result.error) is errors.ModelMismatchError
            assert result.outcome["status"] == "refused"


# --- keysets of another time or hand --------------------------------------------------------------------------


def _issued(identity: Ed25519PrivateKey, *, generation: int = 1, epoch: int = 0, at: float = 0) -> bytes:
    """Return a keyset reply as a replica of this identity would give it at a time."""
    moment = at or time.time()
    replica_key = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    certificate = certify(
        identity,
        replica_id="ab" * 16,
        replica_public_key=replica_key.public_key().public_bytes_raw(),
        generation=generation,
        now=int(moment),
    )
    replica = Replica(replica_key, lambda: certificate, next_epoch=lambda now: epoch or now, clock=lambda: moment)
    return replica.reply(bytes(32))


def test_a_keyset_of_another_time_or_hand_is_refused(tmp_path: Path, loaded: LoadedModel) -> None:
    with counted_cloud(tmp_path, loaded) as scene:
        home = Home(tmp_path / "cloud")
        identity, stranger = home.key("identity"), Ed25519PrivateKey.generate()
        now = time.time()

        def answer(name: str, data: bytes, error: type[errors.SplitInferError], code: str | None = None) -> Mutation:
            return Mutation(name, "keyset", lambda message: message.with_body(data), error, code)

        stale = errors.StaleKeysetError
        refuse_all(
            scene,
            "sealed-prefill",
            [
                answer("of a stranger", _issued(stranger), errors.RecipientMismatchError),
                answer("expired", _issued(identity, at=now - 3 * 24 * 3600), stale),
                answer("an hour old", _issued(identity, at=now - 3700), stale),
                answer("not yet valid", _issued(identity, at=now + 600), stale),
                answer(
                    "of a replica that does not serve",
                    _issued(identity, epoch=70),
                    errors.RemoteRefusedError,
                    "keyset_stale",
                ),
                answer("of an older epoch", _issued(identity, epoch=69), stale),
            ],
        )
        scene.honest("sealed-prefill", SEGMENTS)
        scene.proxy.arm("keyset", lambda message: message.with_body(_issued(identity, generation=3)))
        assert isinstance(scene.run("sealed-prefill", SEGMENTS).error, errors.RemoteRefusedError)
        scene.proxy.arm()
        refused = scene.run("sealed-prefill", SEGMENTS)
        assert type(refused.error) is stale, "the replica's generation was retired"
        assert refused.outcome["bytes_sent"] == 0


# --- the command line -----------------------------------------------------------------------------------------

FRAME = MANIFEST_FRAMES + 4
COMMANDS = [
    ("sealed-decode", table.flip_in_chunk(FRAME, 5, 0), 4, "authentication", True),
    ("sealed-decode", table.flip_in_chunk(0, 5, 0), 4, "authentication", False),
    ("sealed-decode", FRAME, 5, "transport", True),
    ("public-prefix", table.flip_in_chunk(2, 5, 0), 4, "authentication", False),
    ("public-prefix", 1, 5, "transport", False),
    ("sealed-prefill", table.flip_in_chunk(2, 5, 0), 4, "authentication", False),
    ("sealed-prefill", 1, 5, "transport", False),
    ("noised-prefill", table.flip_in_chunk(2, 5, 0), 4, "authentication", False),
]


def _command_change(change: table.BodyChange | int) -> Change:
    """Change a reply's chunks, or lose the connection before one of them and whenever it is to be resumed."""
    if isinstance(change, int):
        return lambda message: _cut_before(message, change)
    return lambda message: message.with_body(change(WireBody.parse(message.body)).to_bytes())


def _cut_before(message: Message, index: int) -> Message | None:
    try:
        return message.cut(_start_of_chunk(message, index))
    except (WireError, ValueError):  # the answer to a state query
        return None


def _start_of_chunk(message: Message, index: int) -> int:
    body = WireBody.parse(message.body)
    return 4 + len(body.head) + index * len(body.chunks[0])


def _arguments(folder: Path, mode: str) -> list[str]:
    for name, text in (("shown", DOCUMENT), ("hidden", NOTE)):
        (folder / name).write_text(text)
    chosen = ["run", "--policy", mode, "--public", str(folder / "shown"), "--private", str(folder / "hidden")]
    return [*chosen, "--private-text", QUESTION, "--max-new-tokens", str(ANSWER_TOKENS), "--no-store"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda row: f"{row[0]}-{row[3]}-{row[4]}")
def test_the_command_line_names_the_error_and_says_incomplete(
    scene: AttackScene, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[Any, ...]
) -> None:
    mode, change, exit_code, code, is_incomplete = command
    arguments = ["--home", str(scene.device.path), *_arguments(tmp_path, mode)]
    scene.proxy.arm("reply", _command_change(change))
    assert main(arguments) == exit_code
    shown = capsys.readouterr()
    assert f"error[{code}]: " in shown.err
    assert ("incomplete" in shown.err) is is_incomplete
    assert shown.out.strip() == ("415" if is_incomplete else "")
    assert main([*arguments, "--json"]) == exit_code
    scene.proxy.wait()
    said = json.loads(capsys.readouterr().out)
    assert said["error"] == code
    assert said["incomplete"] is is_incomplete
    assert "text" not in said
    assert list(read_records(scene.device.audit))[-1]["status"] != "completed"
    verify(scene.device.audit, scene.device.key("checkpoint").public_key())


def test_a_device_process_ends_incomplete_with_exit_code_4(scene: AttackScene, tmp_path: Path) -> None:
    scene.proxy.arm("reply", _command_change(table.flip_in_chunk(FRAME, 5, 0)))
    done = run_cli(*_arguments(tmp_path, "sealed-decode"), home=scene.device.path)
    assert (done.returncode, done.stdout.strip()) == (4, "415")
    assert "incomplete" in done.stderr
    assert "error[authentication]" in done.stderr


# --- every byte -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", REMOTE_MODES)
@pytest.mark.parametrize("where", ["request", "reply"])
def test_no_bit_of_any_chunk_can_be_flipped(scene: AttackScene, mode: str, where: Where) -> None:
    """Every chunk, at eleven places of its body and at every byte of its tag, one bit each."""
    past = earlier(scene, mode)
    body = past.sent if where == "request" else past.received
    size = len(body.chunks[0])
    places = [*range(0, size - TAG_BYTES, max(1, size // 10)), *range(size - TAG_BYTES, size)]
    refuse_all(
        scene,
        mode,
        [table.flip_mutation(where, index, byte, byte % 8) for index in range(len(body.chunks)) for byte in places],
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", REMOTE_MODES)
@pytest.mark.parametrize("where", ["keyset", "request", "reply"])
def test_no_byte_of_a_clear_head_can_be_changed(scene: AttackScene, mode: str, where: Where) -> None:
    """One bit of every byte: whatever the error is, it is one of ours and nothing is computed."""
    past = earlier(scene, mode)
    keyset = scene.proxy.transfers[0].reply
    assert keyset is not None
    size = {"keyset": len(keyset.body), "request": 4 + len(past.sent.head), "reply": 4 + len(past.received.head)}[where]
    faults = []
    for byte in range(size):
        TALLY["mutations"] += 1
        changed = Mutation(
            f"{where} byte {byte}",
            where,
            table.flipped_at(byte, byte % 7),
            errors.SplitInferError,
        )
        try:
            scene.attack(changed, mode, SEGMENTS, max_new_tokens=ANSWER_TOKENS)
        except AssertionError as fault:
            faults.append(f"{changed.name}: {fault}")
        else:
            TALLY["refused"] += 1
    assert faults == []
