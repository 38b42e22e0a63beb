r"""Identifies a model by what it is, never by its name: a model directory -> ModelIdentity; both sides, no torch.

Every digest is lower-case hex SHA-256 over a context line followed by canonical JSON (RFC 8785), UTF-8:

- weights: `splitinfer/v1 weights\n`, then an array of [name, dtype, shape, hex SHA-256 of the tensor's bytes], sorted
  by name in code point order; dtype is the safetensors word ("BF16"), shape an array of integers.
- config: `splitinfer/v1 config\n`, then config.json without the keys `_name_or_path`, `transformers_version`, `dtype`
  and `torch_dtype` at any depth. Numbers with a fraction or exponent become the string of their RFC 8785 form (1e-05 is
  "0.00001"), integers beyond 2^53 - 1 their decimal string.
- tokenizer: `splitinfer/v1 tokenizer\n`, then an object: `tokenizer_json` and `chat_template`, hex SHA-256 of the
  bytes of the file and of the UTF-8 template (chat_template.jinja, else canonical JSON of tokenizer_config.json's
  `chat_template`, else null); `special_tokens`, those members of tokenizer_config.json whose key ends in `_token` or
  `_special_tokens` or is `tokenizer_class` or `added_tokens_decoder`; `special_tokens_map`, that file or null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rfc8785

from splitinfer.errors import ModelNotFoundError, UnsupportedModelError
from splitinfer.handoff import ModelIdentity
from splitinfer.model.digest_cache import DigestCache
from splitinfer.model.tensors import TensorDigest, tensor_digests

__all__ = [
    "DigestCache",
    "config_digest",
    "identify",
    "read_json",
    "tokenizer_digest",
    "weight_files",
    "weights_digest",
]

_INDEX = "model.safetensors.index.json"
_UNNAMED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
_MAX_SAFE_INTEGER = (1 << 53) - 1


def identify(directory: Path, *, cache: DigestCache | None = None) -> ModelIdentity:
    """Return the digests of the model in `directory`; only the weights digest is cached.

    Raises ModelNotFoundError for a missing file and UnsupportedModelError for a form that is refused.
    """
    return ModelIdentity(
        weights_sha256=_cached_weights(directory, cache),
        config_sha256=config_digest(directory),
        tokenizer_sha256=tokenizer_digest(directory),
    )


def _cached_weights(directory: Path, cache: DigestCache | None) -> str:
    if cache is None:
        return weights_digest(directory)
    files = weight_files(directory)
    key = cache.key(files)
    digest = cache.get(key)
    if digest is None:
        digest = weights_digest(directory)
        # Stored only if the files stood still meanwhile.
        if cache.key(files) == key:
            cache.put(key, digest)
    return digest


def weight_files(directory: Path) -> tuple[Path, ...]:
    """List the safetensors files that make up the weights, sorted.

    Raises ModelNotFoundError where there are none, UnsupportedModelError where there are only pickled ones.
    """
    index = directory / _INDEX
    if (directory / "model.safetensors").is_file():
        return (directory / "model.safetensors",)
    if index.is_file():
        return _shards(directory, read_json(index))
    if any(path for suffix in ("*.bin", "*.pt", "*.pth") for path in directory.glob(suffix)):
        raise UnsupportedModelError("the weights are pickled, which can run code; convert them to safetensors")
    raise ModelNotFoundError("the model directory lacks model.safetensors (or its index and shards)")


def _shards(directory: Path, index: Mapping[str, object]) -> tuple[Path, ...]:
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise UnsupportedModelError(f"{_INDEX} has no weight_map")
    names = {str(name) for name in mapping.values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsupportedModelError(f"{_INDEX} points outside the directory or to weights that are not safetensors")
        if not (directory / name).is_file():
            raise ModelNotFoundError(f"the model directory lacks the shard {name}")
    return tuple(directory / name for name in sorted(names))


def weights_digest(directory: Path) -> str:
    """Return the digest of all tensors, independent of how they are spread over shards."""
    tensors: dict[str, TensorDigest] = {}
    for path in weight_files(directory):
        for tensor in tensor_digests(path):
            if tensor.name in tensors:
                raise UnsupportedModelError(f"two shards hold a tensor of the same name; one of them is {path.name}")
            tensors[tensor.name] = tensor
    rows = [[t.name, t.dtype, list(t.shape), t.sha256] for _, t in sorted(tensors.items())]
    return _sha256(b"splitinfer/v1 weights\n" + _canonical(rows, "a safetensors header"))


def config_digest(directory: Path) -> str:
    """Return the digest of config.json without names, versions and stored dtype, and of where an answer ends.

    The end-of-text ids of generation_config.json, where it has any, stand beside the config's members as
    `generation_eos_token_id`: they decide which tokens are generated.
    """
    record = dict(read_json(directory / "config.json"))
    generation = _optional_json(directory / "generation_config.json") or {}
    if "eos_token_id" in generation:
        record["generation_eos_token_id"] = generation["eos_token_id"]
    return _sha256(b"splitinfer/v1 config\n" + _canonical(record, "config.json"))


def tokenizer_digest(directory: Path) -> str:
    """Return the digest of tokenizer.json, the chat template and the special tokens."""
    settings = _optional_json(directory / "tokenizer_config.json") or {}
    record = {
        "tokenizer_json": _sha256(_read(directory / "tokenizer.json")),
        "chat_template": _template_digest(directory, settings.get("chat_template")),
        "special_tokens": {key: value for key, value in settings.items() if _is_special(key)},
        "special_tokens_map": _optional_json(directory / "special_tokens_map.json"),
    }
    return _sha256(b"splitinfer/v1 tokenizer\n" + _canonical(record, "tokenizer_config.json"))


def _is_special(key: str) -> bool:
    return key.endswith(("_token", "_special_tokens")) or key in {"tokenizer_class", "added_tokens_decoder"}


def _template_digest(directory: Path, inline: object) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _sha256(_read(path))
    return None if inline is None else _sha256(_canonical(inline, "tokenizer_config.json"))


def _canonical(value: object, name: str) -> bytes:
    try:
        return rfc8785.dumps(_plain(value))
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise UnsupportedModelError(f"{name} holds a value that has no canonical JSON form") from error


def _plain(value: object) -> Any:
    # rfc8785 keeps the name of its JSON type to itself, so the result is not typed here.
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in _UNNAMED}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return rfc8785.dumps(value).decode()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_SAFE_INTEGER:
        return str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; raises ModelNotFoundError where missing, UnsupportedModelError where malformed."""
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path.name} is not a JSON object")
    return value


def _optional_json(path: Path) -> dict[str, object] | None:
    return read_json(path) if path.is_file() else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(f"the model directory lacks a readable {path.name}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
