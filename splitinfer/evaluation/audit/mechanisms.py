"""The product's noise mechanisms as an auditor sees them: a claim -> a release function, its worst pair, planted bugs.

Evaluation. Everything that stands between a policy's figure and the noise is the product's own: the sensitivity that
it enumerates, the sigma that it takes for an epsilon, the key, the stream, the clip and the sum. There is no prefill,
which is post-processing, and no log. A planted bug is the same release with one thing wrong; an audit that does not
refute it is no audit.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from splitinfer.evaluation.audit.fresh import Audited, Release, audit
from splitinfer.model.engine import Engine
from splitinfer.noise.accounting import Adjacency, embedding_event, sigma_for
from splitinfer.noise.clipping import ClipPlan, SlabClip, allocate, noise_slabs, prompt_mu
from splitinfer.noise.embedding import noise_embeddings
from splitinfer.noise.gaussian import epsilon_of
from splitinfer.noise.sensitivity import Distance, largest_distance
from splitinfer.noise.stream import NoiseKey, NoiseStream

__all__ = ["Mechanism", "clipped_cache", "embedding_noise"]

_DELTA = 1e-5
# What 10,000 releases can still bound well; a larger claim is audited on a closer pair.
_MAX_AUDITED_MU = 3.0


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A release function, what is claimed of it, and the two neighbours that are furthest apart.

    `difference` is that of the two outputs without noise.
    """

    name: str
    claimed_mu: float
    release: Release
    pair: tuple[torch.Tensor, torch.Tensor] = field(repr=False)
    difference: torch.Tensor = field(repr=False)
    planted_bugs: Mapping[str, Release] = field(repr=False)

    def closer(self) -> Mechanism:
        """Return the same mechanism with a pair so close that its share of the claim can be bounded.

        Noise that is added does not depend on the rows, so that mu falls with the distance. Not for one that clips.
        """
        share = min(1.0, _MAX_AUDITED_MU / self.claimed_mu)
        pair = self.pair[0], self.pair[0] + share * (self.pair[1] - self.pair[0])
        return replace(self, claimed_mu=share * self.claimed_mu, pair=pair, difference=share * self.difference)

    def audit(self, *, releases: int, bug: str | None = None) -> Audited:
        """Audit the release, or one of its planted bugs."""
        release = self.release if bug is None else self.planted_bugs[bug]
        return audit(release, self.pair, claimed_mu=self.claimed_mu, difference=self.difference, releases=releases)


def embedding_noise(engine: Engine, *, mu: float, adjacency: int = 4) -> Mechanism:
    """Return noise on embeddings at the epsilon that this mu amounts to, for prompts that differ in so many tokens.

    The pair are the rows of the two tokens that are furthest apart, `adjacency` times each.
    """
    ids = engine.text_token_ids
    table = np.asarray(engine.embedding_rows(ids), dtype=np.float64)
    distance = largest_distance(table)
    sigma = _sigma(distance, adjacency, mu)
    first, second = _farthest(table)
    pair = tuple(torch.from_numpy(np.repeat(table[place : place + 1], adjacency, axis=0)) for place in (first, second))
    event = embedding_event(distance, sigma=sigma, tokens=adjacency, key_sha256="0" * 64)

    def release(rows: torch.Tensor, *, sigma: float = sigma, key: bytes | None = None) -> torch.Tensor:
        stream = NoiseStream(NoiseKey(secrets.token_bytes if key is None else lambda count: key[:count]))
        return torch.from_numpy(noise_embeddings(rows.numpy(), sigma=sigma, stream=stream).rows)

    return Mechanism(
        "embedding noise",
        event.mu(Adjacency(adjacency)),
        release,
        (pair[0], pair[1]),
        pair[1] - pair[0],
        {
            "half the noise": lambda rows: release(rows, sigma=sigma / 2),
            f"the sensitivity of 1 token used for {adjacency}": lambda rows: release(
                rows, sigma=_sigma(distance, 1, mu)
            ),
            "a scale applied after the noise was chosen": lambda rows: release(4 * rows),
            "a reused keystream": lambda rows: release(rows, key=bytes(32)),
        },
    )


def clipped_cache(*, mu: float, rows: int = 4, dim: int = 16) -> Mechanism:
    """Return a clipped cache of one layer at prompt level; the pair lies at opposite ends of both clips."""
    plan = ClipPlan((SlabClip("keys", dim, 1.0), SlabClip("values", dim, 2.0)), 0.95, 1)
    sigmas = allocate(plan, mu=mu, rows=rows)
    # Ten times the clip norm, so that a release which does not clip shows it.
    far = torch.zeros(2, rows, dim, dtype=torch.float64)
    far[..., 0] = 10 * torch.tensor([slab.clip_norm for slab in plan.slabs])[:, None]

    def release(slabs: torch.Tensor, *, share: float = 1.0, loose: float = 1.0) -> torch.Tensor:
        wide = ClipPlan(tuple(SlabClip(x.name, x.dim, loose * x.clip_norm) for x in plan.slabs), 0.95, 1)
        given = {slab.name: tensor.numpy() for slab, tensor in zip(plan.slabs, slabs, strict=True)}
        stream = NoiseStream(NoiseKey(secrets.token_bytes))
        made = noise_slabs(given, plan=wide, sigmas=[share * sigma for sigma in sigmas], stream=stream)
        return torch.stack([torch.from_numpy(made.slabs[slab.name]) for slab in plan.slabs])

    def bare_values(slabs: torch.Tensor) -> torch.Tensor:
        made = release(slabs)
        made[1] = slabs[1] / 10
        return made

    return Mechanism(
        "clipped cache",
        prompt_mu(plan, sigmas, rows=rows),
        release,
        (far, -far),
        -2 * far / 10,
        {
            "half the noise": lambda slabs: release(slabs, share=0.5),
            "clipping left out": lambda slabs: release(slabs, loose=1e6),
            "values left without noise": bare_values,
        },
    )


def _sigma(distance: Distance, adjacency: int, mu: float) -> float:
    """Return the sigma that the product takes for a policy whose epsilon is what this mu amounts to."""
    return sigma_for(distance, Adjacency(adjacency), epsilon=epsilon_of(mu, _DELTA), delta=_DELTA, tokens=adjacency)


def _farthest(table: np.ndarray) -> tuple[int, int]:
    rows = torch.from_numpy(table)
    first, second = divmod(int(torch.cdist(rows, rows).argmax()), len(table))
    return first, second
