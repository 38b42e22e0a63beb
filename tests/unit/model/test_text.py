"""Rules of incremental text: what was released never changes, and equals the text of all ids at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from splitinfer.model.text import TextStream
from tests.support.byte_tokenizer import END, byte_tokenizer

TOKENIZER = byte_tokenizer()


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def run(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stop)
    pieces = [stream.push(token) for token in ids]
    return [*pieces, stream.finish()], stream


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30))
def test_pieces_join_to_the_text_without_its_leading_whitespace(text: str) -> None:
    pieces, stream = run(encode(text))
    assert "".join(pieces) == stream.text == text.lstrip()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, END), max_size=40))
def test_any_ids_give_what_the_tokenizer_decodes_at_once(ids: list[int]) -> None:
    pieces, _ = run(ids)
    whole = TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == whole.lstrip()


def test_character_split_over_tokens_comes_out_whole_with_its_last_byte() -> None:
    pieces, _ = run(encode("a\N{EURO SIGN}\N{GRINNING FACE}b"))
    assert pieces == ["a", "", "", "\N{EURO SIGN}", "", "", "", "\N{GRINNING FACE}", "b", ""]


def test_incomplete_character_at_the_end_is_released_by_finish() -> None:
    pieces, stream = run(encode("a\N{EURO SIGN}")[:-1])
    assert pieces == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert stream.text == "a\N{REPLACEMENT CHARACTER}"


def test_special_tokens_are_skipped() -> None:
    assert "".join(run([*encode("ab"), END, *encode("c")])[0]) == "abc"


def test_leading_whitespace_is_dropped_once_and_later_whitespace_kept() -> None:
    assert run(encode(" \n a  b "))[1].text == "a  b "


def test_text_before_a_stop_string_is_kept_and_nothing_after_it() -> None:
    pieces, stream = run(encode("one. two. three"), (". t",))
    assert stream.stopped
    assert "".join(pieces) == stream.text == "one"


def test_possible_start_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    stream = TextStream(TOKENIZER, ("##",))
    assert [stream.push(token) for token in encode("a#b#")] == ["a", "", "#b", ""]
    assert stream.finish() == "#"
    assert not stream.stopped


def test_stop_string_inside_a_token_ends_the_text_inside_it() -> None:
    _, stream = run(encode("xthe"), ("h",))
    assert (stream.text, stream.stopped) == ("xt", True)


def test_stop_string_that_is_complete_first_wins_inside_one_token() -> None:
    assert run(encode("xthe"), ("the", "h"))[1].text == "xt"


def test_nothing_is_released_after_a_stop_string() -> None:
    stream = TextStream(TOKENIZER, ("b",))
    pieces = [stream.push(token) for token in encode("abcd")]
    assert (pieces, stream.finish()) == (["a", "", "", ""], "")


def _reference(text: str, stop: tuple[str, ...]) -> str:
    text = text.lstrip()
    for end in range(1, len(text) + 1):
        ended = [stop_string for stop_string in stop if text[:end].endswith(stop_string)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


@settings(deadline=None, max_examples=300)
@given(st.text("abh \N{EURO SIGN}te", max_size=30), st.lists(st.text("abht\N{EURO SIGN}e", min_size=1), max_size=4))
def test_the_stop_string_that_is_complete_first_ends_the_text(text: str, stop: list[str]) -> None:
    pieces, stream = run(encode(text), tuple(stop))
    assert "".join(pieces) == stream.text == _reference(text, tuple(stop))
    assert stream.stopped == (stream.text != text.lstrip())


def test_cost_of_a_token_does_not_grow_with_the_text() -> None:
    lengths: list[int] = []

    class Spy:
        def decode(self, token_ids: list[int], **options: bool) -> str:
            lengths.append(len(token_ids))
            return str(TOKENIZER.decode(token_ids, **options))

    stream = TextStream(Spy())
    for token in encode("some text " * 50):
        stream.push(token)
    assert max(lengths) <= 2


@pytest.mark.parametrize("text", [" $72.00", " caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CHECK MARK}"])
def test_metaspace_tokenizer_keeps_spaces_between_words(text: str) -> None:
    words = sorted({"\N{LOWER ONE EIGHTH BLOCK}" + word for word in text.split()})
    fast = Tokenizer(models.WordLevel(vocab={word: i for i, word in enumerate(words)}, unk_token=words[0]))
    fast.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast)
    stream = TextStream(tokenizer)
    ids = [words.index("\N{LOWER ONE EIGHTH BLOCK}" + word) for word in text.split()] * 3
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
