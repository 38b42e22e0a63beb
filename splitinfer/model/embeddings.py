"""A model's input embeddings: token ids -> rows, rows -> the tensor that a prefill sees instead of ids; on the device.

What reaches a noised cache must depend on private text through its noised rows alone. So the model may look at token
ids nowhere else: not for embeddings of every layer, not to route experts, not to find repeated n-grams. Such models are
refused by name, and every other is tried out: a prefill on the rows of some ids, without the ids, gives the same cache
as a prefill on the ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.errors import LayoutMismatchError, PromptError, SplitInferError, UnsupportedModelError
from splitinfer.model.prefill import prefill

__all__ = [
    "ID_KEYED_MODELS",
    "Rows",
    "as_embeddings",
    "embedding_rows",
    "require_only_embeddings",
    "row_bytes",
    "rows_from",
    "rows_to",
]

Rows = npt.NDArray[np.float64]

ID_KEYED_MODELS = (
    "gemma3n",
    "gemma4",
    "diffusion_gemma",
    "embedding_gemma2",
    "deepseek_v4",
    "qwen4_exp",
    "blt",
    "cpmant",
)
"""Types, and beginnings of types, of models that look at token ids beside their input embedding."""
_PROBE_TOKENS = 12


def embedding_rows(model: PreTrainedModel, token_ids: Sequence[int]) -> Rows:
    """Return the rows [tokens, dim] that the input embedding gives for these ids, its own scale included.

    Raises PromptError for an id outside the vocabulary.
    """
    layer = model.get_input_embeddings()
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < layer.num_embeddings:
        raise PromptError(f"a token id is outside the model's vocabulary of {layer.num_embeddings}")
    with torch.inference_mode():
        rows: torch.Tensor = layer(torch.tensor([list(token_ids)], dtype=torch.long, device=model.device))[0]
    return np.asarray(rows.to(device="cpu", dtype=torch.float64).numpy(), dtype=np.float64)


def as_embeddings(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Return rows [tokens, dim] as the tensor [1, tokens, dim] that a forward takes, cast to the model's dtype."""
    layer = model.get_input_embeddings()
    return torch.from_numpy(rows)[None].to(device=model.device, dtype=layer.weight.dtype)


def row_bytes(model: PreTrainedModel) -> int:
    """Return how many bytes a row has in the model's own dtype."""
    weight = model.get_input_embeddings().weight
    return int(weight.shape[1]) * int(weight.element_size())


def rows_to(model: PreTrainedModel, rows: Rows) -> bytes:
    """Return rows [tokens, dim] as little-endian bytes of the model's dtype, row after row."""
    tensor = as_embeddings(model, rows)[0].cpu().contiguous()
    return tensor.view(torch.uint8).numpy().tobytes()


def rows_from(model: PreTrainedModel, data: bytes) -> Rows:
    """Return the rows of such bytes; raises LayoutMismatchError where a number is not finite."""
    weight = model.get_input_embeddings().weight
    tensor = torch.frombuffer(bytearray(data), dtype=weight.dtype).reshape(-1, weight.shape[1])
    rows = np.asarray(tensor.to(torch.float64).numpy(), dtype=np.float64)
    if not np.isfinite(rows).all():
        raise LayoutMismatchError("the rows of the prompt are not all finite numbers")
    return rows


def require_only_embeddings(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError, naming the type, where anything but the input embedding depends on token ids."""
    config = model.config.get_text_config()
    kinds = {str(model.config.model_type), str(config.model_type)}
    is_listed = any(kind.startswith(ID_KEYED_MODELS) for kind in kinds)
    is_keyed = bool(getattr(config, "hidden_size_per_layer_input", 0)) or "hash_moe" in _layer_types(config)
    if is_listed or is_keyed or not _sees_embeddings_only(model):
        raise UnsupportedModelError(
            f"{config.model_type} looks at token ids beside their embeddings, so noise on the embeddings would not "
            "hide them; choose another model for noised modes"
        )


def _layer_types(config: object) -> Sequence[str]:
    return getattr(config, "mlp_layer_types", None) or ()


def _sees_embeddings_only(model: PreTrainedModel) -> bool:
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = [1 + (index * 7919) % (vocabulary - 1) for index in range(_PROBE_TOKENS)]
    # Repeated and adjacent ids too, for what is keyed by n-grams.
    ids += ids[:4]
    steps = [(0, len(ids))]
    try:
        by_ids = prefill(model, ids, steps=steps)
        by_rows = prefill(model, ids, steps=steps, embeddings=as_embeddings(model, embedding_rows(model, ids)))
    except (TypeError, ValueError, RuntimeError, SplitInferError):
        return False
    return _equal(by_ids, by_rows)


def _equal(one: CacheSnapshot, two: CacheSnapshot) -> bool:
    pairs = zip(one.layers, two.layers, strict=True)
    return all(torch.equal(tensor, b[name]) for a, b in pairs for name, tensor in a.items())
