"""The Python use that the documents show: both examples run, the names are there, calls that are wrong say so."""

from __future__ import annotations

import contextlib
import runpy
from pathlib import Path

import pytest

import splitinfer
from splitinfer import Answer, Session, document, message, note, private, public, question
from splitinfer.errors import AuditLogError, PolicyError, PromptError, UsageError
from splitinfer.model.engine import Engine
from tests.support.memory_clouds import Paired, policy_of
from tests.support.processes import ROOT

EXAMPLES = ROOT / "examples"
PHONE = "415-203-7786"


def test_five_lines_answer_and_nothing_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "five_lines.py"), run_name="__main__")
    assert capsys.readouterr().out == f"{PHONE}\nnothing left the device\n"


def test_paired_cloud_example_streams_a_sealed_answer(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runpy.run_path(str(EXAMPLES / "paired_cloud.py"), run_name="__main__")
    url, answer, egress, receipt = capfd.readouterr().out.splitlines()
    assert url.startswith("cloud at http://127.0.0.1:")
    assert answer.strip() == PHONE
    assert "bytes up" in egress
    assert "'prefilled': " in receipt


def test_every_public_name_can_be_imported() -> None:
    assert {name: getattr(splitinfer, name) is not None for name in splitinfer.__all__} == dict.fromkeys(
        splitinfer.__all__, True
    )
    assert private is note


def test_answer_is_there_after_the_stream_was_read(pair: Paired, tiny: Engine) -> None:
    with pair.session("local", tiny) as session:
        stream = session.stream([question("a")], max_new_tokens=5)
        with pytest.raises(UsageError, match="read to the end"):
            _ = stream.answer
        text = "".join(stream)
        assert isinstance(stream.answer, Answer)
        assert stream.answer.text == text


def test_run_and_stream_give_the_same(pair: Paired, tiny: Engine) -> None:
    with pair.session("local", tiny) as session:
        prompt = [note("a note"), question("a")]
        assert session.run(prompt, max_new_tokens=9).text == "".join(session.stream(prompt, max_new_tokens=9))


def test_one_session_runs_many_prompts_in_order(pair: Paired, tiny: Engine, tiny_on_cloud: Engine) -> None:
    with pair.session("sealed-prefill", tiny, pair.service(tiny_on_cloud)) as session:
        answers = [session.run([question(text)], max_new_tokens=3) for text in ("a", "b", "a")]
    assert answers[0].token_ids == answers[2].token_ids
    assert [answer.audit_size for answer in answers] == [2, 4, 6]


def test_public_takes_a_file_and_names_it_as_source(tmp_path: Path) -> None:
    path = tmp_path / "manual.md"
    path.write_text("the manual")
    segment = public(path=path)
    assert (segment.text, segment.source, segment.label) == ("the manual", str(path), splitinfer.segments.Label.PUBLIC)
    with pytest.raises(UsageError):
        public("text", path=path)
    with pytest.raises(UsageError):
        note()
    with pytest.raises(PromptError, match="cannot be read"):
        public(path=tmp_path / "none.md")


def test_session_that_ends_before_its_stream_logs_it_as_aborted(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine
) -> None:
    with pair.session("sealed-decode", tiny, pair.service(tiny_on_cloud)) as session:
        stream = session.stream([question("a")], max_new_tokens=40, temperature=2.0)
        pieces = iter(stream)
        next(pieces)
    last = pair.last
    with contextlib.suppress(AuditLogError):
        stream.close()
    assert (last["type"], last["status"]) == ("outcome", "aborted")
    assert last["bytes_sent"] > 0


def test_policy_rule_demotes_a_public_file_and_promotes_an_unlabelled_one(
    pair: Paired, tiny: Engine, tiny_on_cloud: Engine, tmp_path: Path
) -> None:
    nda, manual = tmp_path / "nda.md", tmp_path / "manual.md"
    nda.write_text("secret terms")
    manual.write_text("public words")
    rules = [{"source": str(manual), "label": "public"}, {"pattern": "*nda*", "label": "private"}]
    policy = policy_of("public-prefix", segments={"rule": rules})
    prompt = [document(path=manual), public(path=nda), question("a")]
    answer = pair.run(policy, prompt, tiny, pair.service(tiny_on_cloud), max_new_tokens=2)
    assert 0 < answer.public_tokens < answer.prompt_tokens
    assert answer.prefilled_by_cloud_tokens == tiny.tokenize([public("public words"), *prompt[1:]]).segment_lengths[0]


def test_unknown_sampling_word_is_refused(pair: Paired, tiny: Engine) -> None:
    with pair.session("local", tiny) as session, pytest.raises(UsageError, match="sampling takes"):
        session.run([question("a")], max_tokens=5)


def test_unknown_policy_is_refused(tmp_path: Path, tiny: Engine) -> None:
    with pytest.raises(PolicyError):
        Session.open("no-such-policy", home=tmp_path / "home", engine=tiny)


def test_messages_are_private_text_of_the_user(pair: Paired, tiny: Engine) -> None:
    answer = pair.run("local", [message("hello"), message("again")], tiny, max_new_tokens=2)
    assert answer.public_tokens == 0


def test_nothing_with_text_shows_it_in_its_repr(pair: Paired, tiny: Engine) -> None:
    segment = note("Zanzibar")
    answer = pair.run("local", [segment], tiny, max_new_tokens=4)
    assert "Zanzibar" not in repr(segment)
    assert "token_ids" not in repr(answer)
    assert answer.text == "" or answer.text not in repr(answer)
