"""Engines over tiny random models, without a directory."""

from __future__ import annotations

from pathlib import Path

from splitinfer.handoff import ModelIdentity, Numerics
from splitinfer.model.engine import Engine
from splitinfer.model.loading import LoadedModel
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.cache_models import tiny_model


def engine_of(name: str = "llama", dtype: str = "float32", eos: frozenset[int] = frozenset()) -> Engine:
    return Engine(
        LoadedModel(
            model=tiny_model(name, dtype),
            tokenizer=byte_tokenizer(),
            identity=ModelIdentity("a" * 64, "b" * 64, "c" * 64),
            numerics=Numerics("2", "cpu", dtype, "sdpa", 1),
            max_positions=2048,
            eos_token_ids=eos,
            directory=Path("nowhere"),
        )
    )
