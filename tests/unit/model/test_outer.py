"""A model without its large matrices: what is loaded, by name; what can be computed with it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splitinfer.errors import UnsupportedModelError, UsageError
from splitinfer.handoff import SamplingParams
from splitinfer.model.engine import Engine
from splitinfer.model.layerwise import LocalAttention, LocalLinear
from splitinfer.model.loading import load
from tests.support import tiny_models

OF_LAYERS = ("input_layernorm", "post_attention_layernorm")
NORMS = {f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in OF_LAYERS}
HEAD_NORMS = {f"model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in ("q_norm", "k_norm")}
ALWAYS = {"model.embed_tokens.weight", "model.norm.weight", *NORMS}


def outer(directory: Path) -> Engine:
    return Engine(load(str(directory), matrices=False))


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A tiny Llama whose head is its embeddings."""
    directory = tiny_models.build(tmp_path / "tied")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(directory / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "lm_head.weight"}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(("kind", "more"), [("llama", set()), ("qwen3", HEAD_NORMS)])
def test_only_embeddings_and_norms_are_loaded(tmp_path: Path, kind: str, more: set[str]) -> None:
    assert set(outer(tiny_models.build(tmp_path / kind, kind)).loaded_names) == ALWAYS | more


def test_a_tied_head_is_the_embeddings_and_takes_no_more(tied: Path) -> None:
    assert set(outer(tied).loaded_names) == ALWAYS


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_step_with_the_matrices_elsewhere_is_that_of_the_whole(tmp_path: Path, tied: Path, is_tied: bool) -> None:
    directory = tied if is_tied else tiny_models.build(tmp_path / "qwen3", "qwen3")
    whole, part = Engine(load(str(directory))), outer(directory)
    elsewhere = LocalLinear(whole.matrices()).linear
    expected, found = (
        engine.layerwise().step(5, 3, attend=LocalAttention(2).attend, linear=elsewhere) for engine in (whole, part)
    )
    assert np.array_equal(found, expected)
    assert (part.layout, part.numerics, part.identity) == (whole.layout, whole.numerics, whole.identity)
    assert part.operation_shapes() == {key: matrix.shape for key, matrix in whole.operations().items()}


def test_nothing_else_can_be_computed_with_it(tmp_path: Path) -> None:
    part = outer(tiny_models.build(tmp_path / "llama"))
    for compute in (
        lambda: part.prefill([1, 2], steps=[(0, 2)]),
        lambda: part.start_prefill([1, 2], steps=[(0, 2)]),
        lambda: part.burn(2),
        lambda: part.decode(None, last_token=1, params=SamplingParams()),
        part.matrices,
    ):
        with pytest.raises(UsageError, match="without its large matrices"):
            compute()


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        outer(tiny_models.build(tmp_path / "gpt2", "gpt2"))


@pytest.mark.parametrize(
    ("change", "says"),
    [(None, "lack 1 of the model's embeddings"), (torch.zeros(3), "model.norm.weight has another shape")],
    ids=["absent", "another shape"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: torch.Tensor | None, says: str) -> None:
    directory = tiny_models.build(tmp_path / "llama")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors | ({} if change is None else {"model.norm.weight": change}), directory / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=says):
        outer(directory)
