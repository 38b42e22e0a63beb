"""One policy in several variants, to be set side by side: with each codec, with each strength of noise. Evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from splitinfer.errors import UsageError
from trust_models.codecs import CODEC_TEXTS
from trust_models.policy import Policy

__all__ = ["Named", "with_codecs", "with_noise"]

Named = tuple[str, Policy]
"""A policy and the name under which its figures are reported."""


def with_codecs(policies: Sequence[Named], codecs: Sequence[str]) -> Sequence[Named]:
    """Return each policy with each codec, under a name that says it; as they are where none is named.

    Raises UsageError for an unknown codec.
    """
    unknown = [name for name in codecs if name not in CODEC_TEXTS]
    if unknown:
        raise UsageError(f"there is no codec {unknown[0]!r}; write one of {', '.join(CODEC_TEXTS)}")
    if not codecs:
        return policies
    found = []
    for name, policy in policies:
        for codec in codecs:
            # What is measured here is what the bounds are there for, so none of them stands in the way.
            update = {"codec": codec, "max_kl": None, "verify_rows": 0, "allow_q4_small_models": codec == "q4"}
            transfer = policy.transfer.model_copy(update=update)
            found.append((f"{name}, {codec}", policy.model_copy(update={"transfer": transfer})))
    return found


def with_noise(policies: Sequence[Named], sigmas: Sequence[float]) -> Sequence[Named]:
    """Return each policy that noises embeddings with each sigma, under a name that says it; the others as they are.

    Raises UsageError for a sigma that is no strength.
    """
    if any(not 0 < sigma < math.inf for sigma in sigmas):
        raise UsageError("--sigma takes a positive number, the standard deviation of the noise on embeddings")
    found = []
    for name, policy in policies:
        if policy.noise is None or policy.noise.mechanism != "embedding" or not sigmas:
            found.append((name, policy))
            continue
        for sigma in sigmas:
            noise = policy.noise.model_copy(update={"sigma": sigma, "epsilon": None})
            found.append((f"{name}, sigma {sigma:g}", policy.model_copy(update={"noise": noise})))
    return found
