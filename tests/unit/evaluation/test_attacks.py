"""The attacks on tiny random models: every one recovers what it should, and loses where there is nothing to see."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from splitinfer import codec
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.collision import calibrate, collide
from splitinfer.evaluation.attacks.confirmation import cache_score, confirm, transcript_score
from splitinfer.evaluation.attacks.dictionary import LayerZeroDictionary
from splitinfer.evaluation.attacks.embedding_inversion import embedding_table, invert_embeddings
from splitinfer.evaluation.attacks.injection import inject
from splitinfer.evaluation.attacks.inversion import invert
from splitinfer.evaluation.attacks.likelihood import (
    CacheLikelihood,
    EmbeddingLikelihood,
    codec_variances,
    rounding_variances,
)
from splitinfer.evaluation.attacks.observed import CapturedCache
from splitinfer.evaluation.attacks.posterior import Beam, recover
from splitinfer.evaluation.attacks.prefixes import Prefixes
from splitinfer.evaluation.attacks.text_prior import TextPrior
from splitinfer.evaluation.attacks.vocabulary import Matching, match_vocabulary
from splitinfer.evaluation.playbook import NoEvidence
from splitinfer.evaluation.targets.permutation import permute_states
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import prefill
from tests.support import tiny_models

TOKENS = 14


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    base: Path = tmp_path_factory.mktemp("attacked")
    return {kind: load(str(tiny_models.build(base / kind, kind))) for kind in tiny_models.KINDS}


@cache
def ids_of(tokens: int = TOKENS) -> tuple[int, ...]:
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randint(6, 200, (tokens,), generator=draw).tolist())


def snapshot_of(loaded: LoadedModel, tokens: int = TOKENS) -> CacheSnapshot:
    return prefill(loaded.model, ids_of(tokens), steps=[(0, tokens)])


def captured(loaded: LoadedModel, tokens: int = TOKENS) -> CapturedCache:
    return CapturedCache.of(snapshot_of(loaded, tokens))


def share(found: tuple[int, ...], true: tuple[int, ...] | None = None) -> float:
    wanted = true or ids_of()
    return sum(mine == theirs for mine, theirs in zip(found, wanted, strict=False)) / len(wanted)


def by_rows(loaded: LoadedModel, capture: CapturedCache) -> tuple[int, ...]:
    likelihood = CacheLikelihood(capture, rounding_variances(capture))
    return recover(loaded.model, likelihood, tokens=capture.tokens).token_ids


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_candidates_get_the_rows_that_prefill_gives(models: dict[str, LoadedModel], kind: str) -> None:
    loaded, ids = models[kind], ids_of()
    capture, prefixes = captured(loaded), Prefixes(loaded.model, positions=TOKENS)
    for token in ids[:-1]:
        prefixes.advance(torch.tensor([token]))
    candidates = torch.tensor([[ids[-1], 7, 8]])
    for layer, (keys, values) in enumerate(prefixes.rows_after(candidates)):
        for part, rows in (("keys", keys), ("values", values)):
            slab = capture.find(layer, "keys" if part == "keys" else "values")
            assert slab is not None
            torch.testing.assert_close(rows[0, :, 0], slab.at(TOKENS - 1), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(rows[0, :, 1], slab.at(TOKENS - 1), rtol=1e-2)


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_the_dictionary_reads_layer_0(models: dict[str, LoadedModel], kind: str) -> None:
    assert share(LayerZeroDictionary(models[kind].model).recover(captured(models[kind])).token_ids) == 1.0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_dictionary_reads_keys_alone(models: dict[str, LoadedModel], kind: str) -> None:
    capture = captured(models[kind]).only(layers=[0], parts=["keys"])
    assert share(LayerZeroDictionary(models[kind].model).recover(capture).token_ids) == 1.0


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_any_single_layer_gives_the_prompt(models: dict[str, LoadedModel], kind: str) -> None:
    assert share(by_rows(models[kind], captured(models[kind]).only(layers=[1]))) == 1.0


@pytest.mark.parametrize("part", ["keys", "values"])
def test_one_head_of_one_layer_gives_the_prompt(models: dict[str, LoadedModel], part: str) -> None:
    capture = captured(models["llama"]).only(layers=[1], heads=[1], parts=[part])
    assert share(by_rows(models["llama"], capture)) == 1.0


def test_the_last_tokens_alone_are_read_from_layer_0(models: dict[str, LoadedModel]) -> None:
    capture = captured(models["llama"]).only(layers=[0], last_tokens=5)
    found = LayerZeroDictionary(models["llama"].model).recover(capture).token_ids
    assert found[-5:] == ids_of()[-5:]
    assert found[:-5] == (-1,) * (TOKENS - 5)


@pytest.mark.parametrize(("name", "least"), [("q8", 1.0), ("q4", 0.9)])
def test_a_quantised_cache_gives_the_prompt(models: dict[str, LoadedModel], name: str, least: float) -> None:
    loaded = models["llama"]
    moved = CapturedCache.of(codec.move(snapshot_of(loaded), codec=name))
    variances = codec_variances(loaded.model, name, token_ids=range(6, 60))
    found = recover(loaded.model, CacheLikelihood(moved, variances), tokens=TOKENS)
    assert share(found.token_ids) >= least


def test_what_is_known_is_not_searched(models: dict[str, LoadedModel]) -> None:
    loaded, ids = models["llama"], ids_of()
    capture = captured(loaded).only(layers=[1])
    likelihood = CacheLikelihood(capture, rounding_variances(capture))
    found = recover(loaded.model, likelihood, tokens=TOKENS, known=dict(enumerate(ids)))
    assert found.token_ids == ids
    assert found.candidates == TOKENS


def test_a_miss_does_not_stop_the_search(models: dict[str, LoadedModel]) -> None:
    """One captured row of another prompt: that token is lost, the first layer's others are not."""
    loaded = models["llama"]
    rows = captured(loaded).only(layers=[0])
    broken = rows.mapped(lambda slab: slab.rows.index_fill(1, torch.tensor([4]), 3.0))
    found = by_rows(loaded, broken)
    assert share(found) == (TOKENS - 1) / TOKENS


