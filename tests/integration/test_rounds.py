"""`homomorphic` and `masked` end to end: tokens of `local`, a whole log, what leaks, what a bad cloud can do."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitinfer.answer import Answer
from splitinfer.cloud.halves import make_halves
from splitinfer.egress.verification import verify
from splitinfer.errors import (
    AuthenticationError,
    CryptoParameterError,
    MasksExhaustedError,
    PromptTooLongError,
    RecipientMismatchError,
    ReplayError,
    SplitInferError,
    StateError,
    TransportError,
    UnsupportedModelError,
    UsageError,
)
from splitinfer.handoff import Segment
from splitinfer.home import Home
from splitinfer.home.mask_marks import MarkFiles
from splitinfer.joint.offline import prepare_pool
from splitinfer.masking.pool import MaskPool
from splitinfer.model.engine import Engine
from splitinfer.model.layerwise import LayerwiseModel
from splitinfer.model.loading import load
from splitinfer.rounds import Operation, Record
from splitinfer.segments import note, public, question
from splitinfer.session import Session
from tests.integration.conftest import CommandLine
from tests.support import tiny_models
from tests.support.http_exchange import served
from tests.support.memory_clouds import Paired, policy_of
from tests.support.processes import CloudProcess, run_cli
from tests.support.rounds import MASKED, Change, RoundsCloud, homomorphic
from tests.support.secret_keys import planted, secret_keys
from trust_models.policy import Policy

PROMPT = [public("Price list: lamp 5."), note("Ticket of Ida"), question("Who?")]
POOL_BYTES = 1 << 24


def masks(pair: Paired, engine: Engine, tokens: int = 32) -> MaskPool:
    return prepare_pool(pair.device, engine, tokens=tokens, max_bytes=POOL_BYTES)[0]


def ready(pair: Paired, engine: Engine, policy: Policy) -> Policy:
    """Prepare what the policy needs."""
    if policy.mode.value == "masked":
        masks(pair, engine)
    return policy


EVERY_POLICY = [homomorphic(), homomorphic(public="plaintext"), homomorphic(profile="accurate"), MASKED]
BOTH = [homomorphic(), MASKED]


def named(policy: Policy) -> str:
    rules = policy.homomorphic
    return f"{policy.mode}-{rules.profile}-{rules.public}"


def session_call(record: dict[str, object]) -> dict[str, object]:
    (call,) = [call for call in record["calls"] if call["route"] == "POST /v1/session"]
    return call


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=named)
def test_tokens_are_those_of_local(pair: Paired, tiny: Engine, tiny_on_cloud: Engine, policy: Policy) -> None:
    cloud = RoundsCloud(pair, tiny_on_cloud)
    expected = pair.run("local", PROMPT, tiny, max_new_tokens=4)
    answer = pair.run(ready(pair, tiny, policy), PROMPT, tiny, cloud.service(), max_new_tokens=4)
    assert answer.token_ids == expected.token_ids
    assert (answer.mode, answer.decoded_on, answer.exact) == (policy.mode.value, "device", False)
    assert [half.closed > 0 for half in cloud.halves] == [True]


def test_linear_layers_at_the_cloud_give_the_tokens_of_local(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    """The weights go to a process of the cloud's own; the prompt is computed there too, one token at a time."""
    halves = make_halves(tiny_on_cloud, marks=MarkFiles(pair.cloud), processes=1)
    policy, prompt = homomorphic(linear="cloud"), [question("Hi")]
    expected = pair.run("local", prompt, tiny, max_new_tokens=2)
    light = Engine(load(str(tiny.directory), matrices=False))
    answer = pair.run(policy, prompt, light, pair.service(tiny_on_cloud, halves=halves), max_new_tokens=2)
    assert answer.token_ids == expected.token_ids
    assert light.prefilled_tokens == 0, "the device's own model computed nothing"


