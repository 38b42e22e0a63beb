"""Loads a model offline from safetensors: a source word -> LoadedModel with its identity and numerics; both sides."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from splitinfer import embedded
from splitinfer.cache.live import require_cache_travels
from splitinfer.errors import ModelMismatchError, ModelNotFoundError, UnsupportedModelError
from splitinfer.handoff import CacheLayout, ModelIdentity, Numerics
from splitinfer.model.identity import DigestCache, identify, read_json, weight_files
from splitinfer.model.outer import load_outer
from splitinfer.model.probe import prefill_ends_early

__all__ = ["LoadedModel", "load", "resolve_source"]

_LOADING = threading.Lock()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to compute, in eval mode without gradients, and what it is.

    `prefill_ends_early` tells whether its forwards may end where the cache is complete; tried out at load. `layout` is
    known where only the outer parts were loaded: embeddings, norms and biases, with which no forward can run.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity
    numerics: Numerics
    max_positions: int
    eos_token_ids: frozenset[int]
    directory: Path
    prefill_ends_early: bool = False
    layout: CacheLayout | None = None

    @property
    def has_matrices(self) -> bool:
        """Tell whether the whole model was loaded."""
        return self.layout is None


def resolve_source(source: str) -> Path:
    """Return the directory of "embedded", of a local path, or of a hub id in the local cache; never downloads.

    Raises ModelNotFoundError where there is none.
    """
    if source == "embedded":
        return embedded.path()
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"there is no model {source!r} on this machine; give a directory, or run `splitinfer model fetch {source}`"
        ) from error


def load(
    source: str,
    *,
    expected_weights_sha256: str | None = None,
    threads: int = 1,
    dtype: str = "float32",
    digest_cache: DigestCache | None = None,
    matrices: bool = True,
) -> LoadedModel:
    """Load the model on the CPU, computing in `dtype` with `threads` threads.

    Without `matrices` only its embeddings, norms and biases are loaded, for a run whose matrices the cloud applies.
    Raises ModelNotFoundError, UnsupportedModelError, UnsupportedCacheError, and ModelMismatchError where the weights
    are not the expected ones or changed while they were loaded.
    """
    if dtype not in _DTYPES:
        raise UnsupportedModelError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    directory = resolve_source(source)
    _check_form(directory)
    before = _stats(directory)
    identity = identify(directory, cache=digest_cache)
    _check_pin(identity, expected_weights_sha256)
    torch.set_num_threads(threads)
    model, layout = _load_model(directory, _DTYPES[dtype], matrices=matrices)
    tokenizer = _load_tokenizer(directory)
    if _stats(directory) != before:
        raise ModelMismatchError("the model's files changed while they were loaded; load it again")
    attention = str(model.config._attn_implementation)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        identity=identity,
        numerics=Numerics(torch.__version__, "cpu", dtype, attention, threads),
        max_positions=_max_positions(model),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        directory=directory,
        prefill_ends_early=matrices and prefill_ends_early(model),
        layout=layout,
    )


def _check_form(directory: Path) -> None:
    config = read_json(directory / "config.json")
    require_cache_travels(config.get("model_type"))
    settings = directory / "tokenizer_config.json"
    if "auto_map" in config or (settings.is_file() and "auto_map" in read_json(settings)):
        raise UnsupportedModelError("the model brings its own code (auto_map), which is never run")
    weight_files(directory)
    if not (directory / "tokenizer.json").is_file():
        raise ModelNotFoundError("the model directory lacks tokenizer.json")


def _check_pin(identity: ModelIdentity, expected: str | None) -> None:
    if expected is not None and identity.weights_sha256 != expected:
        raise ModelMismatchError(
            f"the weights have SHA-256 {identity.weights_sha256}, but {expected} is pinned; "
            "load the pinned model or change weights_sha256 in the policy"
        )


def _stats(directory: Path) -> list[tuple[str, int, int, int, int, int]]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
    paths = [*weight_files(directory), *(directory / name for name in names if (directory / name).is_file())]
    stats = [(path.name, path.stat()) for path in paths]
    return [(name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]


def _load_model(directory: Path, dtype: torch.dtype, *, matrices: bool) -> tuple[PreTrainedModel, CacheLayout | None]:
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(os.fspath(directory), local_files_only=True, trust_remote_code=False)
            if not matrices:
                with _LOADING:
                    return load_outer(directory, config, dtype)
            try:
                model = _from_pretrained(directory, config, dtype, "sdpa")
            except ValueError:
                # transformers refuses "sdpa" this way where the architecture lacks it.
                model = _from_pretrained(directory, config, dtype, "eager")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UnsupportedModelError("transformers cannot load this directory as a causal language model") from error
    return model.requires_grad_(False).eval(), None


def _from_pretrained(directory: Path, config: object, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    # transformers sets global state while it loads, and fills what it does not find with random numbers.
    with _LOADING:
        model, report = AutoModelForCausalLM.from_pretrained(
            os.fspath(directory),
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    absent = len(report["missing_keys"]) + len(report["mismatched_keys"])
    if absent or any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedModelError(f"the weights lack or misfit {absent} of the model's tensors; get the whole model")
    return cast(PreTrainedModel, model)


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(os.fspath(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError("transformers cannot load this directory's tokenizer") from error


@contextmanager
def _quiet() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _max_positions(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModelError("config.json does not say how many positions the model has")
    return value


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set()
    for holder in (model.config.get_text_config(), model.generation_config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(found)
