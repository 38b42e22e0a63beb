"""Calibrating tiny models from text, what the artefact says, and a device and a cloud that hold it, or another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from splitinfer import Session, codec, note, public, question
from splitinfer.calibration import Calibration, calibrate
from splitinfer.calibration.artefacts import Held, find_artefact, put_artefact, put_certificate
from splitinfer.calibration.certify import Texts, certify
from splitinfer.calibration.rotations import find_rotations
from splitinfer.calibration.sequences import read_corpus, sequences_of
from splitinfer.codec.transform import Artefact
from splitinfer.egress.verification import read_records
from splitinfer.errors import (
    ArtefactError,
    ArtefactMismatchError,
    PolicyError,
    SplitInferError,
    UnsupportedModelError,
    UsageError,
)
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import prefill
from splitinfer.transport.memory import MemoryTransport
from tests.support.memory_clouds import Paired, policy_of
from tests.support.tiny_models import build

LINES = [
    f"{index}. Customer {index * 7919 % 1000}: phone 415-{index * 31 % 1000:03}, order ORD-{index}"
    for index in range(150)
]
TEXT = "\f".join("\n".join(LINES[index : index + 3]) for index in range(0, 150, 3))
FEW = Calibration(limit_tokens=2500, levels=("ftc1-2", "ftc1-0.5"))
PROMPT = [note("Customer: Maria Lopez, phone 415-203-7786, order ORD-90417, product Karimo router"), question("Who?")]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "public.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(build(tmp_path_factory.mktemp("model"), "gemma3_text")))


@pytest.fixture(scope="module")
def artefacts(made: Artefact, loaded: LoadedModel, corpus_file: Path) -> tuple[Artefact, Artefact]:
    other = Calibration(limit_tokens=1500, levels=("ftc1-2",), is_weighted=False)
    return made, calibrate(loaded, read_corpus([corpus_file]), other)


@pytest.fixture(scope="module")
def made(loaded: LoadedModel, corpus_file: Path) -> Artefact:
    return calibrate(loaded, read_corpus([corpus_file]), FEW)


def test_the_artefact_names_model_corpus_and_layers(made: Artefact, loaded: LoadedModel, corpus_file: Path) -> None:
    made.require_model(loaded.identity)
    assert made.facts.corpus_sha256 == read_corpus([corpus_file]).sha256
    assert [(group.layers, group.rows) for group in made.facts.groups] == [([0], "window"), ([1], "tokens")]
    assert made.facts.weighting == "gradient"


def test_calibrating_again_gives_the_same_artefact(made: Artefact, loaded: LoadedModel, corpus_file: Path) -> None:
    again = calibrate(loaded, read_corpus([corpus_file]), FEW)
    assert again.digest == made.digest


def test_a_cache_of_the_model_comes_back_nearly(made: Artefact, loaded: LoadedModel) -> None:
    ids = loaded.tokenizer.encode(TEXT[2000:], add_special_tokens=False)[:200]
    snapshot = prefill(loaded.model, ids, steps=[(0, 200)])
    moved = codec.move(snapshot, codec="ftc1-2", artefact=made)
    for layer in range(2):
        keys, again = snapshot.layers[layer]["keys"], moved.layers[layer]["keys"]
        assert float((keys - again).square().mean()) < 0.5 * float(keys.var()), "random weights vary in all directions"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_rotations_are_found_and_make_keys_of_one_token_equal(kind: str, tmp_path: Path) -> None:
    model = load(str(build(tmp_path, kind)))
    rotations = find_rotations(model, [0, 1])
    assert {rotation.style for rotation in rotations.values()} == {"half"}
    if kind == "gemma3_text":
        one, other = (rotations[layer].inverse_frequencies for layer in (0, 1))
        assert not torch.equal(one, other), "sliding and full layers turn by their own frequencies"


def test_a_model_whose_keys_differ_by_position_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="turned in a way"):
        find_rotations(load(str(build(tmp_path, "gpt2"))), [0, 1])


def test_form_feeds_end_sequences_and_a_record_separator_ends_the_cache(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\f".join([f"prompt {index} with words\x1eand a question" for index in range(9)]), encoding="utf-8")
    pieces = sequences_of(read_corpus([path]), loaded.tokenizer, max_positions=512, limit_tokens=10**6)
    assert len(pieces) == 9
    assert {loaded.tokenizer.decode(piece.token_ids[piece.context_tokens :]) for piece in pieces} == {"and a question"}


def test_a_corpus_that_is_too_short_or_cannot_be_read_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(UsageError, match="too short"):
        calibrate(loaded, read_corpus([tmp_path / "short.txt"]), FEW)
    with pytest.raises(UsageError, match="cannot be read"):
        read_corpus([tmp_path / "absent.txt"])


# --- between a device and a cloud -----------------------------------------------------------------------------------


PUBLIC = "Prices of routers: Karimo 90, Velto 75"


def opened(pair: Paired, engine: Engine, cloud_artefact: Artefact | None, mode: str, **transfer: object) -> Session:
    cloud = pair.service(engine, artefact=cloud_artefact)
    rules = policy_of(mode, transfer={"codec": "ftc1-2", "allow_uncertified": True, **transfer})
    return Session.open(rules, home=pair.device, engine=engine, transport=MemoryTransport(cloud))


@pytest.mark.parametrize("mode", ["sealed-prefill", "sealed-decode", "public-prefix"])
def test_a_run_between_two_sides_that_hold_the_artefact(
    mode: str, made: Artefact, loaded: LoadedModel, tmp_path: Path
) -> None:
    pair, engine = Paired.at(tmp_path), Engine(loaded)
    put_artefact(made, home=pair.device)
    with opened(pair, engine, made, mode) as session:
        answer = session.run([public(PUBLIC), *PROMPT], max_new_tokens=4)
    assert not answer.exact
    assert len(answer.token_ids) > 0
    intents = [record for record in read_records(pair.device.audit) if record["type"] == "intent"]
    assert all(intent["codec"] == "ftc1-2" for intent in intents)


@pytest.mark.parametrize(("mode", "has_other"), [("sealed-prefill", True), ("sealed-decode", False)])
def test_a_side_that_holds_another_artefact_or_none_refuses(
    mode: str, has_other: bool, artefacts: tuple[Artefact, Artefact], loaded: LoadedModel, tmp_path: Path
) -> None:
    (made, another), pair, engine = artefacts, Paired.at(tmp_path), Engine(loaded)
    put_artefact(made, home=pair.device)
    with opened(pair, engine, another if has_other else None, mode) as session, pytest.raises(ArtefactMismatchError):
        session.run(PROMPT, max_new_tokens=4)


def test_without_an_artefact_a_session_is_refused_when_it_is_opened(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="calibrate"):
        opened(Paired.at(tmp_path), Engine(loaded), None, "sealed-decode")


def test_a_level_without_a_certificate_is_refused_and_one_with_it_is_held_to_the_floor(
    made: Artefact, loaded: LoadedModel, tmp_path: Path
) -> None:
    pair, engine = Paired.at(tmp_path), Engine(loaded)
    put_artefact(made, home=pair.device)
    with pytest.raises(PolicyError, match="certificate"):
        opened(pair, engine, made, "sealed-decode", allow_uncertified=False)
    found = certify(loaded, made, "ftc1-2", Texts((TEXT,), (TEXT[::-1],)), windows_count=2)
    put_certificate({"ftc1-2": found}, made, home=pair.device)
    opened(pair, engine, made, "sealed-decode", allow_uncertified=False, max_kl=10.0).close()
    with pytest.raises(SplitInferError, match="max_kl is 1e-12"):
        opened(pair, engine, made, "sealed-decode", allow_uncertified=False, max_kl=1e-12)
    assert found.long is not None
    assert found.foreign is not None
    assert found.needles.questions == found.digits.questions == 4
    assert 0 <= found.saturation < 0.2


def test_auto_chooses_among_what_is_permitted_and_says_what_it_expected(
    made: Artefact, loaded: LoadedModel, tmp_path: Path
) -> None:
    pair, engine = Paired.at(tmp_path), Engine(loaded)
    put_artefact(made, home=pair.device)
    cloud = pair.service(engine, artefact=made)
    rules = policy_of(
        "sealed-decode", transfer={"codec": "auto", "allow_uncertified": True, "link_mbit_per_second": 0.01}
    )
    with Session.open(rules, home=pair.device, engine=engine, transport=MemoryTransport(cloud)) as session:
        answer = session.run(PROMPT, max_new_tokens=4)
    assert answer.choice is not None
    chosen = json.loads(json.dumps(answer.to_json()))["choice"]
    assert chosen["codec"] == "ftc1-0.5", "the link is slow"
    assert set(chosen["expected"]) == {"raw", "q8", "ftc1-2", "ftc1-0.5"}
    assert not answer.exact


def test_auto_computes_here_where_the_link_is_hopeless(made: Artefact, loaded: LoadedModel, tmp_path: Path) -> None:
    pair, engine = Paired.at(tmp_path), Engine(loaded)
    cloud = pair.service(engine, artefact=made)
    rules = policy_of("sealed-prefill", transfer={"codec": "auto", "link_mbit_per_second": 0.001})
    with Session.open(rules, home=pair.device, engine=engine, transport=MemoryTransport(cloud)) as session:
        answer = session.run(PROMPT, max_new_tokens=4)
    assert answer.choice is not None
    assert answer.choice.is_local
    assert (answer.mode, answer.egress.bytes_sent, answer.exact) == ("local", 0, True)


def test_the_state_folders_artefact_wins_and_another_models_is_not_taken(
    made: Artefact, loaded: LoadedModel, tmp_path: Path
) -> None:
    home = Home(tmp_path / "h")
    assert find_artefact(Held(home, loaded.directory), loaded.identity) is None
    put_artefact(made, home=home, out=loaded.directory / "ftc1.safetensors")
    try:
        found = find_artefact(Held(home, loaded.directory), loaded.identity)
        assert found is not None
        assert found.digest == made.digest
        other = load(str(build(tmp_path / "other", "gemma3_text", seed=1)))
        assert find_artefact(Held(home, loaded.directory), other.identity) is None
    finally:
        (loaded.directory / "ftc1.safetensors").unlink()
