import json

import pytest

from splitinfer.errors import ModelMismatchError, ModelNotFoundError, UnsupportedCacheError, UnsupportedModelError
from splitinfer.model.loading import load
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
