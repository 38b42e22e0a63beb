import json
import struct

import pytest

from splitinfer.errors import ModelNotFoundError, UnsupportedModelError
from splitinfer.model import identity
from splitinfer.model.identity import DigestCache, identify, weights_digest
from tests.support.tiny_models import build


def write(path, tensors):
    header, data = {}, b""
    for name, value in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(value)], "data_offsets": [len(data), len(data) + len(value)]}
        data += value
    write_raw(path, header, data)


def write_raw(path, header, data):
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def flip_last_byte(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


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


def test_one_other_element_gives_another_weights_digest_alone(tmp_path):
    directory = build(tmp_path)
    before = identify(directory)
    flip_last_byte(directory / "model.safetensors")
    after = identify(directory)
    assert after.weights_sha256 != before.weights_sha256
    assert (after.config_sha256, after.tokenizer_sha256) == (before.config_sha256, before.tokenizer_sha256)


def test_changed_weights_are_not_answered_from_the_cache(tmp_path):
    directory, cache = build(tmp_path / "m"), DigestCache(tmp_path / "digests.json")
    before = identify(directory, cache=cache)
    flip_last_byte(directory / "model.safetensors")
    after = identify(directory, cache=cache)
    assert after == identify(directory)
    assert after.weights_sha256 != before.weights_sha256


def test_unchanged_weights_are_not_read_again(tmp_path, monkeypatch):
    directory, cache = build(tmp_path / "m"), DigestCache(tmp_path / "digests.json")
    before = identify(directory, cache=cache)
    monkeypatch.setattr(identity, "tensor_digests", None)
    assert identify(directory, cache=cache) == before


@pytest.mark.parametrize(
    ("offsets", "data"),
    [
        ([(0, 4), (2, 6)], b"123456"),
        ([(0, 4), (0, 4)], b"1234"),
        ([(0, 4), (5, 9)], b"123456789"),
        ([(0, 4), (4, 8)], b"123456789"),
        ([(0, 4), (4, 8)], b"1234567"),
    ],
)
def test_tensors_that_overlap_or_leave_a_hole_are_refused(tmp_path, offsets, data):
    header = {f"t{i}": {"dtype": "U8", "shape": [4], "data_offsets": list(span)} for i, span in enumerate(offsets)}
    write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(UnsupportedModelError):
        weights_digest(tmp_path)


@pytest.mark.parametrize("change", [{"shape": [3]}, {"dtype": "F32"}, {"dtype": "C64"}, {"data_offsets": [-1, 3]}])
def test_tensor_whose_size_does_not_fit_its_type_is_refused(tmp_path, change):
    tensor = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **change}
    write_raw(tmp_path / "model.safetensors", {"t": tensor}, b"1234")
    with pytest.raises(UnsupportedModelError):
        weights_digest(tmp_path)


def test_name_that_occurs_twice_in_a_header_is_refused(tmp_path):
    tensor = '"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    raw = f"{{{tensor}, {tensor}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"1")
    with pytest.raises(UnsupportedModelError, match="unique"):
        weights_digest(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "pytorch_model.bin"])
def test_index_that_points_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UnsupportedModelError, match="outside"):
        weights_digest(tmp_path)


def test_names_and_versions_do_not_count_but_settings_do(tmp_path):
    directory = build(tmp_path)
    path, before = directory / "config.json", identify(directory)
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_name_or_path": "other", "transformers_version": "9"}, indent=7))
    assert identify(directory) == before
    path.write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert identify(directory).config_sha256 != before.config_sha256


def test_another_chat_template_gives_another_tokenizer_digest(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", template="{{ messages[0]['content'] }}")
    assert identify(first).tokenizer_sha256 != identify(second).tokenizer_sha256
