"""Rules of the engine: one loaded model behind few calls; pieces and tail make the text; work is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitinfer.cache.snapshot import layout_of
from splitinfer.handoff import SamplingParams
from splitinfer.model.engine import Engine
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.cache_models import chunked, tiny_model, tiny_tokens
from tests.support.engines import engine_of

PROMPT = tiny_tokens(20)


def decode(engine: Engine, **params: Any) -> tuple[list[tuple[int, str]], Any]:
    snapshot = engine.prefill(PROMPT, steps=chunked(len(PROMPT) - 1))
    options = {"max_new_tokens": 40, "temperature": 2.0, "seed": 3, **params}
    decoding = engine.decode(snapshot, last_token=PROMPT[-1], params=SamplingParams(**options))
    return list(decoding), decoding


def test_engine_tells_what_was_loaded() -> None:
    engine = engine_of("gemma3_text", eos=frozenset({2}))
    assert (engine.identity.weights_sha256, engine.numerics.dtype) == ("a" * 64, "float32")
    assert (engine.max_positions, engine.eos_token_ids) == (2048, frozenset({2}))
    assert engine.layout == layout_of(tiny_model("gemma3_text"))


def test_pieces_and_tail_are_the_text_of_the_tokens() -> None:
    pairs, decoding = decode(engine_of())
    text = byte_tokenizer().decode([token for token, _ in pairs], skip_special_tokens=True)
    assert "".join(piece for _, piece in pairs) + decoding.tail == decoding.text == text.lstrip()
    assert decoding.token_ids == tuple(token for token, _ in pairs)
    assert decoding.finish_reason == "length"


def test_text_of_tokens_decoded_elsewhere_is_the_same() -> None:
    engine = engine_of()
    _, first = decode(engine)
    stop = (first.text[len(first.text) // 2 :][:2],)
    pairs, decoding = decode(engine, stop=stop)
    stream = engine.text_stream(stop)
    elsewhere = "".join(map(stream.push, decoding.token_ids)) + stream.finish()
    assert decoding.finish_reason == "stop"
    assert len(pairs) < 40
    assert elsewhere == decoding.text == first.text[: first.text.index(stop[0])]


def test_asking_again_after_the_end_changes_nothing() -> None:
    _, decoding = decode(engine_of())
    text, tail = decoding.text, decoding.tail
    assert list(decoding) == []
    assert (decoding.text, decoding.tail) == (text, tail)


def test_end_of_text_of_the_loaded_model_ends_the_answer() -> None:
    pairs, _ = decode(engine_of())
    end = next(token for token, _ in pairs[5:] if token not in [first for first, _ in pairs[:5]])
    ended, decoding = decode(engine_of(eos=frozenset({end})))
    assert [token for token, _ in ended] == [token for token, _ in pairs][: [token for token, _ in pairs].index(end)]
    assert decoding.finish_reason == "end_of_text"


def test_work_is_counted_and_burnt_time_is_not() -> None:
    engine = engine_of()
    assert (engine.prefilled_tokens, engine.decoded_tokens) == (0, 0)
    snapshot = engine.prefill(PROMPT, steps=[(0, 5)])
    engine.prefill(PROMPT, steps=[(5, 19)], onto=snapshot)
    engine.burn(100)
    assert engine.prefilled_tokens == 19
    decode(engine, max_new_tokens=7)
    assert (engine.prefilled_tokens, engine.decoded_tokens) == (38, 7)


def test_closing_early_ends_the_answer_and_keeps_the_snapshot() -> None:
    engine = engine_of()
    snapshot = engine.prefill(PROMPT, steps=chunked(len(PROMPT) - 1))
    keys = snapshot.layers[0]["keys"].clone()
    decoding = engine.decode(snapshot, last_token=PROMPT[-1], params=SamplingParams())
    next(decoding)
    decoding.close()
    assert list(decoding) == []
    assert decoding.finish_reason is None
    assert torch.equal(snapshot.layers[0]["keys"], keys)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_progress_reaches_the_caller(name: str) -> None:
    seen: list[int] = []
    engine_of(name).prefill(PROMPT, steps=[(0, 8), (8, 19)], progress=seen.append)
    assert seen == [8, 19]