def test_without_evidence_the_prior_recovers_no_more_than_chance(models: dict[str, LoadedModel]) -> None:
    found = recover(models["llama"].model, NoEvidence(), tokens=TOKENS, known={0: ids_of()[0]})
    assert share(found.token_ids) <= 3 / TOKENS


def unrelated(loaded: LoadedModel) -> CapturedCache:
    """Return rows of the same sizes that are made of nothing: the attacks' control."""
    draw = torch.Generator().manual_seed(11)
    return captured(loaded).mapped(lambda slab: slab.rows.std() * torch.randn(slab.rows.shape, generator=draw))


@pytest.mark.parametrize("attack", ["dictionary", "inversion", "posterior", "collision-plus"])
def test_no_attack_reads_the_prompt_from_rows_that_are_not_its_own(models: dict[str, LoadedModel], attack: str) -> None:
    loaded = models["llama"]
    rows = unrelated(loaded)
    thresholds = calibrate(loaded.model, captured(loaded), layer=0, token_ids=ids_of(), wrong=16)
    found = {
        "dictionary": lambda: LayerZeroDictionary(loaded.model).recover(rows),
        "inversion": lambda: invert(loaded.model, rows),
        "posterior": lambda: recover(loaded.model, CacheLikelihood(rows, rounding_variances(rows)), tokens=TOKENS),
        "collision-plus": lambda: collide(loaded.model, rows, layer=0, thresholds=thresholds, never_stops=True),
    }[attack]()
    assert share(found.token_ids) <= 3 / TOKENS


def test_vocabulary_matching_reads_nothing_from_states_that_are_not_the_prompts(models: dict[str, LoadedModel]) -> None:
    model = models["llama"].model
    states = torch.randn(8, model.config.hidden_size, generator=torch.Generator().manual_seed(12))
    assert share(match_vocabulary(model, states, Matching(1)).token_ids, ids_of(8)) <= 2 / 8


