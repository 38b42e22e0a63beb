from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from splitinfer.errors import UsageError
from splitinfer.evaluation.foreign import FORMAT, INDEX, MLX_NAMES, Names, attack_directory, convert, read_directory
from splitinfer.model.loading import LoadedModel, load
from splitinfer.model.prefill import prefill
from tests.support import tiny_models

IDS = [9, 40, 77, 120, 33, 201]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory: Path = tmp_path_factory.mktemp("foreign") / "llama"
    return load(str(tiny_models.build(directory)))


def dump(loaded: LoadedModel, path: Path, names: Names, dtype: torch.dtype = torch.float32) -> Path:
    """Write a cache as another system would, the batch of 1 included."""
    layers = prefill(loaded.model, IDS, steps=[(0, len(IDS))]).layers
    tensors = {}
    for number, layer in enumerate(layers):
        for pattern, part in ((names.keys, "keys"), (names.values, "values")):
            rows = layer["keys" if part == "keys" else "values"].to(dtype)
            tensors[pattern.format(layer=number)] = (rows.transpose(1, 2) if names.rows_first else rows).contiguous()
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("names", [MLX_NAMES, Names("m.{layer}.k", "m.{layer}.v", rows_first=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dump_of_another_system_is_converted_and_read_back_by_attacks(
    loaded: LoadedModel, tmp_path: Path, names: Names, dtype: torch.dtype
) -> None:
    convert({dump(loaded, tmp_path / "dump.safetensors", names, dtype): IDS}, tmp_path / "captures", names=names)
    (capture,) = read_directory(tmp_path / "captures")
    assert capture.cache.layers == (0, 1)
    assert capture.is_half == (dtype is torch.bfloat16)
    figures = attack_directory(tmp_path / "captures", loaded, attacks=["dictionary", "posterior-last-layer"])
    assert {row["attack"]: row["tokens_recovered"] for row in figures["attacks"]} == {
        "dictionary": len(IDS),
        "posterior-last-layer": len(IDS),
    }


def test_a_dump_with_other_names_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = dump(loaded, tmp_path / "dump.safetensors", MLX_NAMES)
    with pytest.raises(UsageError, match="no tensors named"):
        convert({path: IDS}, tmp_path / "captures", names=Names("a.{layer}", "b.{layer}"))


GOOD = {"file": "0.safetensors", "tokens": 2, "token_ids": [1, 2]}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "no readable"),
        ("[]", "format"),
        (json.dumps({"format": "other/1", "captures": []}), "format"),
        (json.dumps({"format": FORMAT, "captures": [{**GOOD, "file": "../x"}]}), "file name"),
        (json.dumps({"format": FORMAT, "captures": [{**GOOD, "token_ids": [1]}]}), "as many token_ids"),
        (json.dumps({"format": FORMAT, "captures": [GOOD]}), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(tmp_path: Path, index: str, words: str) -> None:
    (tmp_path / INDEX).write_text(index, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        list(read_directory(tmp_path))


@pytest.mark.parametrize(
    ("name", "shape"), [("layers.0.queries", (2, 2, 8)), ("layers.0.keys", (2, 8)), ("layers.0.keys", (2, 3, 8))]
)
def test_a_tensor_of_another_form_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    save_file({name: torch.zeros(shape)}, tmp_path / "0.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"format": FORMAT, "captures": [GOOD]}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"layers\.N\.keys"):
        list(read_directory(tmp_path))


def test_a_cache_of_another_model_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    save_file({"layers.0.keys": torch.zeros(2, 2, 64)}, tmp_path / "0.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"format": FORMAT, "captures": [GOOD]}), encoding="utf-8")
    with pytest.raises(UsageError, match="not of this model"):
        attack_directory(tmp_path, loaded, attacks=["dictionary"])
