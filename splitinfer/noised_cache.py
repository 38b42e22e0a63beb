"""One release of a noised cache on the device: a prompt under a policy with [noise] -> a cache that may be shown.

    clip norms of public text -> sigma of every slab -> certificate -> charge in the log -> prefill -> noise -> cache

Two mechanisms: "clipped", priced for the whole prompt, and "relative", of which nothing is proven and no epsilon is
stated. Rows before the first private token are computed from public text alone and stay as they are; all later ones
depend on private text and are noised. Noise is drawn for the finished cache, so none of it leaves while it grows: the
scale of relative noise needs whole slabs. Both sides of two neighbours have that first token at the same place, and
sigma is made for the size class of the rows behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from splitinfer import schedule
from splitinfer.cache.snapshot import CacheSnapshot, LayerTensors
from splitinfer.device import Device
from splitinfer.errors import UnsupportedCacheError, UsageError
from splitinfer.handoff import CacheLayout, PromptTokens, TensorLayout, TensorName
from splitinfer.noise.accounting import Adjacency, NoiseEvent, empirical_event, slab_event
from splitinfer.noise.certificate import Certificate, SlabNoise, certify
from splitinfer.noise.clipping import ClipPlan, allocate, noise_slabs, plan_from_public, prompt_mu
from splitinfer.noise.empirical import noise_relative
from splitinfer.noise.gaussian import mu_of
from splitinfer.noise.stream import Float64, NoiseKey, NoiseStream
from splitinfer.noised import pay
from trust_models.noise import Noise
from trust_models.policy import Policy

__all__ = ["ChargedCache", "charge_cache", "noises_cache"]


@dataclass(frozen=True, slots=True)
class _Clipping:
    """Which norms rows are cut to, and the noise of every slab."""

    plan: ClipPlan
    sigmas: tuple[float, ...]

    def slabs(self, rows: int) -> list[SlabNoise]:
        """Return what is promised of every slab of so many rows: each of them moves by 2 c_j at most."""
        return [
            SlabNoise(slab.name, slab.clip_norm, 2 * slab.clip_norm * math.sqrt(rows), sigma)
            for slab, sigma in zip(self.plan.slabs, self.sigmas, strict=True)
        ]

    def l2_sensitivity(self, rows: int) -> float:
        """Return how far two clipped caches of so many rows can lie apart, all slabs together."""
        return math.hypot(*(slab.l2_sensitivity for slab in self.slabs(rows)))


@dataclass(frozen=True, slots=True)
class ChargedCache:
    """A release that was paid for; `noised` makes it, once. Rows before `first_row` are public."""

    certificate: Certificate
    first_row: int
    clipping: _Clipping | None
    relative_noise: float
    key: NoiseKey = field(repr=False)

    def noised(self, exact: CacheSnapshot) -> CacheSnapshot:
        """Return a cache of its own with the noised rows; raises CryptoParameterError the second time."""
        slabs, stream = _slabs(exact, first_row=self.first_row), NoiseStream(self.key)
        if self.clipping is None:
            made: Mapping[str, Float64] = noise_relative(slabs, relative_noise=self.relative_noise, stream=stream).slabs
        else:
            made = noise_slabs(slabs, plan=self.clipping.plan, sigmas=self.clipping.sigmas, stream=stream).slabs
        return _with_slabs(exact, made, first_row=self.first_row)


def noises_cache(policy: Policy) -> bool:
    """Tell whether the policy noises the finished cache and not the embeddings."""
    return policy.noise is not None and policy.noise.mechanism != "embedding"


def charge_cache(device: Device, prompt: PromptTokens) -> ChargedCache:
    """Pay for one release; `prompt` is one that `with_public_end` returned.

    Raises UnsupportedCacheError for a cache that has not one row for every token, BudgetExceededError,
    UnsupportedEventError and CryptoParameterError as the ledger does, AuditLogError.
    """
    noise = device.policy.noise
    if noise is None or noise.mechanism == "embedding":
        raise UsageError("this policy noises no cache")
    _require_rows(device.engine.layout)
    first_row = prompt.private_positions[0]
    # The size class, so that neither the log nor sigma shows the exact count.
    rows = schedule.pad_tokens(len(prompt.token_ids) - 1 - first_row)
    clipping = _clipping(device, noise, rows=rows) if noise.mechanism == "clipped" else None
    key = NoiseKey(device.randomness)
    event = _event(clipping, key, rows=rows)
    certificate = certify(
        event,
        Adjacency(noise.adjacency_tokens),
        delta=None if clipping is None else noise.stated_delta,
        l2_sensitivity=None if clipping is None else clipping.l2_sensitivity(rows),
        sensitivity_is_exact=None if clipping is None else True,
        slabs=() if clipping is None else clipping.slabs(rows),
        measured=device.measured,
        answer_is_seen=True,
    )
    pay(device, noise, event, certificate, tokens=rows)
    return ChargedCache(certificate, first_row, clipping, noise.relative_noise or 0.0, key)


def _event(clipping: _Clipping | None, key: NoiseKey, *, rows: int) -> NoiseEvent:
    if clipping is None:
        return empirical_event(key.digest)
    return slab_event(prompt_mu(clipping.plan, clipping.sigmas, rows=rows), key_sha256=key.digest)


def _clipping(device: Device, noise: Noise, *, rows: int) -> _Clipping:
    plan = _plan(device)
    if noise.epsilon is None:
        raise UsageError("a clipped cache is noised to an epsilon; write one in [noise]")
    return _Clipping(plan, allocate(plan, mu=mu_of(noise.epsilon, noise.stated_delta), rows=rows))


def _plan(device: Device) -> ClipPlan:
    """Return the model's clip norms and weights, found on built-in public text, kept by weights digest."""
    weights_sha256 = device.engine.identity.weights_sha256
    found = device.clips.get(weights_sha256) if device.clips else None
    if found is None:
        study = device.engine.study_public_text()
        weights = {
            name: loss for (index, part), loss in study.losses.items() for name in _names(study.caches[0], index, part)
        }
        found = plan_from_public([_slabs(cache, first_row=0) for cache in study.caches], weights=weights)
        if device.clips:
            device.clips.put(weights_sha256, found)
    return found


