"""Rules of every codec between a device and a cloud in one process: exact ones change nothing, lossy ones say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from splitinfer import Session, note, question
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec import CODECS, UNCALIBRATED
from splitinfer.errors import CodecError, PolicyError, SplitInferError
from splitinfer.home import Home
from splitinfer.home.losses import LossFile
from splitinfer.model import start_prefill
from splitinfer.model.engine import Engine
from splitinfer.transport.memory import MemoryTransport
from tests.support.engines import engine_of
from tests.support.memory_clouds import Paired, policy_of
from trust_models.codecs import Loss

PROMPT = [note("Customer: Maria Lopez, phone 415-203-7786, order ORD-90417, product Karimo router"), question("Who?")]
MODES = ("sealed-prefill", "sealed-decode")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of("gemma3_text")


@pytest.fixture(scope="module")
def local_ids(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    with Session.open("local", home=Home(tmp_path_factory.mktemp("local") / "h"), engine=engine) as session:
        return session.run(PROMPT, max_new_tokens=6).token_ids


def policy(mode: str, **transfer: object) -> Any:
    if transfer["codec"] == "q4":
        transfer.setdefault("allow_q4_small_models", True)
    return policy_of(mode, transfer=transfer)


def opened(pair: Paired, engine: Engine, rules: Any) -> Session:
    return Session.open(rules, home=pair.device, engine=engine, transport=MemoryTransport(pair.service(engine)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", list(UNCALIBRATED))
def test_a_run_in_every_codec(name: str, mode: str, engine: Engine, local_ids: tuple[int, ...], tmp_path: Path) -> None:
    with opened(Paired.at(tmp_path), engine, policy(mode, codec=name)) as session:
        answer = session.run(PROMPT, max_new_tokens=6)
    assert len(answer.token_ids) == len(local_ids)
    assert answer.exact is CODECS[name].is_exact
    if answer.exact:
        assert answer.token_ids == local_ids


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_refused_by_a_lossy_codec_before_anything_of_it_is_sent(
    mode: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = start_prefill.take

    def broken(*args: Any, **options: Any) -> CacheSnapshot:
        snapshot = real(*args, **options)
        with torch.inference_mode():
            snapshot.layers[0]["keys"][0, 0, 0, 0] = torch.nan
        return snapshot

    monkeypatch.setattr(start_prefill, "take", broken)
    with opened(Paired.at(tmp_path), engine, policy(mode, codec="q8")) as session, pytest.raises(CodecError):
        session.run(PROMPT, max_new_tokens=6)


@pytest.mark.parametrize(
    ("transfer", "sentence"),
    [
        ({"codec": "q4", "allow_q4_small_models": False}, "below one billion"),
        ({"codec": "q8", "max_kl": 1.0}, "measure"),
    ],
)
def test_a_codec_that_the_policy_excludes_for_the_model_is_refused_when_a_session_is_opened(
    transfer: dict[str, object], sentence: str, engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(PolicyError, match=sentence):
        opened(Paired.at(tmp_path), engine, policy("sealed-decode", **transfer))


def test_a_measured_loss_below_the_floor_opens_a_session(engine: Engine, tmp_path: Path) -> None:
    pair = Paired.at(tmp_path)
    LossFile(pair.device).put(engine.identity.weights_sha256, "q8", Loss(1e-4, 1e-5, 1.0, 1.0, 64))
    opened(pair, engine, policy("sealed-decode", codec="q8", max_kl=1e-3)).close()
    with pytest.raises(SplitInferError, match="max_kl is 1e-05"):
        opened(pair, engine, policy("sealed-decode", codec="q8", max_kl=1e-5))