def test_the_prior_decides_where_the_noise_hides_the_rest(models: dict[str, LoadedModel]) -> None:
    loaded = models["llama"]
    table = embedding_table(loaded.model)
    far = torch.zeros(3, table.shape[1])
    ids = recover(
        loaded.model, EmbeddingLikelihood(far, table, sigma=1e6), tokens=3, beam=Beam(width=4), known={0: 9}
    ).token_ids
    assert ids == recover(loaded.model, NoEvidence(), tokens=3, known={0: 9}, beam=Beam(width=4)).token_ids


def test_collision_stops_at_a_miss_as_published_and_goes_on_when_fixed(models: dict[str, LoadedModel]) -> None:
    loaded = models["llama"]
    broken = captured(loaded).mapped(lambda slab: slab.rows.index_fill(1, torch.tensor([4]), 3.0))
    thresholds = calibrate(loaded.model, captured(loaded), layer=0, token_ids=ids_of(), wrong=16)
    stopped = collide(loaded.model, broken, layer=0, thresholds=thresholds).token_ids
    assert stopped == (*ids_of()[:4], *[-1] * (TOKENS - 4))
    fixed = collide(loaded.model, broken, layer=0, thresholds=thresholds, never_stops=True).token_ids
    assert share(fixed) == (TOKENS - 1) / TOKENS


def test_collision_plus_reads_any_layer(models: dict[str, LoadedModel]) -> None:
    loaded = models["llama"]
    thresholds = calibrate(loaded.model, captured(loaded), layer=1, token_ids=ids_of(), wrong=16)
    assert share(collide(loaded.model, captured(loaded), layer=1, thresholds=thresholds).token_ids) == 1.0


def test_collision_needs_both_parts_of_its_layer(models: dict[str, LoadedModel]) -> None:
    with pytest.raises(UsageError, match="layer 1"):
        collide(models["llama"].model, captured(models["llama"]).only(parts=["keys"]), layer=1)


def test_least_squares_reads_layer_0(models: dict[str, LoadedModel]) -> None:
    assert share(invert(models["llama"].model, captured(models["llama"])).token_ids) >= 0.9


def test_injection_decodes_from_the_stolen_cache(models: dict[str, LoadedModel]) -> None:
    snapshot = snapshot_of(models["llama"])
    before = snapshot.layers[0]["keys"].clone()
    found = inject(models["llama"], snapshot)
    assert 0 < len(found.token_ids) <= TOKENS
    assert torch.equal(snapshot.layers[0]["keys"], before)


@pytest.mark.parametrize(("rows", "columns"), [(False, False), (True, False), (False, True), (True, True)])
def test_permuted_hidden_states_give_the_prompt(models: dict[str, LoadedModel], rows: bool, columns: bool) -> None:
    model = models["llama"].model
    with torch.inference_mode():
        states = model.base_model(torch.tensor([list(ids_of(8))]), output_hidden_states=True).hidden_states[1][0]
    shuffled, _ = permute_states(states, rows=rows, columns=columns, seed=1)
    matching = Matching(1, rows_permuted=rows, columns_permuted=columns)
    assert match_vocabulary(model, shuffled, matching).token_ids == ids_of(8)


def test_a_cache_of_noised_embeddings_is_inverted_to_them(models: dict[str, LoadedModel]) -> None:
    """The deep layers hide nothing: what was noised is found, and denoised as well as if it had been seen."""
    model, ids = models["llama"].model, ids_of(6)
    table = embedding_table(model)
    noised = table[list(ids)] + 0.01 * torch.randn(6, table.shape[1], generator=torch.Generator().manual_seed(2))
    prefixes, rows = Prefixes(model, positions=6), []
    for row in noised:
        rows.append(prefixes.rows_after(row[None, None]))
        prefixes.advance(row[None])
    truth = captured(models["llama"], 6)
    places = {"keys": 0, "values": 1}
    capture = truth.mapped(lambda slab: torch.cat([at[slab.layer][places[slab.part]][0] for at in rows], dim=1).float())
    inverted = invert_embeddings(model, capture)
    assert inverted.residual < 1e-3
    assert float((inverted.rows - noised).norm() / noised.norm()) < 0.05
    assert share(by_nearest(inverted.rows, table), ids) == share(by_nearest(noised, table), ids)


