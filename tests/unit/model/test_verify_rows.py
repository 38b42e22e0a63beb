"""Rules of row checks: an honest cache passes, a changed row is found when it is chosen."""

from __future__ import annotations

import dataclasses
import math

import pytest

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import LayoutMismatchError, UnsupportedCacheError, UsageError, VerificationError
from splitinfer.model.engine import Engine
from splitinfer.model.verify_rows import verify_rows
from tests.support.cache_models import MODEL_NAMES, WINDOW, chunked, tiny_tokens
from tests.support.engines import engine_of

TOKENS = WINDOW - 1
IDS = tiny_tokens(TOKENS)
TOLERANCE = 1e-4


def received(engine: Engine, tokens: int = TOKENS, chunk: int = 7) -> CacheSnapshot:
    return engine.prefill(tiny_tokens(tokens), steps=chunked(tokens, chunk))


def changed(snapshot: CacheSnapshot, *, layer: int, part: str, row: int, factor: float) -> CacheSnapshot:
    """Scale one element of one row of one layer."""
    tensors = {name: tensor.clone() for name, tensor in snapshot.layers[layer].items()}
    largest = tensors[part][0, :, row].abs().flatten().argmax()
    heads, dim = divmod(int(largest), tensors[part].shape[3])
    tensors[part][0, heads, row, dim] *= factor
    layers = list(snapshot.layers)
    layers[layer] = tensors
    return dataclasses.replace(snapshot, layers=tuple(layers))


@pytest.mark.parametrize("chunk", [1, 4, 7, TOKENS])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_row_of_an_honest_cache_passes_whatever_the_steps(name: str, chunk: int) -> None:
    engine = engine_of(name)
    verify_rows(engine, IDS, received(engine, chunk=chunk), rows=range(TOKENS), tolerance=TOLERANCE)


def test_honest_bfloat16_cache_passes_at_a_tolerance_of_its_precision() -> None:
    engine = engine_of("llama", "bfloat16")
    verify_rows(engine, IDS, received(engine), rows=range(TOKENS), tolerance=0.05)


@pytest.mark.parametrize("row", [0, 6, TOKENS - 1])
@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("layer", [0, 1])
def test_changed_row_is_found_when_it_is_chosen(layer: int, part: str, row: int) -> None:
    engine = engine_of("llama")
    cache = changed(received(engine), layer=layer, part=part, row=row, factor=1.01)
    with pytest.raises(VerificationError, match=f"{part} of layer {layer}"):
        verify_rows(engine, IDS, cache, rows=[row], tolerance=TOLERANCE)


def test_row_before_the_changed_one_passes() -> None:
    engine = engine_of("llama")
    cache = changed(received(engine), layer=0, part="values", row=6, factor=2.0)
    verify_rows(engine, IDS, cache, rows=range(6), tolerance=TOLERANCE)


def test_row_that_is_not_a_number_is_found() -> None:
    engine = engine_of("llama")
    cache = changed(received(engine), layer=1, part="values", row=3, factor=math.nan)
    with pytest.raises(VerificationError):
        verify_rows(engine, IDS, cache, rows=[3], tolerance=TOLERANCE)


def test_cache_of_another_prompt_is_found() -> None:
    engine = engine_of("llama")
    with pytest.raises(VerificationError):
        verify_rows(engine, IDS[::-1], received(engine), rows=[0], tolerance=TOLERANCE)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_cache_longer_than_a_window_cannot_be_checked_and_is_refused(name: str) -> None:
    engine = engine_of(name)
    with pytest.raises(UnsupportedCacheError, match="earlier rows are gone"):
        verify_rows(engine, tiny_tokens(40), received(engine, 40), rows=[20], tolerance=TOLERANCE)


def test_no_rows_ask_nothing_of_a_cache_that_cannot_be_checked() -> None:
    engine = engine_of("mistral")
    verify_rows(engine, tiny_tokens(40), received(engine, 40), rows=[], tolerance=TOLERANCE)


@pytest.mark.parametrize("row", [-1, TOKENS])
def test_row_outside_the_cache_is_refused(row: int) -> None:
    engine = engine_of("llama")
    with pytest.raises(UsageError, match="outside the cache"):
        verify_rows(engine, IDS, received(engine), rows=[row], tolerance=TOLERANCE)


def test_layout_of_another_model_is_refused() -> None:
    with pytest.raises(LayoutMismatchError):
        verify_rows(engine_of("mistral"), IDS, received(engine_of("llama")), rows=[0], tolerance=TOLERANCE)


def test_prompt_shorter_than_the_cache_is_refused() -> None:
    engine = engine_of("llama")
    with pytest.raises(LayoutMismatchError):
        verify_rows(engine, IDS[:-1], received(engine), rows=[0], tolerance=TOLERANCE)
