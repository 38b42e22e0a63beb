"""Rules of the embedded model and of the corpus that it is measured on."""

import random
import re
import zlib

import pytest

from benchmarks import embedded_model
from splitinfer import embedded
from splitinfer.embedded import demo
from splitinfer.handoff import Label, Role, SamplingParams, Segment
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from tools.corpus import held_out_context, held_out_prompts
from tools.corpus.drawer import Drawer
from tools.corpus.prompts import make_context
from tools.corpus.tables import Table

RECORD_ID = re.compile(r"\b[A-Z]{1,3}-\d{3,8}\b")


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


def seeded(seed):
    return random.Random(seed)  # noqa: S311


def context_of(segments):
    return "".join(segment.text for segment in segments if segment.role is not Role.QUESTION)


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


def test_most_held_out_prompts_get_their_answer(loaded):
    prompts = held_out_prompts(12, seed=1)
    assert sum(answer(loaded, segments)[0] == expected for segments, expected in prompts) >= 9


def test_measured_verdict_is_that_of_greedy_decoding(loaded):
    context = held_out_context(
        3, tokens=500, kind="both", questions=8, count_tokens=lambda text: len(loaded.tokenizer.tokenize(text))
    )
    texts = [answer(loaded, [*context.segments, Segment(Role.QUESTION, q.text)])[0] for q in context.questions]
    greedy = [text == question.answer for text, question in zip(texts, context.questions, strict=True)]
    assert embedded_model.exact(loaded, context) == greedy
    assert any(greedy)
    assert not all(greedy)


def test_table_goes_between_the_marks_of_the_model_card(tmp_path):
    card = tmp_path / "CARD.md"
    card.write_text(f"before\n{embedded_model.START}\nold\n{embedded_model.END}\nafter\n")
    embedded_model.write(card, "new")
    assert card.read_text() == f"before\n{embedded_model.START}\nnew\n{embedded_model.END}\nafter\n"


def test_held_out_prompts_are_the_same_for_the_same_seed():
    assert held_out_prompts(5, seed=1) == held_out_prompts(5, seed=1)
    assert held_out_prompts(5, seed=1) != held_out_prompts(5, seed=2)


def test_held_out_answers_are_spans_of_the_context():
    for segments, expected in held_out_prompts(50, seed=2):
        assert expected
        assert expected in context_of(segments)
        assert [s.label for s in segments if s.role is Role.DOCUMENT] == [Label.PUBLIC]
        assert all(s.label is not Label.PUBLIC for s in segments if s.role is not Role.DOCUMENT)


def test_held_out_records_have_a_checksum_that_training_never_had():
    found = [i for segments, _ in held_out_prompts(50, seed=3) for i in RECORD_ID.findall(context_of(segments))]
    assert len(found) > 50
    assert all(zlib.crc32(record_id.encode()) % 8 == 0 for record_id in found)


def test_training_never_draws_a_held_out_record():
    context = make_context(
        seeded(1), tokens=4000, kind="both", questions=1, count_tokens=lambda text: len(text) // 3, split="train"
    )
    found = RECORD_ID.findall(context_of(context.segments))
    assert len(found) > 20
    assert all(zlib.crc32(record_id.encode()) % 8 for record_id in found)


def test_table_without_another_key_says_so():
    for seed in range(100):
        table = Table(Drawer(seeded(seed), split="test"))
        if "error codes" in table.head:
            break
    rows = 0
    while table.add_row() is not None:
        rows += 1
    # A thousand codes, about an eighth of them held out.
    assert 60 < rows < 200


@pytest.mark.parametrize("seed", range(6))
def test_long_contexts_are_as_long_as_asked(seed):
    context = held_out_context(seed, tokens=2048, kind="table", questions=8, count_tokens=lambda text: len(text) // 3)
    assert 0.9 < len(context_of(context.segments)) / 3 / 2048 < 1.3
    assert len(context.questions) == 8
