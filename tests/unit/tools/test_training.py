"""Rules of the training: the network is a Llama, heads are shown the right places, runs repeat and resume."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tools.corpus.marked import Span
from tools.training.export import export, llama
from tools.training.initialisation import initialise
from tools.training.loop import Trainer, apart, look_losses, token_loss
from tools.training.muon import orthogonalised
from tools.training.network import Network, Probe, Shape
from tools.training.recipe import Recipe
from tools.training.rows import AIMS, ASSISTANT, BOS, DOC, END, NOTE, USER, Batch, Encoder, Stage, collated
from tools.training.tokenizer import SPECIAL, train_tokenizer

ROOT = Path(__file__).resolve().parents[3]
SMALL = Shape(hidden=96, layers=6, heads=4, kv_heads=2, head_dim=16, feed_forward=64)
STAGE = Stage(256, 2, repeats=0.0, has_gaps=True, whole_answers=1.0, strange=0.0, context_share=1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(seed=0, vocabulary=2048, contexts=200)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


def seeded(seed):
    return random.Random(seed)  # noqa: S311


def network(shape=SMALL, seed=0):
    torch.manual_seed(seed)
    found = Network(shape)
    initialise(found)
    return found


def test_exported_llama_computes_what_the_network_computes():
    trained = network()
    ids = torch.randint(7, 2048, (2, 300))
    hidden, _ = trained(ids, torch.arange(300).repeat(2, 1))
    with torch.inference_mode():
        logits = llama(trained, dtype=torch.float32)(ids).logits
    ours = hidden @ trained.embedding.T
    assert torch.allclose(logits, ours, atol=1e-4)
    assert logits.std() > 0.01


def test_exported_folder_is_loaded_by_the_product(tokenizer, tmp_path):
    from splitinfer.model.loading import load

    export(network(), tokenizer, tmp_path, dtype=torch.bfloat16)
    loaded = load(str(tmp_path))
    assert loaded.model.config.num_hidden_layers == SMALL.layers
    assert loaded.tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(7))


def test_new_network_attends_to_the_tokens_before():
    found = network(Shape())
    ids = torch.randint(7, 2048, (1, 200))
    _, probed = found(ids, torch.arange(200)[None], [Probe(0, head) for head in range(3)])
    for head in range(3):
        query, key = probed[Probe(0, head)]
        scores = query[0] @ key[0].T
        scores.masked_fill_(torch.triu(torch.ones(200, 200, dtype=torch.bool), 1), float("-inf"))
        looked = scores.argmax(-1)[50:]
        assert (looked == torch.arange(50, 200) - head - 1).float().mean() > 0.95


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 48, 20, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_tokenizer_is_the_same_for_the_same_seed(tokenizer):
    again = train_tokenizer(seed=0, vocabulary=2048, contexts=200)
    assert again.to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() == 2048
    assert [tokenizer.id_to_token(index) for index in range(7)] == list(SPECIAL)


def test_every_digit_is_its_own_token(tokenizer):
    assert tokenizer.encode("415-2037").tokens == list("415-2037")


def test_a_point_or_comma_inside_a_value_goes_with_what_follows(tokenizer):
    assert tokenizer.encode("$4,150.46.").tokens == ["$", "4", ",1", "5", "0", ".4", "6", "."]
    assert tokenizer.encode("a.b").tokens == ["a", ".b"]


def test_rows_are_prompts_as_the_product_writes_them(encoder, tokenizer):
    row = encoder.questions(seeded(1), STAGE)
    assert row.ids[0] == BOS
    assert row.ids[1] in (DOC, NOTE)
    for start in [index for index, token in enumerate(row.ids) if token == USER]:
        stop = row.ids.index(ASSISTANT, start)
        assert tokenizer.decode(row.ids[start + 1 : stop]).startswith(" ")
        assert END in row.ids[stop:]
    assert row.ids.count(USER) == row.ids.count(ASSISTANT) == row.ids.count(END) > 2


def test_heads_are_shown_the_next_token_of_the_answer(encoder):
    shown = 0
    for seed in range(20):
        row = encoder.questions(seeded(seed), STAGE)
        for query, (target,) in row.looks["first"] + row.looks["next"]:
            assert target < query
            if target and row.ids[query + 1] != END:
                assert row.ids[target] == row.ids[query + 1]
                shown += 1
    assert shown > 500


def test_the_token_behind_a_value_is_shown_its_owner_and_noun_once_ends_are_bound(encoder):
    free = encoder.questions(seeded(4), STAGE)
    bound = encoder.questions(seeded(4), replace(STAGE, binds_ends=True))
    assert bound.ids == free.ids
    for aim in ("owner", "noun"):
        shown = {query for query, _ in free.looks[aim]}
        ends = {query for query, _ in bound.looks[aim]} - shown
        assert ends
        assert all(query - 1 in shown for query in ends)


def test_strange_rows_write_names_and_values_in_other_tokens(encoder, tokenizer):
    plain = encoder.questions(seeded(3), STAGE)
    strange = encoder.questions(seeded(3), replace(STAGE, strange=1.0))
    pairs = set(zip(plain.ids, strange.ids, strict=True))
    assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs})
    changed = {ours for ours, theirs in pairs if ours != theirs}
    assert len(changed) > 5
    fixed = tokenizer.encode("What is the phone number of? Patient record: | price", add_special_tokens=False).ids
    assert not changed & {*fixed, *range(7), *(tokenizer.token_to_id(digit) for digit in "0123456789")}


def test_strange_nouns_exchange_every_word_but_those_of_the_templates(encoder, tokenizer):
    plain = encoder.questions(seeded(3), STAGE)
    strange = encoder.questions(seeded(3), replace(STAGE, strange=1.0, strange_nouns=1.0))
    pairs = set(zip(plain.ids, strange.ids, strict=True))
    assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs})
    nouns = set(tokenizer.encode(" medication price number", add_special_tokens=False).ids)
    others = encoder._other_words(seeded(4))
    assert {others.get(token, token) for token in nouns}.isdisjoint(nouns)
    fixed = tokenizer.encode("What is the of? Give me", add_special_tokens=False).ids
    assert not set(others) & {*fixed, *range(7), *(tokenizer.token_to_id(digit) for digit in "0123456789")}


def test_a_word_and_its_capital_are_exchanged_together(encoder, tokenizer):
    others = encoder._other_words(seeded(5))
    pairs = 0
    for token, other in others.items():
        text = tokenizer.decode([token])
        capital = tokenizer.token_to_id(text.replace(" ", "Ġ").title()) if text.strip().islower() else None
        if capital in others and not text.startswith(" "):
            assert tokenizer.decode([others[capital]]).lower() == tokenizer.decode([other]).lower()
            pairs += 1
    assert pairs > 20


def test_heads_are_shown_places_before_them(encoder):
    for seed in range(20):
        row = encoder.questions(seeded(seed), STAGE)
        assert all(row.looks[aim] or aim in ("link", "via") for aim in AIMS)
        for aim in AIMS:
            for query, targets in row.looks[aim]:
                assert targets
                assert all(0 <= target <= query for target in targets)


def test_repeats_come_again(encoder):
    row = encoder.repeats(seeded(2), 128)
    counted = [index for index, weight in enumerate(row.weights) if weight]
    assert len(counted) > 20
    pairs = set(zip(row.ids, row.ids[1:], strict=False))
    assert len(pairs) < len(row.ids) - 20


def test_positions_grow_and_stay_below_the_limit(encoder):
    has_gap = False
    for seed in range(10):
        rows = [encoder.questions(seeded(seed), STAGE) for _ in range(2)]
        batch = collated(rows, seeded(seed), STAGE, positions=4096)
        steps = batch.positions[:, 1:] - batch.positions[:, :-1]
        lengths = [min(256, len(row.ids)) for row in rows]
        for row, length in enumerate(lengths):
            assert (steps[row, : length - 1] >= 1).all()
            has_gap = has_gap or bool((steps[row, : length - 1] > 1).any())
        assert batch.positions.max() < 4096
    assert has_gap


def test_attention_on_a_target_costs_nothing_and_elsewhere_much():
    key = torch.eye(8).repeat(1, 1, 1) * 40
    query = torch.zeros(1, 8, 8)
    query[0, 5, 2] = 40.0
    queries = torch.tensor([[5]])
    right = look_losses(query, key, queries, torch.tensor([[[2, -1]]]))
    wrong = look_losses(query, key, queries, torch.tensor([[[3, -1]]]))
    assert right.item() < 1e-3
    assert wrong.item() > 100
    assert look_losses(query, key, queries, torch.tensor([[[-1, -1]]])).numel() == 0


def test_attention_never_counts_later_tokens():
    key, query = torch.zeros(1, 8, 4), torch.zeros(1, 8, 4)
    losses = look_losses(query, key, torch.tensor([[3]]), torch.tensor([[[0]]]))
    assert losses.item() == pytest.approx(torch.tensor(4.0).log().item())


def test_the_few_that_look_for_something_weigh_as_much_as_the_many_that_rest():
    losses, rests = torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.tensor([False, True, True, True])
    assert apart(losses, rests).item() == pytest.approx(2.0)
    assert apart(losses, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(1.0)
    assert apart(losses, ~torch.ones(4, dtype=torch.bool)).item() == pytest.approx(1.0)


def test_tokens_without_weight_cost_nothing():
    batch = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([[0.0, 3.0, 0.0]]), torch.arange(3)[None], {})
    embedding = torch.eye(4) * 10
    hidden = torch.stack([embedding[2], embedding[0], embedding[0]])[None]
    loss, hits = token_loss(hidden, batch, embedding)
    assert loss.item() < 1e-3
    assert hits.tolist() == [True]


@pytest.mark.parametrize("length", [300, 500])
def test_rates_do_not_depend_on_the_length_before_the_descent(length):
    recipe = Recipe(steps=length, decay_steps=100, warm_up=10, second_steps=50, second_rate=0.5)
    rates = [recipe.rate(step) for step in range(length)]
    assert recipe.plateau_end == length - 150
    assert rates[: length - 150] == [min(1.0, (step + 1) / 10) for step in range(length - 150)]
    assert rates[length - 51] == pytest.approx(0.01)


def test_second_hill_is_lower_and_descends_to_nothing():
    recipe = Recipe(steps=300, decay_steps=100, warm_up=10, second_steps=50, second_rate=0.5)
    hill = [recipe.rate(step) for step in range(250, 300)]
    assert max(hill) == pytest.approx(0.5 * 0.84)
    assert hill[0] == pytest.approx(0.05)
    assert hill[-1] == pytest.approx(0.01)
    assert all(rate > 0 for rate in hill)
    assert recipe.look(251) > recipe.look(299) == pytest.approx(0.1 * recipe.look_weight)


def trained(tokenizer, folder, stops):
    recipe = replace(Recipe(), steps=6, decay_steps=2, second_steps=1, processes=1, shape=SMALL)
    for stop in stops:
        trainer = Trainer(recipe, tokenizer)
        if (folder / "checkpoint.safetensors").exists():
            trainer.load(folder / "checkpoint.safetensors")
        trainer.train(until=stop)
        trainer.save(folder / "checkpoint.safetensors")
    return trainer.result().state_dict()


def test_run_in_two_sittings_gives_the_weights_of_one(tokenizer, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole, halves = trained(tokenizer, tmp_path / "one", [6]), trained(tokenizer, tmp_path / "two", [3, 6])
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert not torch.equal(whole["embedding"], network(seed=0).state_dict()["embedding"])


def test_the_result_holds_a_share_of_the_weights_before_the_second_hill(tokenizer):
    recipe = replace(Recipe(), steps=3, decay_steps=1, second_steps=1, processes=1, shape=SMALL, kept_share=0.25)
    trainer = Trainer(recipe, tokenizer)
    trainer.train(until=2)
    before = {name: weight.clone() for name, weight in trainer.network.state_dict().items()}
    assert torch.equal(trainer.result().state_dict()["embedding"], before["embedding"])
    trainer.train(until=3)
    after, result = trainer.network.state_dict(), trainer.result().state_dict()
    assert not torch.equal(after["embedding"], before["embedding"])
    for name, weight in result.items():
        assert torch.allclose(weight, 0.75 * after[name] + 0.25 * before[name], atol=1e-6)


def test_checkpoint_of_another_recipe_is_refused(tokenizer, tmp_path):
    trained(tokenizer, tmp_path, [1])
    other = Trainer(
        replace(Recipe(), steps=6, decay_steps=2, second_steps=1, processes=1, shape=SMALL, seed=1), tokenizer
    )
    with pytest.raises(SystemExit, match="another recipe"):
        other.load(tmp_path / "checkpoint.safetensors")


def digest_of(folder, *options):
    command = [sys.executable, str(ROOT / "tools" / "train_embedded_model.py"), "--out", str(folder), *options]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return shown.strip().splitlines()[-1].split()[-1]


@pytest.mark.slow
def test_fifty_steps_give_one_digest_twice_and_resumed(tmp_path):
    first = digest_of(tmp_path / "a", "--stop", "50")
    assert digest_of(tmp_path / "b", "--stop", "50") == first
    assert digest_of(tmp_path / "c", "--stop", "20") != first
    assert digest_of(tmp_path / "c", "--stop", "50") == first


def test_span_moves_with_its_text():
    assert Span(2, 5).moved(3) == Span(5, 8)
