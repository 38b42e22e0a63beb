"""Rules of the generated corpus: spans stand where they are marked, answers are single, held-out entities stay out."""

import random
import re
import zlib

import pytest

from splitinfer.handoff import Label, Role
from tools.corpus import held_out_context, held_out_prompts
from tools.corpus.drawer import Drawer, is_held_out
from tools.corpus.marked import Span, fill
from tools.corpus.notes import Link, make_note
from tools.corpus.prompts import make_context
from tools.corpus.tables import Table

KINDS = ("notes", "table", "both", "mixed")
RECORD_ID = re.compile(r"\b(?:MRN|TCK|CTR|TRX|EMP|CLM|ORD|POL|REF)-\d{3,8}\b")


def seeded(seed):
    return random.Random(seed)  # noqa: S311


def length(text):
    return len(text) // 3


def context(seed, kind, *, tokens=300, split="train", questions=12, is_alike=False):
    return make_context(
        seeded(seed),
        tokens=tokens,
        kind=kind,
        questions=questions,
        count_tokens=length,
        split=split,
        is_alike=is_alike,
    )


def text_of(found):
    return "\n".join(passage.text for passage in found.passages)


def cut(text, span):
    return text[span.start : span.end]


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_marked_span_holds_what_it_marks(kind, is_alike):
    facts = 0
    for seed in range(40):
        for passage in context(seed, kind, is_alike=is_alike).passages:
            for fact in passage.facts:
                assert cut(passage.text, fact.value_span) == fact.value
                assert all(cut(passage.text, span) == fact.owner for span in fact.owner_spans)
                assert all(span.end <= fact.value_span.start for span in fact.owner_spans)
                assert passage.text[fact.value_span.start - 1] == " "
                if fact.noun_span is not None:
                    assert cut(passage.text, fact.noun_span).strip()
                    assert fact.noun_span.end < fact.value_span.start
                facts += 1
    assert facts > 100


def test_nouns_of_tables_are_those_of_questions():
    for seed in range(40):
        for passage in context(seed, "table").passages:
            nouns = [(f, cut(passage.text, f.noun_span).lower()) for f in passage.facts if f.noun_span is not None]
            assert all(noun in {known.lower() for known in fact.nouns} for fact, noun in nouns)


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_spans_of_the_passage_that_the_question_names(kind, is_alike):
    for seed in range(40):
        found = context(seed, kind, is_alike=is_alike)
        for question in found.questions:
            assert question.answer == question.source.fact.value
            assert question.source.fact in found.passages[question.source.passage].facts
            nouns = {noun.lower() for noun in question.source.fact.nouns}
            assert cut(question.text, question.noun_span).lower() in nouns


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_question_has_two_answers(kind, is_alike):
    for seed in range(40):
        found = context(seed, kind, is_alike=is_alike)
        for question in found.questions:
            if question.owner_span is None or question.via is not None:
                continue
            noun = cut(question.text, question.noun_span).lower()
            answers = {
                fact.value
                for passage in found.passages
                for fact in passage.facts
                if fact.owner == question.source.fact.owner and noun in {n.lower() for n in fact.nouns}
            }
            assert answers == {question.answer}


def test_questions_of_kind_both_need_note_and_document():
    count = 0
    for seed in range(40):
        found = context(seed, "both")
        assert found.has_document
        for question in found.questions:
            assert question.source.passage == 0
            assert question.via.passage > 0
            assert question.via.fact.value == question.source.fact.owner
            assert question.source.fact.owner not in question.text
            count += 1
    assert count > 100


def test_questions_that_name_nobody_are_asked_of_a_single_note():
    for seed in range(200):
        found = context(seed, "mixed", tokens=120)
        alone = [question for question in found.questions if question.owner_span is None]
        assert not alone or len(found.passages) - found.has_document == 1


def test_keys_of_a_table_of_alike_kinds_share_a_word_in_most_tables():
    shared = total = 0
    for seed in range(60):
        table = Table(Drawer(seeded(seed), split="train"), is_alike=True)
        while len(table.keys) < 4 and table.add_row() is not None:
            pass
        bags = [set(key.lower().split()) for key in table.keys]
        shared, total = shared + any(bags[0] & other for other in bags[1:]), total + 1
    assert shared / total > 0.6


