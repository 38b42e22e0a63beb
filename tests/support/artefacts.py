"""An artefact of small made-up layers, and caches of the kind that it was calibrated on; no model."""

from __future__ import annotations

import functools
import hashlib

import torch

from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.calibration.calibrate import layer_groups
from splitinfer.calibration.fit import Moments, basis_of, groups_of
from splitinfer.codec.transform import LEVELS, Artefact
from splitinfer.codec.transform.artefact import Facts, channels_of, encode
from splitinfer.codec.transform.rotation import Rotation
from splitinfer.handoff import CacheLayout
from tests.support import layouts

SHAPE = (2, 8)
WINDOW = 100
RANK = 6
LAYOUT = CacheLayout(
    (
        layouts.full(SHAPE, SHAPE, "float32"),
        layouts.full(SHAPE, SHAPE, "float32"),
        layouts.sliding(WINDOW, SHAPE, SHAPE, "float32"),
        layouts.linear(),
    )
)
ROTATION = Rotation("half", torch.tensor([1.0, 0.1, 0.01, 0.001]), 1.5)
ROTATIONS = dict.fromkeys(range(3), ROTATION)


def drawn(layout: CacheLayout, tokens: int, *, seed: int = 0, scale: float = 1.0) -> CacheSnapshot:
    """Draw a cache whose layers share a few numbers a token, turned as a model turns its keys."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn((tokens, RANK), generator=generator)
    mixing = torch.Generator().manual_seed(99)
    layers = []
    for index, layer in enumerate(layout.layers):
        tensors = {}
        for tensor in layer.tensors:
            shape = shape_of(layer, tensor, tokens)
            if tensor.name not in ("keys", "values"):
                tensors[tensor.name] = torch.randn(shape, generator=generator).to(DTYPES[tensor.dtype])
                continue
            _, heads, rows, dim = shape
            mix = torch.randn((RANK, heads * dim), generator=mixing)
            noise = 0.05 * torch.randn((tokens, heads * dim), generator=generator)
            own = (3.0 + shared @ mix + noise) * scale
            plain = own.view(tokens, heads, dim).transpose(0, 1)[:, tokens - rows :].contiguous()
            turned = ROTATIONS[index].apply(plain, tokens - rows) if tensor.name == "keys" else plain
            tensors[tensor.name] = turned.unsqueeze(0).to(DTYPES[tensor.dtype])
        layers.append(tensors)
    return CacheSnapshot(layout, tokens, tuple(layers))


@functools.cache
def artefact(first_tokens: int = 1) -> Artefact:
    """Calibrate on drawn caches."""
    groups = layer_groups(LAYOUT, 4096)
    rows = {seed: _rows(drawn(LAYOUT, 300, seed=seed)) for seed in range(8)}
    moments = [Moments(sum(channels_of(LAYOUT, layer, group.rows) for layer in group.layers)) for group in groups]
    for seed in range(6):
        for group, sums in zip(groups, moments, strict=True):
            sums.add(torch.cat([rows[seed][layer] for layer in group.layers], 1), None)
    bases = [basis_of(sums, mean_sensitivity=1.0) for sums in moments]
    held_out = [
        torch.cat([basis.values(torch.cat([rows[seed][layer] for layer in group.layers], 1)) for seed in (6, 7)])
        for group, basis in zip(groups, bases, strict=True)
    ]
    found, tables = groups_of(bases, [tuple(g.layers) for g in groups], held_out, levels=list(LEVELS.values()))
    facts = Facts(
        version=1,
        weights_sha256="1" * 64,
        config_sha256="2" * 64,
        tokenizer_sha256="3" * 64,
        corpus_sha256="4" * 64,
        corpus_tokens=2400,
        longest_context_tokens=300,
        first_tokens=first_tokens,
        levels=list(LEVELS),
        style="half",
        rotations={str(layer): (0, rotation.factor) for layer, rotation in ROTATIONS.items()},
        groups=groups,
        weighting="none",
    )
    data = encode(facts, found, tables.centroids, ROTATIONS)
    return Artefact(facts, found, tables.centroids, ROTATIONS, hashlib.sha256(data).hexdigest())


def _rows(snapshot: CacheSnapshot) -> dict[int, torch.Tensor]:
    found = {}
    for layer in range(3):
        keys, values = snapshot.layers[layer]["keys"][0], snapshot.layers[layer]["values"][0]
        plain = ROTATION.apply(keys, snapshot.true_tokens - keys.shape[1], is_inverse=True)
        parts = [part.transpose(0, 1).reshape(part.shape[1], -1) for part in (plain, values)]
        found[layer] = torch.cat(parts, 1)
    return found
