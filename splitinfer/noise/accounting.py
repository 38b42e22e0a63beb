"""What releases cost together: events and an adjacency to mu and epsilon; does one more fit? On the device, pure.

An event is *what happened*: a noised release, and how far it tells texts apart that differ in one token, or in all.
What it costs depends on the adjacency, which has no default. Events that nobody knows are refused, and a release
without noise costs infinitely much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from splitinfer.errors import BudgetExceededError, CryptoParameterError, UnsupportedEventError, UsageError
from splitinfer.noise.gaussian import composed, epsilon_of, mu_of
from splitinfer.noise.sensitivity import Distance
from trust_models.noise import adjacency_words

__all__ = [
    "Adjacency",
    "Limit",
    "Mechanism",
    "NoiseEvent",
    "Spending",
    "admit",
    "embedding_event",
    "empirical_event",
    "sigma_for",
    "slab_event",
]

Mechanism = Literal["embedding", "cache", "empirical", "none"]
# A sigma made from an epsilon costs that epsilon again but for rounding.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Adjacency:
    """Between which prompts nobody shall tell: those that differ in `tokens` tokens, or in all where that is None.

    Length, positions and public text are the same in both. A name of m tokens that occurs j times needs m j tokens.
    """

    tokens: int | None

    def __post_init__(self) -> None:
        """Check the number."""
        if self.tokens is not None and self.tokens < 1:
            raise UsageError("an adjacency replaces one token or more, or the whole prompt")

    def __str__(self) -> str:
        """Say it in words."""
        return adjacency_words(self.tokens)


@dataclass(frozen=True, slots=True)
class NoiseEvent:
    """One release: mu between texts that differ in one token and in all; `key_sha256` names the key of its noise."""

    mechanism: Mechanism
    mu_one_token: float
    mu_whole_prompt: float
    key_sha256: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse an event that cannot be priced."""
        if self.mechanism not in get_args(Mechanism):
            raise UnsupportedEventError("the privacy event is of a mechanism that this version cannot price")
        if not (self.mu_one_token >= 0 and self.mu_whole_prompt >= 0):
            raise UnsupportedEventError("the privacy event has no price that is a number, 0 or more")
        if self.mechanism in {"empirical", "none"} and self.mu_one_token < math.inf:
            raise UnsupportedEventError(f'a release with mechanism "{self.mechanism}" has no finite price')

    def mu(self, adjacency: Adjacency) -> float:
        """Return mu between neighbours; k independent rows cost sqrt(k), and never more than the whole prompt."""
        if adjacency.tokens is None:
            return self.mu_whole_prompt
        return min(self.mu_one_token * math.sqrt(adjacency.tokens), self.mu_whole_prompt)


@dataclass(frozen=True, slots=True)
class Limit:
    """The budget of one subject: epsilon at delta between neighbours; an infinite epsilon admits everything."""

    adjacency: Adjacency
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Spending:
    """What `releases` cost together."""

    releases: int
    mu: float
    epsilon: float


def admit(spent: Iterable[NoiseEvent], event: NoiseEvent, limit: Limit) -> Spending:
    """Return what all events cost together, this one included.

    Raises BudgetExceededError where that is above the limit, UnsupportedEventError for what is no known event,
    CryptoParameterError where the event's key made noise before.
    """
    events = [*spent, event]
    if not all(isinstance(one, NoiseEvent) for one in events):
        raise UnsupportedEventError(
            "the ledger holds a privacy event that this version cannot price; nothing is released"
        )
    if any(one.key_sha256 == event.key_sha256 for one in events[:-1]):
        raise CryptoParameterError("the key of this noise was used before; the source of randomness repeats itself")
    mu = composed(one.mu(limit.adjacency) for one in events)
    total = Spending(len(events), mu, epsilon_of(mu, limit.delta))
    if total.epsilon > limit.epsilon * _ROUNDING:
        before = epsilon_of(composed(one.mu(limit.adjacency) for one in events[:-1]), limit.delta)
        raise BudgetExceededError(
            f"the budget of epsilon {limit.epsilon:g} at delta {limit.delta:g} ({limit.adjacency}) has {before:.3g} "
            f"spent, and this release would make it {total.epsilon:.3g}; ask less, or let the policy's owner raise it"
        )
    return total


def sigma_for(distance: Distance, adjacency: Adjacency, *, epsilon: float, delta: float, tokens: int) -> float:
    """Return the least sigma on embeddings that is (epsilon, delta)-private; `tokens` is at least the private ones."""
    return _l2_sensitivity(distance, adjacency, tokens) / mu_of(epsilon, delta)


def embedding_event(distance: Distance, *, sigma: float, tokens: int, key_sha256: str) -> NoiseEvent:
    """Return the event of noised embeddings; `tokens` is a number of private tokens that is not below the true one."""
    one = math.inf if sigma <= 0 else _l2_sensitivity(distance, Adjacency(1), tokens) / sigma
    return NoiseEvent("embedding", one, one * math.sqrt(tokens), key_sha256)


def slab_event(mu: float, *, key_sha256: str) -> NoiseEvent:
    """Return the event of a clipped, noised cache: one price, at prompt level, which bounds one token's too."""
    return NoiseEvent("cache", mu, mu, key_sha256)


def empirical_event(key_sha256: str) -> NoiseEvent:
    """Return the event of relative noise, which has no finite price."""
    return NoiseEvent("empirical", math.inf, math.inf, key_sha256)


def _l2_sensitivity(distance: Distance, adjacency: Adjacency, tokens: int) -> float:
    if tokens < 1:
        raise UsageError("there is no private token to noise")
    return distance.value * math.sqrt(tokens if adjacency.tokens is None else min(adjacency.tokens, tokens))
