"""What each seat sees is what the mode exposes: no more, and the attacks then say what that is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from splitinfer import schedule
from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.observed import CapturedCache
from splitinfer.evaluation.attacks.prefixes import rows_of
from splitinfer.evaluation.capture import Exposure, Seat, Stage, private_positions
from splitinfer.evaluation.evaluate import evaluate
from splitinfer.evaluation.playbook import ATTACKS, Attacker, require_attacks
from splitinfer.evaluation.prompts import make_prompts
from splitinfer.evaluation.seats import Handed
from splitinfer.evaluation.settings import Settings
from splitinfer.handoff import SamplingParams
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel, load
from tests.support import tiny_models
from tests.support.memory_clouds import policy_of

PARAMS = SamplingParams(max_new_tokens=4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory: Path = tmp_path_factory.mktemp("evaluated") / "llama"
    return load(str(tiny_models.build(directory)))


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Engine:
    return Engine(loaded)


def test_local_exposes_nothing(engine: Engine) -> None:
    with Stage.open(policy_of("local"), engine) as stage:
        captured = stage.run(make_prompts(1, seed=0, document_rows=1)[0], params=PARAMS)
    network, recipient = (captured.exposures[seat] for seat in (Seat.NETWORK, Seat.RECIPIENT))
    assert network.transcript is not None
    assert network.transcript.messages == ()
    assert (recipient.in_clear, recipient.cache) == ({}, None)


def test_public_prefix_exposes_the_public_tokens_and_no_private_one(engine: Engine) -> None:
    with Stage.open(policy_of("public-prefix"), engine) as stage:
        captured = stage.run(make_prompts(1, seed=0, document_rows=1)[0], params=PARAMS)
    seen = captured.exposures[Seat.RECIPIENT].in_clear
    assert set(seen) == set(range(captured.tokens.leading_public_tokens))
    assert all(captured.tokens.token_ids[place] == token for place, token in seen.items())
    assert captured.exposures[Seat.RECIPIENT].cache is None


def test_sealed_decode_exposes_the_cache_and_the_last_token_to_the_recipient(engine: Engine) -> None:
    with Stage.open(policy_of("sealed-decode"), engine) as stage:
        captured = stage.run(make_prompts(1, seed=0, document_rows=1)[0], params=PARAMS)
    exposure, ids = captured.exposures[Seat.RECIPIENT], captured.tokens.token_ids
    assert exposure.cache is not None
    assert exposure.cache.tokens == len(ids) - 1
    assert exposure.in_clear == {len(ids) - 1: ids[-1]}
    exact = engine.prefill(ids, steps=[(0, len(ids) - 1)])
    slab = exposure.cache.find(1, "keys")
    assert slab is not None
    torch.testing.assert_close(slab.rows, exact.layers[1]["keys"][0])


def test_a_public_text_that_the_cloud_still_has_is_seen_again(engine: Engine) -> None:
    """The cloud computes nothing of a prefix that it keeps, and is told of it all the same."""
    prompt = make_prompts(1, seed=0, document_rows=1)[0]
    with Stage.open(policy_of("public-prefix"), engine) as stage:
        seen = [stage.run(prompt, params=PARAMS).exposures[Seat.RECIPIENT].in_clear for _ in range(2)]
    assert seen[0] == seen[1]
    assert seen[0]


def test_every_prompt_crosses_whole_whatever_came_before(engine: Engine) -> None:
    """A session that goes on would send what is new alone, and the seat would see too little."""
    prompt = make_prompts(1, seed=0, document_rows=1)[0]
    for mode in ("sealed-prefill", "sealed-decode"):
        policy = policy_of(mode, session={"keep": True})
        with Stage.open(policy, engine) as stage:
            first, second = (stage.run(prompt, params=PARAMS).exposures[Seat.RECIPIENT] for _ in range(2))
        assert first.tokens == second.tokens
        assert first.in_clear == second.in_clear


def test_the_answer_is_seen_by_who_decodes_it(engine: Engine) -> None:
    prompt = make_prompts(1, seed=0, document_rows=1)[0]
    for mode, is_seen in (("sealed-prefill", False), ("sealed-decode", True)):
        with Stage.open(policy_of(mode), engine) as stage:
            run = stage.run(prompt, params=PARAMS)
        assert run.exposures[Seat.RECIPIENT].answered == (run.answer.token_ids if is_seen else ())


def test_chance_is_what_public_text_gives_whatever_the_seat_saw(engine: Engine, loaded: LoadedModel) -> None:
    prompt = make_prompts(1, seed=0, document_rows=1)[0]
    with Stage.open(policy_of("sealed-prefill"), engine) as stage:
        run = stage.run(prompt, params=PARAMS)
    attacker, true = Attacker(loaded), run.tokens.token_ids
    found = [ATTACKS["prior"].run(attacker, run.exposures[seat], len(true)) for seat in Seat]
    assert run.exposures[Seat.RECIPIENT].in_clear
    assert found[0] == found[1]
    assert found[0] is not None
    assert found[0].token_ids[: len(true)] != true


def test_contents_that_no_seat_reads_are_not_reported_as_nothing_leaked() -> None:
    handed = Handed(calls=1)
    handed.keep(b"ciphertext of a kind that is not known here", last_token=None)
    with pytest.raises(UsageError, match="not bytes; what this policy gives away cannot be told"):
        handed.require_complete()


def test_contents_that_are_kept_from_the_seat_by_design_are_counted_as_such() -> None:
    handed = Handed()
    for size in (100, 20):
        handed.keep_count("ciphertexts", size)
    exposure = Exposure(Seat.RECIPIENT, {}, counted_bytes=handed.counted_bytes)
    assert exposure.sentence() == "120 bytes of ciphertexts"


@pytest.mark.parametrize(("mode", "kind"), [("masked", "one-time-masked numbers"), ("homomorphic", "ciphertexts")])
def test_rounds_show_the_cloud_that_they_take_place_and_no_token(engine: Engine, mode: str, kind: str) -> None:
    with Stage.open(policy_of(mode), engine) as stage:
        run = stage.run(make_prompts(1, seed=0, document_rows=1)[0], params=SamplingParams(max_new_tokens=2))
    recipient = run.exposures[Seat.RECIPIENT]
    assert (recipient.in_clear, recipient.cache, recipient.embeddings, recipient.answered) == ({}, None, None, ())
    assert recipient.counted_bytes[f"{kind}, which it cannot read"] > 1000
    assert f"bytes of {kind}, which it cannot read" in recipient.sentence()
    assert "bytes of public keys and parameters" in recipient.sentence()
    assert "parameters, which" not in recipient.sentence()
    network = run.exposures[Seat.NETWORK].transcript
    assert network is not None
    assert network.bytes("up") == run.cost.bytes_up
    assert network.bytes("down") == run.cost.bytes_down


def test_a_bound_on_a_codecs_cost_does_not_keep_a_policy_from_being_evaluated(engine: Engine) -> None:
    """What the codec costs is what the evaluation measures."""
    policy = policy_of("sealed-decode", transfer={"codec": "q8", "max_kl": 0.001})
    with Stage.open(policy, engine) as stage:
        run = stage.run(make_prompts(1, seed=0, document_rows=1)[0], params=PARAMS)
    assert run.exposures[Seat.RECIPIENT].cache is not None


def test_the_network_sees_a_class_of_sizes_and_no_content(engine: Engine) -> None:
    """Two prompts of one bucket that differ in the personal value alone have the same sizes."""
    prompt = make_prompts(1, seed=0, document_rows=1)[0]
    other = prompt.with_secret("".join("7" if letter.isdigit() else letter for letter in prompt.secret))
    with Stage.open(policy_of("sealed-decode"), engine) as stage:
        first, second = (stage.run(one, params=PARAMS) for one in (prompt, other))
    assert schedule.pad_tokens(len(first.tokens.token_ids)) == schedule.pad_tokens(len(second.tokens.token_ids))
    seen = [run.exposures[Seat.NETWORK].transcript for run in (first, second)]
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[0].sizes == seen[1].sizes
    assert seen[0].bytes("up") == first.cost.bytes_up
    assert seen[0].bytes("down") == first.cost.bytes_down


def test_private_positions_are_those_of_private_segments(engine: Engine, loaded: LoadedModel) -> None:
    tokens = engine.tokenize(make_prompts(1, seed=0, document_rows=1)[0].segments)
    control = frozenset(loaded.tokenizer.all_special_ids)
    private = private_positions(tokens, control_ids=control)
    assert min(private) >= tokens.leading_public_tokens
    assert not {tokens.token_ids[place] for place in private} & control


def test_an_evaluation_sets_leakage_utility_and_cost_side_by_side(loaded: LoadedModel) -> None:
    settings = Settings(
        attacks=("read", "dictionary"),
        prompts=1,
        max_new_tokens=2,
        lookalikes=5,
        seats=(Seat.NETWORK, Seat.RECIPIENT),
        tenant_texts=2,
        tenant_tokens=8,
        active_attempts=1,
    )
    done: list[tuple[int, int]] = []
    policies = [(mode, policy_of(mode)) for mode in ("public-prefix", "sealed-prefill", "sealed-decode")]
    report = evaluate(policies, loaded, settings, progress=lambda *step: done.append(step))
    assert done == [(1, 3), (2, 3), (3, 3)]
    public, prefill, decode = report.policies
    assert public.worst("token_recovery") == 0
    assert public.confirmation["recipient"].share == pytest.approx(0.2)
    assert prefill.worst("token_recovery") > 0.9
    assert decode.worst("token_recovery") == 1.0
    assert decode.worst("personal_data") == 1.0
    assert decode.confirmation["recipient"].share == 1.0
    assert decode.confirmation["network"].share == pytest.approx(0.2)
    assert {row.attack for row in decode.attacks if row.seat == "network"} == set()
    assert "a cache of" in decode.seen["recipient"]
    assert "token ids in clear" not in decode.seen["network"]
    assert decode.cost.bytes_up > 0
    assert set(decode.layers) == {0, 1}
    assert all(rate.share == 1.0 for rate in decode.layers.values())
    assert public.layers == {}
    assert public.tenants is not None
    assert prefill.tenants is None
    assert decode.utility.top1_agreement == 1.0
    for figures in (public, prefill, decode):
        assert figures.active is not None
        assert figures.active.accepted.trials >= 8
        assert figures.worst("active") == figures.worst("store") == 0.0


def test_an_evaluation_of_nothing_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="at least one policy"):
        evaluate([], loaded, Settings())


def test_codec_auto_chooses_as_the_product_does_and_the_report_says_what(loaded: LoadedModel) -> None:
    policy = policy_of("sealed-decode", transfer={"codec": "auto", "max_kl": 0.01})
    settings = Settings(
        attacks=("posterior",),
        seats=(Seat.RECIPIENT,),
        prompts=2,
        max_new_tokens=2,
        lookalikes=3,
        layer_prompts=0,
        active_attempts=0,
    )
    (figures,) = evaluate([("p", policy)], loaded, settings).policies
    assert figures.codec == "auto"
    # Nothing was measured of another codec on this device, so that its cost might be above the policy's bound.
    assert figures.chosen == {"raw": 2}
    assert figures.to_json()["codec_chosen"] == {"raw": 2}
    assert figures.worst("token_recovery") > 0.9


def test_an_unknown_attack_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="telepathy"):
        require_attacks("dictionary,telepathy")


def test_noise_is_undone_from_the_cache_as_well_as_from_the_embeddings(loaded: LoadedModel) -> None:
    """The placement of the noise changes what travels, not what an attacker can do with it."""
    attacker = Attacker(loaded)
    ids, sigma = [9, 40, 77, 120, 33, 201], 0.004
    noised = attacker.table[ids] + sigma * torch.randn(6, attacker.table.shape[1], generator=seeded())
    cache = CapturedCache.of_rows(rows_of(loaded.model, noised, last_layer=1))
    of_cache = Exposure(Seat.RECIPIENT, {}, cache=cache, tokens=6, noise_sigma=sigma)
    of_embeddings = Exposure(Seat.RECIPIENT, {}, embeddings=noised, tokens=6, noise_sigma=sigma)
    for name in ("denoise", "nearest"):
        found = [ATTACKS[name].run(attacker, exposure, 6) for exposure in (of_cache, of_embeddings)]
        assert found[0] is not None
        assert found[1] is not None
        assert found[0].token_ids == found[1].token_ids == tuple(ids)
    assert ATTACKS["posterior"].run(attacker, of_cache, 6) is None


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(8)