def _require_rows(layout: CacheLayout) -> None:
    for index, layer in enumerate(layout.layers):
        if any(tensor.rows != "tokens" for tensor in layer.tensors):
            raise UnsupportedCacheError(
                f"layer {index} is a {layer.kind} layer, which has not one row for every token to noise; write "
                'mechanism = "embedding" in [noise], or choose another model'
            )


def _names(cache: CacheSnapshot, index: int, part: TensorName) -> list[str]:
    tensor = next(x for x in cache.layout.layers[index].tensors if x.name == part)
    return [_name(index, part, head) for head in range(math.prod(tensor.before))]


def _name(index: int, part: TensorName, head: int) -> str:
    return f"{index}.{part}.{head}"


def _heads(held: torch.Tensor, tensor: TensorLayout) -> torch.Tensor:
    """Return a tensor [1, before, rows, after] as [heads, rows, dim]."""
    return held.reshape(math.prod(tensor.before), -1, math.prod(tensor.after))


def _slabs(cache: CacheSnapshot, *, first_row: int) -> dict[str, Float64]:
    found: dict[str, Float64] = {}
    for index, (layer, tensors) in enumerate(zip(cache.layout.layers, cache.layers, strict=True)):
        for tensor in layer.tensors:
            rows = _heads(tensors[tensor.name], tensor)[:, first_row:].to(device="cpu", dtype=torch.float64)
            for head in range(rows.shape[0]):
                found[_name(index, tensor.name, head)] = np.asarray(rows[head].numpy(), dtype=np.float64)
    return found


def _with_slabs(exact: CacheSnapshot, slabs: Mapping[str, Float64], *, first_row: int) -> CacheSnapshot:
    layers: list[LayerTensors] = []
    for index, (layer, tensors) in enumerate(zip(exact.layout.layers, exact.layers, strict=True)):
        made: dict[TensorName, torch.Tensor] = {}
        for tensor in layer.tensors:
            held = tensors[tensor.name].clone(memory_format=torch.contiguous_format)
            most = torch.finfo(held.dtype).max
            for head, rows in enumerate(_heads(held, tensor)):
                noised = torch.from_numpy(slabs[_name(index, tensor.name, head)])
                # A narrow dtype would make an infinity of large noise.
                rows[first_row:] = noised.clamp(-most, most).to(held.dtype)
            made[tensor.name] = held
        layers.append(made)
    return CacheSnapshot(exact.layout, exact.true_tokens, tuple(layers))
