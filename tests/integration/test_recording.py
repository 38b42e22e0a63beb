"""What crosses between the two processes, byte for byte, and what of the prompt can be found in it: nothing."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import splitinfer.embedded
from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cli.main import main
from splitinfer.cloud import CloudService
from splitinfer.egress.verification import read_records, verify
from splitinfer.errors import RemoteRefusedError
from splitinfer.handoff import Segment
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Engine
from splitinfer.schedule import pad_tokens
from splitinfer.sealing.stream import ChunkCipher
from splitinfer.segments import note, public, question
from splitinfer.session import Session, load_engine
from tests.support.clear_twin import clear_cache, clear_texts, clear_tokens, echoing, post, unsealed
from tests.support.http_exchange import served
from tests.support.memory_clouds import EXACT_REMOTE_MODES, NOISED_MODES, REMOTE_MODES, policy_of
from tests.support.policy_files import named_or_written
from tests.support.processes import CloudProcess, cloud_process, environment, route_through
from tests.support.recording_proxy import Capture, RecordingProxy
from tests.support.scanner import Scanner
from tests.support.wire import Message
from trust_models.modes import MODES, TrustMode

SEALED_MODES = ("sealed-prefill", "sealed-decode")
DECODING_MODES = tuple(mode.value for mode in TrustMode if MODES[mode].decode == "cloud")
# Words that nothing else can contain.
PUBLIC_WORDS = tuple(f"Pub{secrets.token_hex(5)}" for _ in range(3))
PRIVATE_WORDS = tuple(f"Zq{secrets.token_hex(5)}" for _ in range(6))
FILE_WORD = f"File{secrets.token_hex(6)}"
DOCUMENT = "\n".join(PUBLIC_WORDS)
NOTE = "Name: {}\nCode: {}\nPlace: {}".format(*PRIVATE_WORDS[:3])
# A question that has an answer, so that there is one of several tokens to look for.
QUESTION = f"{' '.join(PRIVATE_WORDS[3:])}: What is the code of {PRIVATE_WORDS[0]}?"
NAMES = ("embedded", str(Path(splitinfer.embedded.__file__).parent))
SEGMENTS = (public(DOCUMENT), note(NOTE), question(QUESTION))


@dataclass
class Scene:
    """A cloud process behind a recording proxy, a device folder that knows the proxy only, an engine of our own."""

    cloud: CloudProcess
    proxy: RecordingProxy
    device: Home
    engine: Engine
    temporary: tuple[Path, Path]

    def run(self, mode: str, segments: Sequence[Segment], **sampling: object) -> list[Capture]:
        """Run a prompt in this process, without the store, and return what crossed."""
        self.proxy.take()
        policy = policy_of(mode, sampling=sampling) if mode in NOISED_MODES else mode
        with Session.open(policy, home=self.device, engine=self.engine, use_store=False) as session:
            session.run(segments, **sampling)
        return self.proxy.take()

    def outcome(self) -> dict[str, Any]:
        return dict(list(read_records(self.device.audit))[-1])


@dataclass(frozen=True)
class CommandRun:
    """One `splitinfer run` in a process of its own: what crossed, its outcome in the log, and what it printed."""

    captures: list[Capture]
    outcome: dict[str, Any]
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    base = tmp_path_factory.mktemp("recorded")
    temporary = base / "cloud-temporary", base / "device-temporary"
    for folder in temporary:
        folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary[0]))
        with cloud_process(base / "run") as cloud, RecordingProxy(cloud.port) as proxy:
            patch.setenv("TMPDIR", str(temporary[1]))
            device = Home(base / "run" / "device")
            route_through(device.path, proxy.url)
            yield Scene(cloud, proxy, device, load_engine("embedded", home=device), temporary)


DEVICE_PROCESS = """
import json, sys
from splitinfer.cli.main import main
for mode in sys.argv[1].split(","):
    code = main([*sys.argv[2:], "--policy", mode])
    print("@@", flush=True)
    print("@@", code, file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def commands(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CommandRun]:
    """Every remote mode by the command line, in a device process of its own."""
    files = tmp_path_factory.mktemp("texts")
    shown, hidden = files / "prices.md", files / f"{FILE_WORD}.txt"
    shown.write_text(DOCUMENT)
    hidden.write_text(NOTE)
    scene.proxy.take()
    arguments = ["--home", str(scene.device.path), "run", "--public", str(shown), "--private", str(hidden)]
    arguments += ["--private-text", QUESTION, "--max-new-tokens", "12"]
    policies = [named_or_written(mode, files, max_new_tokens=12) for mode in REMOTE_MODES]
    command = [sys.executable, "-c", DEVICE_PROCESS, ",".join(policies), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    captures = scene.proxy.take()
    outcomes = [dict(record) for record in read_records(scene.device.audit) if record["type"] == "outcome"]
    printed = zip(done.stdout.split("@@"), re.split("@@ ([0-9]+)", done.stderr)[0::2], strict=True)
    texts = list(printed)[: len(REMOTE_MODES)]
    assert len(outcomes) == len(texts) == len(REMOTE_MODES)
    assert len(captures) == 2 * len(REMOTE_MODES), "a keyset and a transfer for each"
    return {
        mode: CommandRun(captures[2 * at : 2 * at + 2], outcomes[at], *texts[at])
        for at, mode in enumerate(REMOTE_MODES)
    }


@pytest.fixture(scope="module")
def scanner(scene: Scene) -> Scanner:
    """Everything that may not be seen: words, names, runs of token ids and K/V rows of the whole prompt."""
    made = Scanner()
    made.add_words(PRIVATE_WORDS, what="private text")
    made.add_words(PUBLIC_WORDS, what="public text")
    made.add_words([FILE_WORD], what="file name")
    made.add_names(NAMES)
    token_ids = scene.engine.tokenize(SEGMENTS).token_ids
    made.add_tokens(token_ids)
    made.add_cache(scene.engine.prefill(token_ids, steps=[(0, len(token_ids))]))
    return made


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_the_audit_log_counts_exactly_the_bytes_that_crossed(
    scene: Scene, commands: dict[str, CommandRun], mode: str
) -> None:
    run = commands[mode]
    assert run.outcome["status"] == "completed"
    crossed = [
        (capture.route, len(capture.request.body), len(capture.reply.body), capture.reply.status)
        for capture in run.captures
    ]
    logged = [(call["route"], call["bytes_sent"], call["bytes_received"], 200) for call in run.outcome["calls"]]
    assert logged == crossed
    assert next(route for route, *_ in crossed) == "GET /v1/keyset"
    assert run.outcome["bytes_sent"] == sum(sent for _, sent, _, _ in crossed)
    assert run.outcome["bytes_received"] == sum(received for _, _, received, _ in crossed)
    verify(scene.device.audit, scene.device.key("checkpoint").public_key())


@contextmanager
def _device_not_allowed(scene: Scene) -> Iterator[None]:
    allowed = scene.cloud.home / "allowed"
    keys = allowed.read_text()
    allowed.write_text("0" * 64 + "\n")
    try:
        yield
    finally:
        allowed.write_text(keys)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_a_refused_request_is_counted_exactly_too(scene: Scene, mode: str) -> None:
    scene.proxy.take()
    with _device_not_allowed(scene), pytest.raises(RemoteRefusedError):
        scene.run(mode, SEGMENTS)
    _check_refused(scene)


def test_a_request_that_is_refused_while_it_is_sent_is_counted_exactly_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud answers after the head; what the device then held back did not leave and is not counted."""
    seal_into = ChunkCipher.seal_into

    def slowly(self: ChunkCipher, *arguments: Any, **named: Any) -> None:
        time.sleep(0.05)
        seal_into(self, *arguments, **named)

    monkeypatch.setattr(ChunkCipher, "seal_into", slowly)
    scene.proxy.take()
    with _device_not_allowed(scene), pytest.raises(RemoteRefusedError):
        scene.run("sealed-decode", SEGMENTS)
    request = _check_refused(scene)
    assert len(request.body) < request.declared_bytes, "the device stops once it is refused"


def _check_refused(scene: Scene) -> Message:
    captures, outcome = scene.proxy.take(), scene.outcome()
    assert (outcome["status"], captures[-1].reply.status) == ("refused", 401)
    requests = [Message.parse(bytes(one.sent)) for one in captures]
    assert [call["bytes_received"] for call in outcome["calls"]] == [len(one.reply.body) for one in captures]
    assert [call["bytes_sent"] for call in outcome["calls"]] == [len(one.body) for one in requests]
    return requests[-1]


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_nothing_of_the_prompt_is_in_the_captured_bytes(
    commands: dict[str, CommandRun], scanner: Scanner, mode: str
) -> None:
    for capture in commands[mode].captures:
        assert scanner.find(capture.sent) == set()
        assert scanner.find(capture.received) == set()


def test_no_answer_is_in_the_captured_bytes(scene: Scene, commands: dict[str, CommandRun]) -> None:
    with Session.open("local", home=scene.device, engine=scene.engine) as session:
        answer = session.run(SEGMENTS, max_new_tokens=12)
    looked_for = Scanner()
    looked_for.add_tokens(answer.token_ids)
    looked_for.add_words([word for word in answer.text.split() if len(word) >= 8], what="answer")
    assert any(kind.startswith("tokens") for kind in looked_for.kinds)
    for mode, run in commands.items():
        assert run.stdout.strip() == answer.text.strip() or mode not in EXACT_REMOTE_MODES
        assert all(looked_for.find(one.sent) | looked_for.find(one.received) == set() for one in run.captures)


def test_nothing_of_the_prompt_is_in_logs_or_printed_errors(
    scene: Scene, commands: dict[str, CommandRun], scanner: Scanner
) -> None:
    assert scene.cloud.log.read_bytes(), "the cloud logs its requests"
    assert scanner.find(scene.cloud.log.read_bytes()) == set()
    assert scanner.find_in_files(scene.device.audit) == {}
    for run in commands.values():
        assert "left the device" in run.stderr
        assert scanner.find(run.stderr.encode()) == set()


def test_nothing_of_the_prompt_is_in_either_state_folder_or_temporary_files(
    scene: Scene, commands: dict[str, CommandRun], scanner: Scanner
) -> None:
    assert (scene.device.path / "seen.json").exists(), "the folder that the runs used"
    assert len(list((scene.device.path / "store").glob("?" * 64))) == 1, "the cache of the public text is stored"
    for folder in (scene.device.path, scene.cloud.home, *scene.temporary):
        assert scanner.find_in_files(folder) == {}


def test_nothing_of_the_prompt_is_in_the_text_of_an_error(
    scene: Scene, scanner: Scanner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{FILE_WORD}.txt"
    path.write_text(NOTE)
    arguments = ["--home", str(scene.device.path), "run", "--private", str(path), "--private-text", QUESTION]
    for extra in (
        ["--policy", "sealed-decode"],
        ["--policy", "sealed-prefill", "--json"],
        ["--policy", "public-prefix"],
    ):
        with _device_not_allowed(scene):
            assert main([*arguments, *extra]) in {3, 5}
        shown = capsys.readouterr()
        assert "error[" in shown.err
        assert scanner.find(shown.out.encode()) | scanner.find(shown.err.encode()) == set()


# --- the scanner can find -------------------------------------------------------------------------------------


def test_the_scanner_finds_every_needle_in_a_clear_twin(scene: Scene, scanner: Scanner, tmp_path: Path) -> None:
    """The same payloads sent in clear through the same proxy: every kind is found, in either direction and in files."""
    token_ids = scene.engine.tokenize(SEGMENTS).token_ids
    snapshot = scene.engine.prefill(token_ids, steps=[(0, len(token_ids))])
    words = " ".join((DOCUMENT, NOTE, QUESTION, FILE_WORD))
    payloads = [*clear_texts(words, NAMES), *clear_tokens(token_ids), *clear_cache(snapshot)]
    with echoing() as port, RecordingProxy(port) as proxy:
        for payload in payloads:
            assert post(proxy.url, payload) == payload
        captures = proxy.take()
    sent, received = (b"".join(getattr(one, side) for one in captures) for side in ("sent", "received"))
    assert scanner.find(sent) == scanner.kinds
    assert scanner.find(received) == scanner.kinds
    for index, payload in enumerate(payloads):
        (tmp_path / str(index)).write_bytes(payload)
    assert set().union(*scanner.find_in_files(tmp_path).values()) == scanner.kinds


def test_every_single_window_and_run_is_found() -> None:
    """One word, one run of four ids, one row: found at any offset, and not when a single byte of it is missing."""
    scanner = Scanner()
    scanner.add_words(["Zq0123456789"])
    scanner.add_tokens([4001, 17, 0, 255])
    for payload in (*clear_texts("Zq0123456789", ()), *clear_tokens([4001, 17, 0, 255])):
        for shift in range(1, 10):
            assert scanner.find(secrets.token_bytes(shift) + payload + secrets.token_bytes(shift))
    assert scanner.find(b"Zq012345678") == set()
    assert scanner.find(b"".join(part.to_bytes(4, "big") for part in (4001, 17, 0, 254))) == set()


@pytest.mark.parametrize(
    ("mode", "crosses"),
    [
        ("public-prefix", ("tokens u32 big", "K/V float32")),
        ("sealed-prefill", ("tokens u32 big", "K/V float32")),
        ("sealed-decode", ("K/V float32", None)),
    ],
)
def test_the_scanner_finds_the_real_payloads_when_only_the_seal_is_missing(
    scene: Scene, scanner: Scanner, tmp_path: Path, mode: str, crosses: tuple[str, str | None]
) -> None:
    cloud_home, device = Home(tmp_path / "cloud"), Home(tmp_path / "device")
    identity = cloud_home.key("identity").public_key().public_bytes_raw()
    allow_device(cloud_home, device.key("device").public_key().public_bytes_raw().hex())
    cloud = CloudService(
        scene.engine,
        make_replica(cloud_home),
        allowed=lambda: allowed_devices(cloud_home),
        clock=time.time,
        randomness=secrets.token_bytes,
    )
    with served(cloud) as door, RecordingProxy(door.port) as proxy, unsealed():
        save_remote(device, "default", Remote(proxy.url, identity_sha256(identity)))
        with Session.open(mode, home=device, engine=scene.engine) as session:
            session.run(SEGMENTS, max_new_tokens=12)
        transfer = proxy.take()[-1]
    up, down = crosses
    assert up in scanner.find(transfer.sent)
    assert down is None or down in scanner.find(transfer.received)


# --- sizes ----------------------------------------------------------------------------------------------------


def _prompt(public_words: int, private_words: int, *, letter: str = "a", notes: int = 1) -> tuple[Segment, ...]:
    notes_ = [note(f"{letter} " * private_words) for _ in range(notes)]
    return (public(f"{letter} " * public_words), *notes_, question(f"What is {letter}?"))


def _sizes(scene: Scene, mode: str, segments: Sequence[Segment], **sampling: object) -> list[tuple[int, ...]]:
    captures = scene.run(mode, segments, **{"max_new_tokens": 4, **sampling})
    parts = [(len(one.sent), len(one.request.body), len(one.received), len(one.reply.body)) for one in captures]
    return list(parts)


def _bucket(scene: Scene, mode: str, segments: Sequence[Segment]) -> tuple[int, int]:
    prompt = scene.engine.tokenize(segments)
    tokens = prompt.leading_public_tokens if mode == "public-prefix" else len(prompt.token_ids) - 1
    return tokens, pad_tokens(tokens)


LONG = _prompt(90, 90)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_two_prompts_in_one_bucket_look_alike(scene: Scene, mode: str) -> None:
    base = _prompt(70, 5)
    others = {
        "shorter": _prompt(68, 3),
        "longer": _prompt(80, 8),
        "other text": _prompt(74, 4, letter="x"),
        "more segments": _prompt(70, 1, notes=4),
    }
    tokens, bucket = _bucket(scene, mode, base)
    sizes = _sizes(scene, mode, base)
    for name, segments in others.items():
        found, found_bucket = _bucket(scene, mode, segments)
        assert found_bucket == bucket, name
        assert found != tokens or name == "more segments" or mode == "public-prefix", name
        assert _sizes(scene, mode, segments) == sizes, name


@pytest.mark.parametrize("mode", REMOTE_MODES)
@pytest.mark.parametrize(
    "sampling",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 16},
        {"temperature": 1.5, "seed": 2**63 - 1, "top_k": 50, "top_p": 0.123456789},
        {"temperature": 0.7, "seed": 1},
        {"stop": ("Q", "never to be seen")},
    ],
    ids=["one token", "sixteen tokens", "sampled", "other seed", "stop strings"],
)
def test_sampling_and_answer_length_do_not_show_in_sizes(scene: Scene, mode: str, sampling: dict[str, Any]) -> None:
    segments = _prompt(70, 5)
    assert _sizes(scene, mode, segments, **sampling) == _sizes(scene, mode, segments)


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_two_prompts_in_different_buckets_differ(scene: Scene, mode: str) -> None:
    short, long = _prompt(70, 5), _prompt(200, 100)
    assert _bucket(scene, mode, short)[1] != _bucket(scene, mode, long)[1]
    cached = 0 if mode in DECODING_MODES else 2
    assert _sizes(scene, mode, short)[-1][cached] != _sizes(scene, mode, long)[-1][cached]


def test_private_text_of_any_length_does_not_show_under_public_prefix(scene: Scene) -> None:
    assert _sizes(scene, "public-prefix", _prompt(70, 1)) == _sizes(scene, "public-prefix", _prompt(70, 400))


def test_the_answer_bucket_shows_where_the_cloud_decodes_and_nowhere_else(scene: Scene) -> None:
    segments = _prompt(70, 5)
    sixteen, more = ({mode: _sizes(scene, mode, segments, max_new_tokens=n) for mode in REMOTE_MODES} for n in (16, 17))
    assert tuple(mode for mode in REMOTE_MODES if sixteen[mode] != more[mode]) == DECODING_MODES
