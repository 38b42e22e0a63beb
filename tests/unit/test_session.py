"""What a session checks before it runs anything, and what its runs leave behind."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

import pytest

from splitinfer import Session, note, question
from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cloud import CloudService
from splitinfer.codec.packed import FixedPacked
from splitinfer.egress.verification import read_records
from splitinfer.embedded import path as embedded_path
from splitinfer.errors import ModelMismatchError, PromptError, TransportError, UnsupportedModelError
from splitinfer.handoff import CloudReply, ReleasedTransfer, Reply, Route, Source
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.remotes import Remote, save_remote
from splitinfer.model.engine import Engine
from splitinfer.model.identity import identify
from splitinfer.model.loading import load
from splitinfer.session import load_engine
from splitinfer.transport import memory
from splitinfer.transport.memory import MemoryTransport
from trust_models.policy import parse_policy

PROMPT = [note("Customer: Maria Lopez\nPhone: 415-203-7786"), question("What is the phone number of Maria Lopez?")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine("embedded", home=Home(tmp_path_factory.mktemp("home") / "h"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "device")


def cloud_for(home: Home, engine: Engine, base: Path) -> CloudService:
    cloud = Home(base / "cloud")
    allow_device(cloud, home.key("device").public_key().public_bytes_raw().hex())
    pin = identity_sha256(cloud.key("identity").public_key().public_bytes_raw())
    save_remote(home, "default", Remote("http://127.0.0.1:1", pin))
    return CloudService(
        engine,
        make_replica(cloud),
        allowed=lambda: allowed_devices(cloud),
        clock=time.time,
        randomness=secrets.token_bytes,
    )


def test_an_engine_that_is_handed_in_must_have_the_pinned_weights(home: Home, engine: Engine) -> None:
    pin = "ab" * 32
    policy = parse_policy(f'mode = "local"\n[model]\nweights_sha256 = "{pin}"\n', origin="test")
    with pytest.raises(ModelMismatchError, match=pin):
        Session.open(policy, home=home, engine=engine)


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "model"
    shutil.copytree(embedded_path(), copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    tensors = load_file(copy / "model.safetensors")
    tensors.pop(next(name for name in tensors if "q_proj" in name))
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="1 of the model's tensors"):
        load(str(copy))


def test_another_end_of_text_is_another_model(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(embedded_path(), copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    before = identify(copy)
    generation = copy / "generation_config.json"
    generation.write_text(generation.read_text().replace('"eos_token_id": 2', '"eos_token_id": 19'))
    assert identify(copy).config_sha256 != before.config_sha256


class Faulty:
    """A cloud whose program fails in a way that nobody foresaw."""

    def handle(self, route: Route, body: Source) -> CloudReply:  # noqa: ARG002
        raise RuntimeError("canary")


def test_an_unforeseen_fault_is_logged_as_failed_and_not_as_interrupted(
    home: Home, engine: Engine, tmp_path: Path
) -> None:
    cloud_for(home, engine, tmp_path)
    with (
        Session.open("sealed-prefill", home=home, engine=engine, transport=MemoryTransport(Faulty())) as session,
        pytest.raises(RuntimeError),
    ):
        session.run(PROMPT)
    outcome = list(read_records(home.audit))[-1]
    assert (outcome["status"], outcome["code"]) == ("failed", "internal")


def test_a_reply_that_nobody_reads_is_wiped(
    home: Home, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = cloud_for(home, engine, tmp_path)
    wiped: list[object] = []

    def wipe(packed: FixedPacked) -> None:
        wiped.append(packed)

    monkeypatch.setattr(FixedPacked, "wipe", wipe)
    monkeypatch.setattr("splitinfer.resume.BACKOFF_SECONDS", 0.0)

    class ClosedUnread:
        def handle(self, route: Route, body: Source) -> CloudReply:
            reply = cloud.handle(route, body)
            if route in {Route.PREFILL, Route.RESUME}:
                reply.body.close()  # type: ignore[attr-defined]
                raise TransportError("nobody reads this")
            return reply

    transport = MemoryTransport(ClosedUnread())
    with (
        Session.open("sealed-prefill", home=home, engine=engine, transport=transport) as session,
        pytest.raises(TransportError),
    ):
        session.run(PROMPT)
    assert not wiped, "it could go on until its transfer expires"
    cloud.close()
    assert len(wiped) == 1


def test_a_lone_surrogate_is_refused_without_quoting_the_text() -> None:
    with pytest.raises(PromptError) as caught:
        question("canary \ud800")
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_text_leaves_none_of_it_in_the_exception(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_bytes(b"canary caf\xe9")
    with pytest.raises(PromptError) as caught:
        note(path=path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


class Early:
    """Hands on the replies of another transport as if they had come before the whole body was sent."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        reply = self._transport.exchange(transfer)
        if transfer.route is not Route.KEYSET:
            type(reply).is_early = property(lambda _: True)  # type: ignore[assignment, method-assign]
        return reply


def test_a_reply_before_the_whole_request_is_no_answer(
    home: Home, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Early(MemoryTransport(cloud_for(home, engine, tmp_path)))
    monkeypatch.setattr(memory._MemoryReply, "is_early", memory._MemoryReply.is_early)
    with (
        Session.open("sealed-prefill", home=home, engine=engine, transport=transport) as session,
        pytest.raises(TransportError, match="before it had the whole request"),
    ):
        session.run(PROMPT)
    assert list(read_records(home.audit))[-1]["status"] == "unreceipted"