@pytest.mark.parametrize(
    ("policy", "is_light"),
    [(homomorphic(linear="cloud"), True), (homomorphic(), False)],
    ids=["linear layers at the cloud", "linear layers here"],
)
def test_a_session_loads_embeddings_and_norms_alone_where_the_cloud_applies_the_matrices(
    pair: Paired, tiny_directory: Path, policy: Policy, is_light: bool
) -> None:
    sourced = policy.model_copy(update={"model": policy.model.model_copy(update={"source": str(tiny_directory)})})
    with Session.open(sourced, home=pair.device, transport=object()) as session:
        loaded = set(session._device.engine.loaded_names)
    layers = {
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    outer = {"model.embed_tokens.weight", "model.norm.weight", *layers}
    assert loaded == outer if is_light else loaded > outer


def test_a_prompt_above_the_policys_bound_is_refused_before_anything_leaves(pair: Paired, tiny: Engine) -> None:
    with pytest.raises(PromptTooLongError, match="max_prompt_tokens is 8"):
        pair.run(homomorphic(linear="cloud", max_prompt_tokens=8), PROMPT, tiny, object())
    assert pair.records() == []


def test_other_architectures_are_refused_by_name(pair: Paired, tmp_path: Path) -> None:
    engine = Engine(load(str(tiny_models.build(tmp_path / "gpt2", "gpt2"))))
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        pair.run(homomorphic(), PROMPT, engine, object())


def test_a_cloud_that_offers_no_halves_refuses_sealed(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    with pytest.raises(UsageError, match="refused the transfer: usage"):
        pair.run(homomorphic(), PROMPT, tiny, pair.service(tiny_on_cloud))
    assert (pair.last["status"], pair.last["code"]) == ("refused", "usage")


def test_a_recipient_without_the_capability_is_refused(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitinfer.carrier._VERBS", {"rounds": "rounds"})
    monkeypatch.setattr("splitinfer.attestation.keyset.CAPABILITIES", ("decode", "prefill"))
    with pytest.raises(RecipientMismatchError, match="does not allow it to rounds"):
        pair.run(homomorphic(), PROMPT, tiny, RoundsCloud(pair, tiny_on_cloud).service())


# --- the log and what leaks -------------------------------------------------------------------------------------


def test_a_short_private_rest_behind_a_public_prefix_makes_no_tile(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    cloud = RoundsCloud(pair, tiny_on_cloud)
    pair.run(homomorphic(public="plaintext"), PROMPT, tiny, cloud.service(), max_new_tokens=2)
    made = [record.operation for record in cloud.last.requests]
    assert (made.count(Operation.PUBLIC_TILE), made.count(Operation.TILE)) == (2, 0)
    intent, _ = pair.records()
    assert intent["tokens_bucket"] == cloud.last.half._session.plan.tile_tokens


@pytest.mark.parametrize("policy", BOTH, ids=named)
def test_the_log_has_one_call_for_the_whole_session(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, policy: Policy
) -> None:
    cloud = RoundsCloud(pair, tiny_on_cloud)
    answer = pair.run(ready(pair, tiny, policy), PROMPT, tiny, cloud.service(), max_new_tokens=3)
    intent, outcome = pair.records()
    assert (intent["type"], intent["mode"], intent["protection"]) == ("intent", policy.mode.value, policy.mode.value)
    assert intent["codec"] == {"homomorphic": "ckks-balanced", "masked": "z2-48"}[policy.mode.value]
    assert outcome["status"] == "completed"
    assert [call["route"] for call in outcome["calls"]] == ["GET /v1/keyset", "POST /v1/session"]
    call = session_call(outcome)
    assert call["bytes_sent"] == answer.egress.bytes_sent <= intent["bytes_up_bound"]
    assert answer.receipt.body.ciphertext_root == call["sent_root"]
    assert call["received_root"] != call["sent_root"]
    assert [event.event for event in answer.receipt.body.events] == ["opened", "received", "erased"]
    assert len(cloud.last.requests) > 3, "the rounds are many, their record in the log is one"
    assert verify(pair.device.audit, pair.device.key("checkpoint").public_key()).size == 2


def test_the_cloud_learns_no_token_count_of_the_prompt_beyond_tiles(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    """Two prompts of as many tiles make the same records; random bytes compress unequally, seldom by two hundredths."""
    seen = []
    for text in ("Ida", "Ida and Bob and Eve"):
        cloud = RoundsCloud(pair, tiny_on_cloud)
        pair.run(homomorphic(), [note(text), question("Who?")], tiny, cloud.service(), max_new_tokens=2)
        seen.append([(record.name, record.size_bytes) for record in cloud.last.requests])
    assert [name for name, _ in seen[0]] == [name for name, _ in seen[1]]
    assert all(abs(one - other) <= 0.05 * one for (_, one), (_, other) in zip(*seen, strict=True))
    first, second = [record for record in pair.records() if record["type"] == "intent"]
    assert first["tokens_bucket"] == second["tokens_bucket"]


def test_a_longer_answer_makes_more_rounds_and_nothing_else(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    counts = []
    for tokens in (2, 4):
        cloud = RoundsCloud(pair, tiny_on_cloud)
        pair.run(homomorphic(), PROMPT, tiny, cloud.service(), max_new_tokens=tokens)
        counts.append(sum(record.operation is Operation.SCORES for record in cloud.last.requests))
    assert counts == [2 * 2, 4 * 2]


def test_nothing_that_the_cloud_received_loads_as_a_secret_key(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    cloud = RoundsCloud(pair, tiny_on_cloud)
    pair.run(homomorphic(), PROMPT, tiny, cloud.service(), max_new_tokens=2)
    received = cloud.last.received()
    assert len(received) > 20
    assert secret_keys(received) == []
    assert secret_keys([*received[:3], planted()]) == [3]


def test_every_session_has_keys_of_its_own(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    cloud = RoundsCloud(pair, tiny_on_cloud)
    service = cloud.service()
    for _ in range(2):
        pair.run(homomorphic(), PROMPT, tiny, service, max_new_tokens=1)
    first, second = (half.requests[0].blobs[1] for half in cloud.halves)
    assert first != second


# --- a cloud that does not follow the protocol --------------------------------------------------------------------


def swapped_layer(_half: object, reply: Record) -> Record:
    """Return the reply of another layer."""
    if reply.operation is Operation.OPEN or reply.layer:
        return reply
    return Record(reply.step, reply.layer + 1, reply.operation, reply.blobs)


def repeated(half: object, reply: Record) -> Record:
    """Return the first computed reply for ever."""
    computed = [one for one in half.replies if one.operation in (Operation.SCORES, Operation.QKV)]
    return computed[0] if computed else reply


def dying(half: object, reply: Record) -> Record:
    """Die after a few records."""
    if len(half.replies) > 6:
        raise StateError("gone")
    return reply


def ran(pair: Paired, policy: Policy, engine: Engine, cloud: RoundsCloud) -> tuple[SplitInferError, list[str]]:
    """Run until the error; return it and the text that was given out before."""
    pieces: list[str] = []
    with pair.session(policy, engine, cloud.service()) as session:
        stream = session.stream(PROMPT, max_new_tokens=8)
        with pytest.raises(SplitInferError) as raised:
            pieces.extend(stream)
        with pytest.raises(UsageError):
            _ = stream.answer
    return raised.value, pieces


@pytest.mark.parametrize("policy", BOTH, ids=named)
def test_activations_that_are_not_numbers_end_the_session_as_any_other(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second token on the model overflows: nothing of that step leaves, and its token is not shown."""
    step, steps = LayerwiseModel.step, []

    def overflowing(self: LayerwiseModel, token_id: int, position: int, **callables: object) -> object:
        steps.append(position)
        broken = self if len(steps) < 2 else replace(self, embedding=np.full_like(self.embedding, np.nan))
        return step(broken, token_id, position, **callables)

    monkeypatch.setattr(LayerwiseModel, "step", overflowing)
    cloud = RoundsCloud(pair, tiny_on_cloud)
    raised, pieces = ran(pair, ready(pair, tiny, policy), tiny, cloud)
    assert type(raised) is CryptoParameterError
    assert (pair.last["status"], pair.last["code"]) == ("failed", "crypto_parameters")
    asked = [record for record in cloud.last.requests if record.operation in (Operation.SCORES, Operation.QKV)]
    assert (len(steps), len(asked)) == (2, 2), "one request a layer, of the first step alone"
    expected = pair.run("local", PROMPT, tiny, max_new_tokens=1)
    assert "".join(pieces) in ("", expected.text)
    assert cloud.last.closed > 0


@pytest.mark.parametrize("policy", BOTH, ids=named)
@pytest.mark.parametrize(
    "fault",
    [(swapped_layer, ReplayError), (repeated, ReplayError), (dying, TransportError)],
    ids=["another layer's reply", "a repeated reply", "dies in the middle"],
)
def test_a_cloud_that_breaks_the_protocol_ends_the_session(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, policy: Policy, fault: tuple[Change, type[SplitInferError]]
) -> None:
    change, error = fault
    cloud = RoundsCloud(pair, tiny_on_cloud, change=change)
    raised, _ = ran(pair, ready(pair, tiny, policy), tiny, cloud)
    assert type(raised) is error
    assert (pair.last["status"], pair.last["code"]) == ("failed", error.code)
    assert cloud.last.closed > 0


def test_a_failed_session_ends_for_the_cloud_as_an_ordinary_one(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    """The last thing that the cloud sees is the same record, and no request follows the reply that failed."""
    honest, lying = RoundsCloud(pair, tiny_on_cloud), RoundsCloud(pair, tiny_on_cloud, change=swapped_layer)
    answer = pair.run(homomorphic(), PROMPT, tiny, honest.service(), max_new_tokens=1)
    assert answer.receipt.event_count("erased") == 1
    ran(pair, homomorphic(), tiny, lying)
    assert lying.last.requests[-1].operation is Operation.TILE
    # The half is closed by the last record, by the end of the reply, and by the end of the connection.
    assert lying.last.closed == honest.last.closed > 1


def test_a_wrong_product_is_caught_and_its_pool_destroyed(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    def changed(half: object, reply: Record) -> Record:
        if len(half.replies) < 12:
            return reply
        data = bytearray(reply.blobs[0])
        data[5] ^= 0x80
        return reply.reply((bytes(data),))

    pool = masks(pair, tiny)
    raised, _ = ran(pair, MASKED, tiny, RoundsCloud(pair, tiny_on_cloud, change=changed))
    assert type(raised) is AuthenticationError
    with pytest.raises(MasksExhaustedError, match="discarded after a wrong result"):
        _ = pool.used
    with pytest.raises(StateError, match="masks prepare"):
        pair.run(MASKED, PROMPT, tiny, RoundsCloud(pair, tiny_on_cloud).service())


def test_a_lost_cloud_before_the_first_token_lets_the_device_take_over_where_the_policy_says_so(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    policy = policy_of("homomorphic", on_remote_failure="local")
    cloud = RoundsCloud(pair, tiny_on_cloud, change=dying)
    answer = pair.run(policy, PROMPT, tiny, cloud.service(), max_new_tokens=3)
    assert (answer.is_fallback, answer.mode) == (True, "local")
    assert [record["type"] for record in pair.records()] == ["intent", "outcome", "local"]


# --- masks ----------------------------------------------------------------------------------------------------------


def test_a_run_without_a_pool_says_what_to_do(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    with pytest.raises(StateError, match="run `splitinfer masks prepare`"):
        pair.run(MASKED, PROMPT, tiny, RoundsCloud(pair, tiny_on_cloud).service())
    assert pair.records() == []


def test_masks_that_run_out_stop_the_answer_and_nothing_is_lost(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    pool, cloud = masks(pair, tiny, tokens=3), RoundsCloud(pair, tiny_on_cloud)
    raised, pieces = ran(pair, MASKED, tiny, cloud)
    assert type(raised) is MasksExhaustedError
    assert "masks prepare" in str(raised)
    assert (pool.used, pool.left, pair.last["code"]) == (3, 0, "masks_exhausted")
    expected = pair.run("local", PROMPT, tiny, max_new_tokens=8)
    assert expected.text.startswith("".join(pieces))
    masks(pair, tiny, tokens=16)
    again = pair.run(MASKED, PROMPT, tiny, cloud.service(), max_new_tokens=8)
    assert again.token_ids == expected.token_ids


def test_no_mask_is_used_twice(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    masks(pair, tiny)
    cloud = RoundsCloud(pair, tiny_on_cloud)
    for _ in range(2):
        pair.run(MASKED, PROMPT, tiny, cloud.service(), max_new_tokens=3)
    used = [
        (record.name[1:], record.blobs[0])
        for half in cloud.halves
        for record in half.requests
        if record.operation is not Operation.OPEN
    ]
    assert len(used) == len(set(used)) > 10


def test_a_state_folder_that_was_put_back_is_refused(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    masks(pair, tiny)
    copy = pair.device.path.with_name("copy")
    shutil.copytree(pair.device.path / "masks", copy)
    cloud = RoundsCloud(pair, tiny_on_cloud)
    pair.run(MASKED, PROMPT, tiny, cloud.service(), max_new_tokens=2)
    shutil.rmtree(pair.device.path / "masks")
    shutil.copytree(copy, pair.device.path / "masks")
    with pytest.raises(MasksExhaustedError, match="copy or was put back"):
        pair.run(MASKED, PROMPT, tiny, cloud.service(), max_new_tokens=2)


def test_a_machine_that_was_put_back_whole_is_found_by_an_honest_cloud(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    masks(pair, tiny)
    anchors = Path(os.environ["SPLITINFER_ANCHORS"])
    folders = {pair.device.path / "masks": pair.device.path.with_name("kept"), anchors: anchors.with_name("kept-too")}
    for folder, kept in folders.items():
        shutil.copytree(folder, kept)
    cloud = RoundsCloud(pair, tiny_on_cloud)
    pair.run(MASKED, PROMPT, tiny, cloud.service(), max_new_tokens=2)
    for folder, kept in folders.items():
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        shutil.rmtree(kept)
    with pytest.raises(MasksExhaustedError, match="the cloud saw more masks"):
        pair.run(MASKED, PROMPT, tiny, cloud.service(), max_new_tokens=2)


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked() -> list[Segment]:
    return [note("Maria Lopez\nPhone: 415-203-7786"), question("What is the phone number of Maria Lopez?")]


@pytest.mark.parametrize("policy", [homomorphic(), homomorphic(public="plaintext")], ids=named)
def test_a_real_cloud_gives_the_tokens_of_local(
    device: Home, engine: Engine, asked: list[Segment], policy: Policy
) -> None:
    answers: list[Answer] = []
    for one in (policy_of("local"), policy):
        with Session.open(one, home=device, engine=engine) as session:
            answers.append(session.run([public("Karimo router: $215.00"), *asked], max_new_tokens=3))
    local, remote = answers
    assert remote.token_ids == local.token_ids
    assert remote.receipt.event_count("erased") == 1


def test_a_cloud_that_dies_behind_its_door_is_a_lost_connection(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    """The half fails, the server closes the reply without its last chunk, and says nothing of why."""
    cloud = RoundsCloud(pair, tiny_on_cloud, change=dying)
    with served(cloud.service()) as door:
        pair.point_at(door.url)
        with (
            Session.open(homomorphic(), home=pair.device, engine=tiny) as session,
            pytest.raises(TransportError, match="the connection to the cloud was lost"),
        ):
            session.run(PROMPT, max_new_tokens=8)
    assert (pair.last["status"], pair.last["code"]) == ("failed", "transport")
    assert "gone" not in door.log.getvalue(), "nor does the door's log repeat what failed"


def test_masked_from_the_command_line(cloud: CloudProcess, device: Home, engine: Engine) -> None:
    prepare_pool(device, engine, tokens=20, max_bytes=POOL_BYTES)
    arguments = ("--private-text", "Who?", "--max-new-tokens", "2", "--json")
    texts: list[dict[str, object]] = []
    for mode in ("local", "masked"):
        ran = run_cli("run", "--policy", mode, *arguments, home=device.path)
        assert ran.returncode == 0, ran.stderr
        texts.append(json.loads(ran.stdout))
    assert texts[1]["token_ids"] == texts[0]["token_ids"]
    assert "Who?" not in cloud.log.read_text()


def test_masks_are_prepared_and_counted_from_the_command_line(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[int] = []
    monkeypatch.setattr("splitinfer.cli.masks.os.nice", lowered.append)
    first = json.loads(command("masks", "prepare", "--tokens", 5, "--json").out)
    assert (first["made"], first["left"], lowered) == (5, 5, [10])
    assert json.loads(command("masks", "prepare", "--tokens", 7, "--json").out)["made"] == 2
    assert json.loads(command("masks", "show", "--json").out)["prepared"] == 7
    assert command("masks", "prepare", "--policy", "local").is_refusal("usage", 2, "uses no masks")
    small = tmp_path / "small.toml"
    small.write_text('mode = "masked"\n[remote]\nname = "default"\n[masked]\nmax_bytes = 1048576\n')
    assert command("masks", "prepare", "--policy", small, "--tokens", 10**6).is_refusal("state", 2, "above the limit")
