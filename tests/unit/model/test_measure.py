"""Rules of measuring a codec's loss: nothing moved costs nothing, more rounding costs more, short texts are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from splitinfer import codec
from splitinfer.cache.live import feed, logits_of
from splitinfer.cache.snapshot import CacheSnapshot, restore
from splitinfer.errors import UsageError
from splitinfer.handoff import ModelIdentity, Numerics
from splitinfer.model.loading import LoadedModel
from splitinfer.model.measure import measure, windows
from splitinfer.model.prefill import prefill
from tests.support.architectures import tiny_architecture
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.cache_models import tiny_model

TEXTS = ["Torvan kettle: price $48.50, stock 120 units. " * 8, "Belsa lamp: price $19.90, stock 36 units. " * 8]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    identity, numerics = ModelIdentity("a" * 64, "b" * 64, "c" * 64), Numerics("2", "cpu", "float32", "sdpa", 1)
    return LoadedModel(tiny_model("llama"), byte_tokenizer(), identity, numerics, 2048, frozenset(), None)


def test_windows_are_taken_in_turn_and_do_not_overlap(loaded: LoadedModel) -> None:
    found = windows(loaded, TEXTS, context_tokens=40, scored_tokens=8, limit=4)
    assert {len(window.token_ids) for window in found} == {49}
    assert {window.context_tokens for window in found} == {40}
    whole = [tuple(loaded.tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]
    assert [window.token_ids for window in found] == [
        whole[0][:49], whole[1][:49], whole[0][49:98], whole[1][49:98],
    ]  # fmt: skip


def test_texts_too_short_for_two_windows_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="too short"):
        windows(loaded, ["short"], context_tokens=40, scored_tokens=8, limit=4)


def test_an_exact_codec_costs_nothing_and_rounding_costs_more_the_harder_it_is(loaded: LoadedModel) -> None:
    scored = windows(loaded, TEXTS, context_tokens=70, scored_tokens=8, limit=3)
    seen: list[tuple[int, int]] = []
    exact = measure(loaded, scored, through=partial(codec.move, codec="lossless"), progress=lambda *x: seen.append(x))
    assert (exact.kl_nats, exact.kl_error_nats, exact.top1_agreement, exact.perplexity_ratio) == (0.0, 0.0, 1.0, 1.0)
    assert exact.tokens == 24
    assert seen == [(1, 3), (2, 3), (3, 3)]
    q8, q4 = (measure(loaded, scored, through=partial(codec.move, codec=name)) for name in ("q8", "q4"))
    assert 0 < q8.kl_nats < q4.kl_nats


def test_a_destroyed_cache_is_found_out(loaded: LoadedModel) -> None:
    def zeroed(snapshot: CacheSnapshot) -> CacheSnapshot:
        moved = codec.move(snapshot, codec="raw")
        for layer in moved.layers:
            layer["values"].zero_()
        return moved

    scored = windows(loaded, TEXTS, context_tokens=70, scored_tokens=8, limit=3)
    assert (
        measure(loaded, scored, through=zeroed).kl_nats
        > measure(loaded, scored, through=partial(codec.move, codec="q4")).kl_nats
    )


@pytest.mark.parametrize("name", ["mamba2", "jamba", "qwen3_next"])
def test_a_destroyed_state_is_found_out(name: str) -> None:
    """Of models that take their cache by another name, go on token by token, or have states beside keys and values."""
    identity, numerics = ModelIdentity("a" * 64, "b" * 64, "c" * 64), Numerics("2", "cpu", "float32", "sdpa", 1)
    hybrid = LoadedModel(tiny_architecture(name), byte_tokenizer(), identity, numerics, 512, frozenset(), Path("none"))
    scored = windows(hybrid, TEXTS, context_tokens=20, scored_tokens=6, limit=2)

    def without_states(snapshot: CacheSnapshot) -> CacheSnapshot:
        moved = codec.move(snapshot, codec="raw")
        for layer in moved.layers:
            for part in set(layer) - {"keys", "values"}:
                layer[part].zero_()
        return moved

    exact = measure(hybrid, scored, through=partial(codec.move, codec="raw"))
    assert (exact.kl_nats, exact.perplexity_ratio) == (0.0, 1.0)
    assert measure(hybrid, scored, through=without_states).kl_nats > 0


@pytest.mark.parametrize("name", ["mamba", "jamba", "falcon_h1"])
def test_logits_are_those_of_feeding_one_token_after_another(name: str) -> None:
    model, ids = tiny_architecture(name), [(7 * index + 3) % 200 for index in range(24)]
    snapshot = prefill(model, ids[:16], steps=[(0, 16)])
    with torch.inference_mode():
        together = logits_of(model, ids[16:], restore(snapshot, model.config))
        cache = restore(snapshot, model.config)
        one_by_one = torch.cat([feed(model, [token], cache).logits[0] for token in ids[16:]])
    assert together.shape == one_by_one.shape
    torch.testing.assert_close(together, one_by_one, rtol=1e-3, atol=1e-4)