def by_nearest(rows: torch.Tensor, table: torch.Tensor) -> tuple[int, ...]:
    return tuple(torch.cdist(rows, table).argmin(1).tolist())


def test_a_personal_value_is_confirmed_from_one_layer(models: dict[str, LoadedModel]) -> None:
    loaded, ids = models["llama"], list(ids_of())
    capture = captured(loaded).only(layers=[1])
    score = cache_score(loaded.model, capture, rounding_variances(capture))
    candidates = [[*ids[:5], token, *ids[6:]] for token in range(100, 140) if token != ids[5]]
    scores = [score(candidate) for candidate in [*candidates, ids]]
    ranked = confirm(scores, true_index=len(candidates))
    assert (ranked.higher, ranked.tied) == (0, 1)
    assert score(ids[:-1]) == float("-inf")


def test_a_seat_that_sees_nothing_confirms_at_chance() -> None:
    ranked = confirm([0.0] * 100, true_index=17)
    assert ranked.chance_in_first(1) == pytest.approx(0.01)
    assert ranked.chance_in_first(100) == 1.0


def test_ties_are_counted_as_published() -> None:
    ranked = confirm([5.0, 3.0, 3.0, 3.0, 1.0], true_index=2)
    assert (ranked.higher, ranked.tied) == (1, 3)
    assert [ranked.chance_in_first(k) for k in (1, 2, 3, 4, 5)] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1, 1]


def test_impossible_candidates_tie_below_all_others() -> None:
    ranked = confirm([float("-inf"), float("-inf"), -2.0], true_index=0)
    assert (ranked.higher, ranked.tied) == (1, 2)


def test_equal_buckets_of_sizes_confirm_nothing() -> None:
    score = transcript_score([11286, -65552])
    assert score([11286, -65552]) == 0
    assert score([11286, -65552]) > score([11286, -65000])
    assert score([11286]) == float("-inf")


def test_a_partial_release_of_nothing_is_refused(models: dict[str, LoadedModel]) -> None:
    with pytest.raises(UsageError, match="holds no row"):
        captured(models["llama"]).only(layers=[9])


def test_texts_of_the_same_kind_make_a_prior_that_sums_to_one_and_knows_them() -> None:
    prior = TextPrior([[1, 2, 3, 4], [1, 2, 3, 5]], vocabulary=10)
    for prefix in ([], [1], [1, 2], [9, 9]):
        assert float(prior.chances(prefix).sum()) == pytest.approx(1.0)
    assert int(prior.chances([]).argmax()) == 1
    assert int(prior.chances([7, 1, 2]).argmax()) == 3
    assert float(prior.chances([3])[4]) == pytest.approx(float(prior.chances([3])[5]))


def test_a_wrong_model_costs_the_mixed_prior_at_most_a_factor_of_two() -> None:
    prior = TextPrior([[1, 2, 3, 4]] * 3, vocabulary=10)
    wrong = torch.full((1, 10), -50.0)
    wrong[0, 9] = 0.0
    mixed = prior.mixed(wrong, [[1, 2]])
    assert float(mixed.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(mixed[0, 3].exp()) >= float(prior.chances([1, 2])[3]) / 2


def test_a_prior_of_texts_recovers_what_noise_hides_from_the_nearest_neighbour(models: dict[str, LoadedModel]) -> None:
    loaded, ids = models["llama"], list(ids_of())
    table = embedding_table(loaded.model)
    texts = TextPrior([ids, list(reversed(ids))] * 4, vocabulary=len(table))
    noised = table[ids] + 0.05 * torch.randn(TOKENS, table.shape[1], generator=torch.Generator().manual_seed(2))
    likelihood = EmbeddingLikelihood(noised, table, sigma=0.05)
    found = recover(loaded.model, likelihood, tokens=TOKENS, beam=Beam(width=8), texts=texts)
    nearest = by_nearest(noised, table)
    assert share(nearest) < 0.7
    assert share(found.token_ids) > share(nearest)
