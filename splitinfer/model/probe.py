"""Tries out at load what a model bears: a model -> whether its prefill may end early; both sides."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.model.prefill import prefill

__all__ = ["prefill_ends_early"]

# The second step finds what a model keeps outside its cache: such a state is older where the first one ended early.
_STEPS = ((0, 5), (5, 8))


def prefill_ends_early(model: PreTrainedModel) -> bool:
    """Tell whether prefills that end early give this model's caches, bit for bit, on eight tokens in two steps.

    Costs four short forwards. A difference, an error of any kind, or hooks that wrap a module's forward mean no.
    """
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        # accelerate moves weights back after a forward; after one that does not return they would stay.
        return False
    try:
        vocabulary = model.get_input_embeddings().num_embeddings
        token_ids = [(1 + index) % vocabulary for index in range(_STEPS[-1][1])]
        whole = prefill(model, token_ids, steps=_STEPS)
        return _is_identical(whole, prefill(model, token_ids, steps=_STEPS, ends_early=True))
    except Exception:  # noqa: BLE001
        # It is the model's code that runs, and what it raises is not known; the whole forward then says what is wrong.
        return False


def _is_identical(ours: CacheSnapshot, theirs: CacheSnapshot) -> bool:
    pairs = zip(ours.layers, theirs.layers, strict=True)
    return ours.layout == theirs.layout and all(
        torch.equal(_bits(tensor), _bits(b[name])) for a, b in pairs for name, tensor in a.items()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    # As numbers, 0.0 and -0.0 would be equal and NaN not equal to itself.
    return tensor.contiguous().view(torch.uint8)
