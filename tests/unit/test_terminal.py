"""What a model or another machine wrote may not steer a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.cli.terminal import for_terminal, printable
from splitinfer.errors import ManifestError
from splitinfer.sealing.encoding import canonical
from splitinfer.sealing.heads import ReplyHead
from splitinfer.sealing.wire import parse_wire


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = for_terminal(text, stream=Terminal())
    assert all(letter in "\n\t" or (letter >= " " and not "\x7f" <= letter <= "\x9f") for letter in shown)
    assert len(shown) == len(text)


def test_text_for_a_file_is_left_as_it_is() -> None:
    assert for_terminal("\x1b[2J", stream=io.StringIO()) == "\x1b[2J"
    assert printable("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "two\nlines", "caf\u00e9"])
def test_a_member_name_of_the_sender_is_not_quoted(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_wire(ReplyHead, canonical({name: 1, "version": 1}), what="reply head")
    assert name not in str(caught.value)
    assert str(caught.value).isprintable()
