"""The exact modes against a real cloud process: identical ids, true byte counts and receipts, streaming, limits."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from splitinfer.answer import Answer
from splitinfer.egress.verification import read_records, verify
from splitinfer.errors import SplitInferError, UsageError, VerificationError
from splitinfer.handoff import Segment
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.segments import note, public, question
from splitinfer.session import Session
from tests.integration.conftest import CANARY, CommandLine
from tests.support.memory_clouds import ALL_MODES, EXACT_MODES, EXACT_REMOTE_MODES, LyingEngine, Paired, policy_of
from tests.support.processes import CloudProcess, run_cli
from tools.corpus import held_out_prompts
from trust_models.modes import MODES, TrustMode

SEEDED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
UNICODE = [
    public("Preisliste: Öfen 12 €, 水壶 7 元, مصباح 5"),
    note(f"Kundin: Zoë Ångström 👩🏽‍🚀, {CANARY}"),
    question("Wie heißt die Kundin — 誰?"),
]


class Modes:
    """A session a mode on one engine and one device."""

    def __init__(self, device: Home, engine: Engine) -> None:
        self.sessions = {
            mode: Session.open(policy_of(mode), home=device, engine=engine, remember=False) for mode in EXACT_MODES
        }

    def run(self, segments: list[Segment], **sampling: object) -> dict[str, Answer]:
        return {mode: session.run(segments, **sampling) for mode, session in self.sessions.items()}


@pytest.fixture(scope="module")
def modes(device: Home, engine: Engine):
    opened = Modes(device, engine)
    yield opened
    for session in opened.sessions.values():
        session.close()


@pytest.fixture(scope="module")
def greedy(modes: Modes) -> list[tuple[str, dict[str, Answer]]]:
    return [(expected, modes.run(segments, max_new_tokens=40)) for segments, expected in held_out_prompts(4, 11)]


def require_identical(answers: dict[str, Answer]) -> None:
    local = answers["local"]
    for mode in EXACT_REMOTE_MODES:
        assert answers[mode].token_ids == local.token_ids, mode
        assert answers[mode].text == local.text, mode
        assert answers[mode].finish_reason == local.finish_reason, mode


def test_greedy_ids_are_identical_in_all_modes(greedy: list[tuple[str, dict[str, Answer]]]) -> None:
    for _, answers in greedy:
        require_identical(answers)
    assert any(answers["local"].text.strip() == expected for expected, answers in greedy)


@pytest.mark.parametrize("seed", [0, 1])
def test_seeded_ids_are_identical_in_all_modes(modes: Modes, seed: int) -> None:
    segments, _ = held_out_prompts(2, 12)[seed]
    require_identical(modes.run(segments, max_new_tokens=40, seed=seed, **SEEDED))


def test_seeds_make_different_answers(modes: Modes) -> None:
    segments, _ = held_out_prompts(1, 12)[0]
    hot = {"temperature": 3.0, "max_new_tokens": 12}
    first, again, other = (modes.sessions["local"].run(segments, seed=seed, **hot) for seed in (1, 1, 2))
    assert first.token_ids == again.token_ids != other.token_ids


def test_every_run_is_exact_and_tells_where_it_ran(greedy: list[tuple[str, dict[str, Answer]]]) -> None:
    for _, answers in greedy:
        assert all(answer.exact and not answer.is_fallback for answer in answers.values())
        assert {mode: answer.mode for mode, answer in answers.items()} == {mode: mode for mode in EXACT_MODES}
        assert {mode: answer.decoded_on for mode, answer in answers.items()} == {
            "local": "device",
            "public-prefix": "device",
            "sealed-prefill": "device",
            "sealed-decode": "cloud",
        }


def test_local_moves_nothing_and_remote_modes_move_bytes_both_ways(greedy: list[tuple[str, dict[str, Answer]]]) -> None:
    for _, answers in greedy:
        local = answers["local"]
        assert (local.egress.bytes_sent, local.egress.bytes_received, local.receipt) == (0, 0, None)
        for mode in EXACT_REMOTE_MODES:
            egress = answers[mode].egress
            assert egress.bytes_sent > 1000
            assert egress.bytes_received > 1000
            assert str(egress.calls[0]["route"]) == "GET /v1/keyset"


def test_receipt_states_the_tokens_that_were_asked_for(greedy: list[tuple[str, dict[str, Answer]]]) -> None:
    for _, answers in greedy:
        for mode in EXACT_REMOTE_MODES:
            answer = answers[mode]
            assert answer.receipt is not None
            is_prefill = mode != "sealed-decode"
            assert answer.receipt.event_count("prefilled") == (answer.prefilled_by_cloud_tokens if is_prefill else None)
            assert answer.receipt.event_count("decoded") == (None if is_prefill else len(answer.token_ids))
            # The cloud keeps public text for the device that sent it, and nothing else here.
            ends = {name: answer.receipt.event_count(name) is not None for name in ("kept", "erased")}
            assert ends == {"kept": mode == "public-prefix", "erased": mode != "public-prefix"}
            assert answer.receipt.event_count("refused") is None
        assert answers["public-prefix"].prefilled_by_cloud_tokens == answers["public-prefix"].public_tokens
        assert answers["sealed-prefill"].prefilled_by_cloud_tokens == answers["sealed-prefill"].prompt_tokens - 1
        assert answers["sealed-decode"].prefilled_by_cloud_tokens == 0


def test_log_records_what_the_answer_says(modes: Modes, device: Home, segments: list[Segment]) -> None:
    answer = modes.sessions["sealed-decode"].run(segments, max_new_tokens=3)
    *_, intent, outcome = read_records(device.audit)
    assert (intent["type"], intent["mode"], intent["protection"]) == ("intent", "sealed-decode", "sealed")
    assert outcome["status"] == "completed"
    assert (outcome["bytes_sent"], outcome["bytes_received"]) == (
        answer.egress.bytes_sent,
        answer.egress.bytes_received,
    )
    assert outcome["bytes_sent"] <= intent["bytes_up_bound"]
    assert intent["policy_sha256"] == answer.policy_digest
    report = verify(device.audit, device.key("checkpoint").public_key())
    assert (report.size, report.root.hex(), report.open_intents) == (answer.audit_size, answer.audit_root, 0)


def test_log_and_server_log_hold_no_text(
    modes: Modes, cloud: CloudProcess, device: Home, segments: list[Segment]
) -> None:
    modes.run(segments, max_new_tokens=3)
    files = [path for path in device.path.rglob("*") if path.is_file()] + [cloud.log]
    files += [path for path in cloud.home.rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_stop_string_ends_all_modes_at_the_same_place(
    modes: Modes, greedy: list[tuple[str, dict[str, Answer]]]
) -> None:
    (prompt, _), (_, answers) = held_out_prompts(4, 11)[0], greedy[0]
    text = answers["local"].text
    stop = text.strip()[2:4]
    assert len(stop) == 2
    stopped = modes.run(prompt, max_new_tokens=40, stop=stop)
    require_identical(stopped)
    assert stopped["local"].text == text[: text.index(stop)]
    assert {answer.finish_reason for answer in stopped.values()} == {"stop"}


def test_max_new_tokens_and_end_of_text_end_all_modes(
    modes: Modes, greedy: list[tuple[str, dict[str, Answer]]]
) -> None:
    (prompt, _), (_, answers) = held_out_prompts(4, 11)[0], greedy[0]
    assert {answer.finish_reason for answer in answers.values()} == {"end_of_text"}
    cut = modes.run(prompt, max_new_tokens=1)
    require_identical(cut)
    assert all(len(answer.token_ids) == 1 and answer.finish_reason == "length" for answer in cut.values())


def test_unicode_prompt_is_identical_in_all_modes(modes: Modes) -> None:
    answers = modes.run(UNICODE, max_new_tokens=12)
    require_identical(answers)
    hot = modes.run(UNICODE, max_new_tokens=16, temperature=5.0, seed=3)
    require_identical(hot)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_first_piece_is_there_before_the_last_token_exists(
    mode: str, pair: Paired, tiny: Engine, tiny_on_cloud: Engine
):
    service = pair.service(tiny_on_cloud)
    decoder = tiny_on_cloud if MODES[TrustMode(mode)].decode == "cloud" else tiny
    before, wanted = decoder.decoded_tokens, 40
    sampling = {"max_new_tokens": wanted, "temperature": 2.0, "seed": 1}
    with pair.session(policy_of(mode, sampling=sampling), tiny, service) as session:
        stream = session.stream([public("a lamp"), question("b")], **sampling)
        pieces = iter(stream)
        first = next(pieces)
        assert first
        assert stream.has_begun
        assert decoder.decoded_tokens - before < wanted
        with pytest.raises(UsageError):
            _ = stream.answer
        assert first + "".join(pieces) == stream.answer.text


def test_stream_closed_early_is_logged_as_aborted(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    with pair.session("sealed-decode", tiny, pair.service(tiny_on_cloud)) as session:
        stream = session.stream([question("b")], max_new_tokens=40, temperature=2.0)
        next(iter(stream))
        stream.close()
    assert pair.last["status"] == "aborted"
    assert pair.last["bytes_sent"] > 0


def test_exact_flag_falls_when_the_cloud_computes_otherwise(
    pair: Paired, tiny: Engine, tiny_directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from splitinfer.model.loading import load

    loaded = load(str(tiny_directory))
    other = Engine(replace(loaded, numerics=replace(loaded.numerics, threads=64)))
    answer = pair.run("sealed-prefill", [question("b")], tiny, pair.service(other), max_new_tokens=2)
    assert not answer.exact


@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("layer", [0, 1])
def test_one_changed_row_in_one_layer_is_found_when_all_rows_are_verified(
    part: str, layer: int, pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    prompt = [public("lamp 5, kettle 7"), question("which?")]
    policy = policy_of("public-prefix", verify_rows=64)
    prefix = tiny.tokenize(prompt).leading_public_tokens
    assert prefix <= 64
    liar = pair.service(LyingEngine(tiny_on_cloud, layer=layer, row=prefix // 2, part=part))
    before = tiny.decoded_tokens
    with pytest.raises(VerificationError, match=f"layer {layer}"):
        pair.run(policy, prompt, tiny, liar, max_new_tokens=4)
    assert tiny.decoded_tokens == before
    assert (pair.last["status"], pair.last["code"]) == ("failed", "verification")


def test_changed_row_goes_unseen_where_no_row_is_verified(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    liar = pair.service(LyingEngine(tiny_on_cloud, layer=1, row=5))
    answer = pair.run("public-prefix", [public("lamp 5, kettle 7"), question("which?")], tiny, liar, max_new_tokens=4)
    assert len(answer.token_ids) == 4


def test_late_public_segment_stays_on_the_device_and_the_user_is_told(modes: Modes, segments: list[Segment]) -> None:
    late = [*segments[:2], public("a late public document"), segments[2]]
    answers = modes.run(late, max_new_tokens=4)
    require_identical(answers)
    answer = answers["public-prefix"]
    assert answer.note is not None
    assert answer.prefilled_by_cloud_tokens < answer.public_tokens


def test_json_of_run_has_all_fields(device: Home, cloud: CloudProcess, tmp_path, segments: list[Segment]) -> None:
    price, ticket = tmp_path / "prices.md", tmp_path / "ticket.txt"
    price.write_text(segments[0].text)
    ticket.write_text(segments[1].text)
    ran = run_cli(
        *("run", "--policy", "sealed-decode", "--public", str(price), "--private", str(ticket), "--json"),
        *("--private-text", segments[2].text, "--max-new-tokens", "4"),
        home=device.path,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    printed = json.loads(ran.stdout)
    wanted = "mode text token_ids prompt_tokens public_tokens private_tokens bytes_sent bytes_received ttft_seconds"
    wanted += " tpot_seconds policy_digest exact receipt audit_size audit_root"
    assert set(wanted.split()) <= set(printed)
    assert printed["public_tokens"] + printed["private_tokens"] == printed["prompt_tokens"]
    events = Counter({event["event"]: event["count"] for event in printed["receipt"]["body"]["events"]})
    assert events["decoded"] == len(printed["token_ids"])
    assert printed["mode"] == "sealed-decode"
    assert 0 < printed["ttft_seconds"] < 60


def test_text_of_run_streams_to_stdout_and_egress_goes_to_stderr(
    command: CommandLine, pair: Paired, tmp_path, segments: list[Segment]
) -> None:
    ran = command("run", "--policy", "local", "--private-text", "Who?", "--max-new-tokens", 3, home=pair.device)
    assert ran.code == 0
    assert "left the device: nothing left the device" in ran.err
    assert "TTFT" in ran.err
    assert "TTFT" not in ran.out


def test_deeper_errors_keep_their_kind(pair: Paired, tiny: Engine) -> None:
    with pytest.raises(SplitInferError) as caught:
        pair.run("local", [], tiny)
    assert caught.value.code == "prompt_empty"
