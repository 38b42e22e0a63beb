from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import ManifestError
from splitinfer.sealing.encoding import canonical, parse_canonical, prefixed

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
objects = st.dictionaries(st.text(max_size=8), values, max_size=5)


@given(value=objects)
@settings(deadline=None, max_examples=25)
def test_canonical_json_comes_back(value: dict[str, object]) -> None:
    assert parse_canonical(canonical(value), what="value") == value


@given(value=objects)
@settings(deadline=None, max_examples=25)
def test_any_other_encoding_of_the_same_value_is_refused(value: dict[str, object]) -> None:
    for other in (json.dumps(value, indent=1).encode(), b" " + canonical(value), canonical(value) + b"\n"):
        if other != canonical(value):
            with pytest.raises(ManifestError):
                parse_canonical(other, what="value")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff",
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":1.0}',
        b'{"a":-0}',
        b'{"a":9007199254740993}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\\u0041"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda data: data[:20].decode("latin-1"),
)
def test_what_is_not_one_canonical_object_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_canonical(data, what="value")


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_parsed_or_refused_by_a_typed_error(data: bytes) -> None:
    try:
        assert canonical(parse_canonical(data, what="value")) == data
    except ManifestError:
        return


def test_an_error_names_what_was_parsed_and_none_of_it() -> None:
    with pytest.raises(ManifestError, match="the thing is not JSON") as caught:
        parse_canonical(b"canary", what="thing")
    assert "canary" not in str(caught.value)


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=20)
def test_a_prefix_states_the_length(data: bytes) -> None:
    assert int.from_bytes(prefixed(data)[:4], "big") == len(data)
    assert prefixed(data)[4:] == data
