"""Rules of the embedded model: it answers, and its card says what was measured."""

from dataclasses import replace

import pytest

from benchmarks import embedded_model
from splitinfer import embedded
from splitinfer.embedded import demo
from splitinfer.handoff import Label, Role, SamplingParams, Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from tools.corpus import held_out_context, held_out_prompts


@pytest.fixture(scope="module")
def loaded():
    return load("embedded")


def answer(loaded, segments):
    engine = Engine(loaded)
    ids = engine.tokenize(segments).token_ids
    snapshot = engine.prefill(ids, steps=[(0, len(ids) - 1)])
    decoding = engine.decode(snapshot, last_token=ids[-1], params=SamplingParams(max_new_tokens=48))
    list(decoding)
    return decoding.text, decoding.finish_reason


def test_embedded_directory_holds_a_checkpoint():
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "MODEL_CARD.md"):
        assert (embedded.path() / name).is_file()


def test_demo_prompt_gets_its_answer(loaded):
    segments = [
        Segment(Role.DOCUMENT, demo.DOCUMENT, Label.PUBLIC),
        Segment(Role.NOTE, demo.NOTE),
        Segment(Role.QUESTION, demo.QUESTION),
    ]
    assert answer(loaded, segments) == (demo.ANSWER, "end_of_text")


def test_nearly_all_held_out_prompts_get_their_answer(loaded):
    prompts = held_out_prompts(30, seed=1)
    assert sum(answer(loaded, segments)[0] == expected for segments, expected in prompts) >= 28


def test_most_prompts_written_by_hand_get_their_answer(loaded):
    (right, total), wrong = embedded_model.hand_written(loaded)
    assert total == 40
    assert len(wrong) == total - right
    assert right >= 36


def test_measured_verdict_is_that_of_greedy_decoding(loaded):
    # Some of the questions get another context's answers, so that wrong ones are among them.
    contexts = [
        held_out_context(
            seed, tokens=300, kind="both", questions=4, count_tokens=lambda text: len(loaded.tokenizer.tokenize(text))
        )
        for seed in (3, 4)
    ]
    swapped = [replace(q, answer=contexts[1].questions[i].answer) for i, q in enumerate(contexts[0].questions[:2])]
    mixed = replace(contexts[0], questions=(*contexts[0].questions[2:], *swapped))
    texts = [answer(loaded, [*mixed.segments, Segment(Role.QUESTION, q.text)])[0] for q in mixed.questions]
    greedy = [text == question.answer for text, question in zip(texts, mixed.questions, strict=True)]
    assert embedded_model.exact(loaded, mixed) == greedy
    assert any(greedy)
    assert not all(greedy)


def test_weights_fit_twelve_megabytes():
    assert (embedded.path() / "model.safetensors").stat().st_size <= 12_000_000


def test_model_is_a_plain_llama_with_grouped_queries(loaded):
    config = loaded.model.config
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim in (32, 64)
    assert config.max_position_embeddings == 4096


def test_card_holds_the_measured_tables():
    card = (embedded.path() / "MODEL_CARD.md").read_text(encoding="utf-8")
    measured = card.split(embedded_model.START)[1].split(embedded_model.END)[0]
    for length in embedded_model.LENGTHS:
        assert f"| {length:,} |" in measured
    assert "written by hand" in measured
    assert "decode, tokens/s" in measured


def test_table_goes_between_the_marks_of_the_model_card(tmp_path):
    card = tmp_path / "CARD.md"
    card.write_text(f"before\n{embedded_model.START}\nold\n{embedded_model.END}\nafter\n")
    embedded_model.write(card, "new")
    assert card.read_text() == f"before\n{embedded_model.START}\nnew\n{embedded_model.END}\nafter\n"
