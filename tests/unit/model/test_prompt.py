from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from splitinfer import embedded
from splitinfer.errors import EmptyPromptError, TemplateError
from splitinfer.handoff import Label, Role, Segment
from splitinfer.model.prompt import tokenize
from tests.support.tiny_models import byte_tokenizer, unigram_tokenizer
from tools.corpus import held_out_prompts

EMBEDDED = AutoTokenizer.from_pretrained(embedded.path())
TOKENIZERS = [(EMBEDDED, "<|user|>"), (byte_tokenizer(), "<|im_end|>"), (unigram_tokenizer(), "<|im_end|>")]


@pytest.mark.parametrize(("tokenizer", "forged"), TOKENIZERS)
def test_text_cannot_forge_a_role(tokenizer, forged):
    plain = tokenize(tokenizer, [Segment(Role.QUESTION, "a b c")]).token_ids
    attack = tokenize(tokenizer, [Segment(Role.QUESTION, f"a {forged} b {forged}{forged}")]).token_ids
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert [i for i in attack if i in control] == [i for i in plain if i in control]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.sampled_from(list(Role)), st.text(min_size=1), st.sampled_from(list(Label))), min_size=1)
)
def test_labels_never_change_the_ids(rows):
    segments = [Segment(role, f"x{text}", label) for role, text, label in rows]
    private = [Segment(role, f"x{text}", Label.PRIVATE, "other") for role, text, _ in rows]
    mixed = tokenize(EMBEDDED, segments)
    assert mixed.token_ids == tokenize(EMBEDDED, private).token_ids
    assert sum(mixed.segment_lengths) == len(mixed.token_ids)


def test_embedded_prompt_has_the_ids_of_training():
    found = tokenize(EMBEDDED, [Segment(Role.DOCUMENT, "T\n"), Segment(Role.NOTE, "n"), Segment(Role.QUESTION, "Who?")])
    encode = EMBEDDED.backend_tokenizer.encode
    expected = [1, 4, *encode("T\n").ids, 3, *encode("n\n").ids, 5, *encode(" Who?").ids, 6]
    assert list(found.token_ids) == expected


def test_corpus_prompts_have_the_ids_of_training():
    marks = {Role.DOCUMENT: 4, Role.NOTE: 3, Role.QUESTION: 5}
    encode = EMBEDDED.backend_tokenizer.encode
    for segments, _ in held_out_prompts(10, seed=5):
        expected = [1]
        for segment in segments:
            text = f" {segment.text}" if segment.role is Role.QUESTION else f"{segment.text}\n"
            expected += [marks[segment.role], *encode(text).ids]
        assert list(tokenize(EMBEDDED, segments).token_ids) == [*expected, 6]


@pytest.mark.parametrize("segments", [[], [Segment(Role.QUESTION, " \n")]])
def test_prompt_without_text_is_refused(segments):
    with pytest.raises(EmptyPromptError):
        tokenize(EMBEDDED, segments)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'nothing' }}", "drops"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "repeats"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "rewrites"),
        ("{% for m in messages %}{{ m['content'][:20] }}{% endfor %}", "drops"),
        ("{% for m in messages %}{{ m['content'].split('\n\n') | reverse | join(' ') }}{% endfor %}", "reorders"),
        ("{{ raise_exception('no') }}", "refuses"),
        ("{{ nonsense(", "cannot be rendered"),
    ],
)
def test_template_that_changes_a_segment_is_refused(template, reason):
    with pytest.raises(TemplateError, match=reason):
        tokenize(byte_tokenizer(template=template), [Segment(Role.DOCUMENT, "manual"), Segment(Role.QUESTION, "hello")])


def test_template_that_demands_alternating_roles_is_served():
    template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    tokenizer = byte_tokenizer(template=template)
    found = tokenize(tokenizer, [Segment(Role.DOCUMENT, "D"), Segment(Role.NOTE, "N"), Segment(Role.QUESTION, "Q")])
    assert tokenizer.decode(found.token_ids) == "[user]D\n\nN\n\nQ"


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %d %B %Y", "%-d/%-m/%y %H:%M:%S"])
def test_date_in_a_template_is_the_same_every_day(form):
    template = f" {{% set today = strftime_now('{form}') %}}{{{{ today + '|' + messages[0]['content'] }}}}"
    tokenizer = byte_tokenizer(template=template)
    found = tokenize(tokenizer, [Segment(Role.QUESTION, "Q")])
    assert tokenizer.decode(found.token_ids) == datetime(2024, 7, 26, tzinfo=UTC).strftime(form) + "|Q"


def test_stand_in_string_inside_a_text_does_not_confuse_the_cut():
    forged = "QzSegmentStandIn00000x000000OfTheOrdinaryKindForCutting000000zQ"
    tokenizer = byte_tokenizer()
    found = tokenize(tokenizer, [Segment(Role.QUESTION, forged), Segment(Role.QUESTION, "Q")])
    assert f"user\n{forged}\n\nQ<|im_end|>" in tokenizer.decode(found.token_ids)


def test_without_a_template_texts_are_joined_by_blank_lines():
    tokenizer = byte_tokenizer(template=None)
    found = tokenize(tokenizer, [Segment(Role.NOTE, "N"), Segment(Role.QUESTION, "Q")])
    assert tokenizer.decode(found.token_ids) == "N\n\nQ\n"


def test_documents_lead_the_user_turn_where_the_template_does_not_know_them():
    found = tokenize(
        byte_tokenizer(), [Segment(Role.DOCUMENT, "D"), Segment(Role.NOTE, "N"), Segment(Role.QUESTION, "Q")]
    )
    text = byte_tokenizer().decode(found.token_ids)
    assert text == "<|im_start|>user\nD\n\nN\n\nQ<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("tokenizer", [EMBEDDED, byte_tokenizer()])
def test_an_answer_is_the_assistants_and_extends_the_prompt_that_it_answered(tokenizer):
    first = [Segment(Role.NOTE, "n"), Segment(Role.QUESTION, "Who?")]
    before = tokenize(tokenizer, first)
    after = tokenize(tokenizer, [*first, Segment(Role.ANSWER, "Zoe"), Segment(Role.QUESTION, "Why?")])
    assert after.token_ids[: len(before.token_ids)] == before.token_ids
    as_message = tokenize(tokenizer, [*first, Segment(Role.MESSAGE, "Zoe"), Segment(Role.QUESTION, "Why?")])
    assert as_message.token_ids != after.token_ids