def test_nouns_of_alike_kinds_often_share_a_word():
    shared = 0
    for seed in range(60):
        nouns = [
            fact.nouns[0].split()
            for fact in make_note(Drawer(seeded(seed), split="train"), is_alike=True).passage.facts
        ]
        words = [word for noun in nouns for word in noun]
        shared += len(set(words)) < len(words)
    assert shared > 30


def test_equal_seeds_give_equal_contexts():
    assert context(1, "mixed") == context(1, "mixed")
    assert context(1, "mixed") != context(2, "mixed")


def test_held_out_records_have_a_checksum_that_training_never_had():
    found = [i for seed in range(60) for i in RECORD_ID.findall(text_of(context(seed, "mixed", split="test")))]
    assert len(found) > 50
    assert all(zlib.crc32(record_id.encode()) % 8 == 0 for record_id in found)


def test_training_never_draws_a_held_out_record():
    found = [i for seed in range(60) for i in RECORD_ID.findall(text_of(context(seed, "mixed")))]
    assert len(found) > 50
    assert all(zlib.crc32(record_id.encode()) % 8 for record_id in found)


@pytest.mark.parametrize("split", ["train", "test"])
def test_names_and_words_belong_to_their_split(split):
    drawer = Drawer(seeded(3), split=split)
    for _ in range(200):
        assert is_held_out(drawer.word().lower()) == (split == "test")
        assert is_held_out(drawer.phone()) == (split == "test")
        assert is_held_out(drawer.card()) == (split == "test")


def test_no_held_out_name_occurs_in_training():
    trained = {fact.owner for seed in range(300) for p in context(seed, "notes").passages for fact in p.facts}
    tested = {
        fact.owner for seed in range(300) for p in context(seed, "notes", split="test").passages for fact in p.facts
    }
    assert len(trained) > 500
    assert len(tested) > 500
    assert not trained & tested


def test_prompts_carry_a_public_document_and_private_notes():
    for segments, expected in held_out_prompts(50, seed=2):
        assert expected
        assert expected in "".join(segment.text for segment in segments if segment.role is not Role.QUESTION)
        assert [s.label for s in segments if s.role is Role.DOCUMENT] == [Label.PUBLIC]
        assert all(s.label is not Label.PUBLIC for s in segments if s.role is not Role.DOCUMENT)


def test_prompts_are_the_same_for_the_same_seed():
    assert held_out_prompts(5, seed=1) == held_out_prompts(5, seed=1)
    assert held_out_prompts(5, seed=1) != held_out_prompts(5, seed=2)


def test_table_without_another_key_says_so():
    for seed in range(200):
        table = Table(Drawer(seeded(seed), split="test"))
        if "error codes" in table.passage.text:
            break
    rows = 0
    while table.add_row() is not None:
        rows += 1
    # A thousand codes, about an eighth of them held out.
    assert 60 < rows < 200


@pytest.mark.parametrize("kind", ["notes", "table", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_long_contexts_are_as_long_as_asked(seed, kind):
    found = held_out_context(seed, tokens=2048, kind=kind, questions=8, count_tokens=length)
    assert 0.85 < len(text_of(found)) / 3 / 2048 < 1.3
    assert len(found.questions) == 8


def test_note_with_a_link_names_the_row():
    for seed in range(50):
        note = make_note(Drawer(seeded(seed), split="train"), link=Link(("plan", "tariff"), "Zorba plan"))
        assert note.link.value == "Zorba plan"
        assert [fact.value for fact in note.passage.facts if set(fact.nouns) & {"plan", "tariff"}] == ["Zorba plan"]


def test_filled_template_knows_where_its_values_stand():
    text, spans = fill("The {noun} of {name} is {value}.", noun="age", name="Bo", value="7")
    assert text == "The age of Bo is 7."
    assert spans == {"noun": Span(4, 7), "name": Span(11, 13), "value": Span(17, 18)}
