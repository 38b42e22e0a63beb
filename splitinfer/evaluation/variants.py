"""One policy in several variants, to be set side by side: with each codec, with each strength of noise. Evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitinfer.errors import UsageError
from trust_models.codecs import CODEC_TEXTS
from trust_models.modes import MODES
from trust_models.noise import UNLIMITED, Noise
from trust_models.policy import Policy

__all__ = ["Named", "Strengths", "with_codecs", "with_noise"]

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


@dataclass(frozen=True, slots=True)
class Strengths:
    """How much noise of each mechanism: sigma on embeddings, epsilon of a clipped cache, relative noise.

    Raises UsageError for a figure that is no strength.
    """

    sigmas: Sequence[float] = ()
    clipped_epsilons: Sequence[float] = ()
    relative: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Check the figures."""
        for option, values in (("sigma", self.sigmas), ("clipped", self.clipped_epsilons), ("relative", self.relative)):
            if any(not 0 < value < math.inf for value in values):
                raise UsageError(f"--{option} takes a positive number, how much noise there shall be")


def with_noise(policies: Sequence[Named], strengths: Strengths) -> Sequence[Named]:
    """Return each noised policy with each strength, under a name that says it; the others as they are.

    Finished caches are noised in the modes whose cloud decodes from one.
    """
    found: list[Named] = []
    for name, policy in policies:
        made = [] if policy.noise is None else _noised(policy, policy.noise, strengths)
        found += [(f"{name}, {what}", variant) for what, variant in made] or [(name, policy)]
    return found


def _noised(policy: Policy, noise: Noise, strengths: Strengths) -> list[Named]:
    common = {"subject": noise.subject, "first_token_text": noise.first_token_text}
    priced = {**common, "budget_epsilon": math.nextafter(math.inf, 0), "delta": noise.stated_delta}
    adjacency = "prompt" if noise.adjacency is None else noise.adjacency
    words: dict[str, dict[str, object]] = {
        f"sigma {sigma:g}": {**priced, "sigma": sigma, "adjacency": adjacency, "post": noise.post}
        for sigma in strengths.sigmas
    }
    if MODES[policy.mode].decode == "cloud":
        for epsilon in strengths.clipped_epsilons:
            asked = {"mechanism": "clipped", "adjacency": "prompt", "epsilon": epsilon}
            words[f"clipped to epsilon {epsilon:g}"] = {**priced, **asked}
        for share in strengths.relative:
            asked = {"mechanism": "relative", "relative_noise": share, "budget_epsilon": UNLIMITED}
            words[f"relative noise {share:g}"] = {**common, **asked}
    return [(what, policy.model_copy(update={"noise": Noise.model_validate(said)})) for what, said in words.items()]
