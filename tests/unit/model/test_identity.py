import json
import struct

import pytest

from splitinfer.errors import ModelNotFoundError, UnsupportedModelError
from splitinfer.model.identity import DigestCache, identify, weights_digest
from tests.support.tiny_models import build


def write(path, tensors):
    header, data = {}, b""
    for name, value in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(value)], "data_offsets": [len(data), len(data) + len(value)]}
        data += value
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def shards(directory, *files):
    names = [f"s{i}.safetensors" for i in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        write(directory / name, tensors)
    index = {"weight_map": {f"{i}": name for i, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharding_does_not_change_the_digest(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    write(one / "model.safetensors", {"a": b"1", "b": b"22"})
    shards(two, {"b": b"22"}, {"a": b"1"})
    assert weights_digest(one) == weights_digest(two)


def test_same_tensor_in_two_shards_is_refused(tmp_path):
    shards(tmp_path, {"a": b"1"}, {"a": b"1"})
    with pytest.raises(UnsupportedModelError):
        weights_digest(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}x"])
def test_malformed_safetensors_is_refused(tmp_path, raw):
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(UnsupportedModelError):
        weights_digest(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match="pickled"):
        weights_digest(tmp_path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        weights_digest(tmp_path)


def test_corrupt_cache_is_ignored_and_rewritten(tmp_path):
    directory, file = build(tmp_path / "m"), tmp_path / "digests.json"
    file.write_text("{")
    first = identify(directory, cache=DigestCache(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert first == identify(directory, cache=DigestCache(file)) == identify(directory)
