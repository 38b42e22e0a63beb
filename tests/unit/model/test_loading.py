import json
import shutil

import pytest

from splitinfer.errors import ModelMismatchError, ModelNotFoundError, UnsupportedCacheError, UnsupportedModelError
from splitinfer.model import loading
from splitinfer.model.identity import identify
from splitinfer.model.loading import load, resolve_source
from tests.support.tiny_models import KINDS, build


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_models_load_in_eval_without_gradients(tmp_path, kind):
    loaded = load(str(build(tmp_path, kind)))
    assert loaded.max_positions == 512
    assert 2 in loaded.eos_token_ids
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_pinned_digest_mismatch_names_both(tmp_path):
    with pytest.raises(ModelMismatchError, match="0" * 64):
        load(str(build(tmp_path)), expected_weights_sha256="0" * 64)


def test_missing_tokenizer_is_named(tmp_path):
    (build(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "error"),
    [({"auto_map": {}}, UnsupportedModelError), ({"model_type": "rwkv"}, UnsupportedCacheError)],
)
def test_refused_forms(tmp_path, change, error):
    path = build(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error):
        load(str(tmp_path))


def test_files_that_change_while_they_are_loaded_are_refused(tmp_path, monkeypatch):
    directory, other = build(tmp_path / "a"), build(tmp_path / "b", seed=1)

    def identify_then_change(path, *, cache):
        found = identify(path, cache=cache)
        shutil.copyfile(other / "model.safetensors", directory / "model.safetensors")
        return found

    monkeypatch.setattr(loading, "identify", identify_then_change)
    with pytest.raises(ModelMismatchError, match="changed while"):
        load(str(directory))


def test_right_pin_loads(tmp_path):
    pinned = identify(build(tmp_path))
    assert load(str(tmp_path), expected_weights_sha256=pinned.weights_sha256).identity == pinned


@pytest.mark.parametrize("source", ["splitinfer-tests/nowhere", "not/a/hub/id", "nowhere at all"])
def test_model_that_is_not_here_is_refused_and_fetch_is_named(source):
    with pytest.raises(ModelNotFoundError, match=f"splitinfer model fetch {source}"):
        resolve_source(source)


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="float64"):
        load(str(build(tmp_path)), dtype="float64")


def test_shard_that_is_missing_is_named(tmp_path):
    (build(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(ModelNotFoundError, match=r"one\.safetensors"):
        load(str(tmp_path))
