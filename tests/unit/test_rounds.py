from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import rounds
from splitinfer.errors import LimitExceededError, ManifestError, ReplayError, TruncatedError
from splitinfer.rounds import Operation, Record, require_reply

RECORD = Record(7, 3, Operation.SCORES, (b"first", b"", b"second"))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from(Operation),
    st.lists(st.binary(max_size=40), max_size=5),
)
def test_a_record_comes_back_from_its_bytes(step: int, layer: int, operation: Operation, blobs: list[bytes]) -> None:
    record = Record(step, layer, operation, tuple(blobs))
    assert Record.from_bytes(record.to_bytes()) == record
    assert record.size_bytes == len(record.to_bytes())


@pytest.mark.parametrize("length", range(len(RECORD.to_bytes())))
def test_every_truncated_record_is_refused(length: int) -> None:
    with pytest.raises(TruncatedError):
        Record.from_bytes(RECORD.to_bytes()[:length])


def test_a_record_that_goes_on_is_refused() -> None:
    with pytest.raises(TruncatedError, match="goes on for 1 bytes"):
        Record.from_bytes(RECORD.to_bytes() + b"\0")


def test_an_oversized_record_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MAX_RECORD_BYTES", 20)
    with pytest.raises(LimitExceededError, match="above the limit of 20"):
        Record.from_bytes(RECORD.to_bytes())


def test_an_operation_that_is_not_in_the_table_is_refused() -> None:
    data = bytearray(RECORD.to_bytes())
    data[12] = 200
    with pytest.raises(ManifestError, match="operation 200"):
        Record.from_bytes(bytes(data))


@pytest.mark.parametrize(
    "reply",
    [
        Record(6, 3, Operation.SCORES, (b"x",)),
        Record(7, 2, Operation.SCORES, (b"x",)),
        Record(7, 3, Operation.OUTPUTS, (b"x",)),
    ],
    ids=["an earlier step", "another layer", "another operation"],
)
def test_a_reply_to_another_request_is_refused(reply: Record) -> None:
    with pytest.raises(ReplayError, match="was asked"):
        require_reply(RECORD, reply, blobs=1)


def test_a_reply_with_another_number_of_ciphertexts_is_refused() -> None:
    with pytest.raises(TruncatedError, match="has 1 blobs, expected 2"):
        require_reply(RECORD, Record(7, 3, Operation.SCORES, (b"x",)), blobs=2)


def test_a_record_does_not_show_its_blobs() -> None:
    assert "first" not in repr(RECORD)
