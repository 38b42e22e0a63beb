"""The policy's words for noise: `[noise]` and `[sampling]`, and what is refused in them; device side, no IO.

A noised release has a price between neighbours, and the policy must say which: `adjacency` has no default. How much
noise is said in one way: as `sigma`, or as the `epsilon` and `delta` that it shall amount to. What a subject may spend
in all is `budget_epsilon`, at the same delta. Relative noise has no price, and the policy says so in a word.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trust_models.section import Section, refuse

__all__ = [
    "DEFAULT_DELTA",
    "MEANINGLESS_ABOVE_EPSILON",
    "UNLIMITED",
    "AdjacencyWord",
    "Noise",
    "Sampling",
    "adjacency_words",
]

MEANINGLESS_ABOVE_EPSILON = 64.0
"""Above it a promise in numbers is called formally meaningless, empirical only."""
DEFAULT_DELTA = 1e-5
UNLIMITED = "unlimited"
"""The word of a policy to which no budget applies."""
_MAX_ADJACENCY, _MAX_DELTA = 65536, 0.01
_MAX_NEW_TOKENS, _MAX_TEMPERATURE, _MAX_STOPS, _MAX_STOP_LETTERS = 2**20, 100.0, 16, 1024
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

AdjacencyWord = int | Literal["prompt"]


def _adjacency(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_ADJACENCY
    if not is_count and value != "prompt":
        refuse(
            "noise.adjacency says between which prompts nobody shall tell; write a number of tokens from 1 to "
            f'{_MAX_ADJACENCY}, or "prompt" for all of them'
        )
    return value


def _positive(name: str, advice: str) -> AfterValidator:
    def check(value: float) -> float:
        if not 0 < value < math.inf:
            refuse(f"noise.{name} is not a positive number; {advice}")
        return value

    return AfterValidator(check)


def _delta(value: float) -> float:
    if not 0 < value <= _MAX_DELTA:
        refuse(
            f"noise.delta is outside 0 to {_MAX_DELTA:g}; it is the chance that the promise fails: write "
            f"{DEFAULT_DELTA:g} or less"
        )
    return value


def _subject(value: str) -> str:
    if not _SUBJECT.fullmatch(value):
        refuse(
            "noise.subject is not a name; write letters, digits, '.', '_' and '-' only (at most 64), the first a "
            "letter or digit; it stands in the log, so no real name"
        )
    return value


def _first_token(value: str) -> str:
    if not value or len(value) > 64:
        refuse('noise.first_token_text is empty or longer than 64 letters; write a short public text such as "\\n"')
    return value


_SAY_SIGMA = "write the standard deviation of the noise"
_SAY_EPSILON = "write 8 or less for a promise that means something"
_SAY_RELATIVE = "write the noise over the size of what it hides, such as 0.1"


def _budget(value: object) -> object:
    if value == UNLIMITED:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        refuse(
            "noise.budget_epsilon is not a positive number; write what the subject may spend in all, or, for mechanism "
            f'"relative" alone, "{UNLIMITED}"'
        )
    return float(value)


class Noise(Section):
    """What is noised and how, what that shall promise, and whose budget pays.

    `mechanism` "embedding" noises the private tokens' embeddings, "clipped" the rows of the finished cache, each cut to
    a norm, "relative" those rows in proportion to their size, of which nothing is proven.
    `delta` is the one at which epsilon is stated and the budget counted. `post` is what is done to the noised
    embeddings before prefill. `first_token_text` is the public text that the cloud continues from where the model's
    template ends in private text.
    """

    mechanism: Literal["embedding", "clipped", "relative"] = "embedding"
    adjacency: Annotated[AdjacencyWord | None, BeforeValidator(_adjacency)] = None
    sigma: Annotated[float, _positive("sigma", _SAY_SIGMA)] | None = None
    epsilon: Annotated[float, _positive("epsilon", _SAY_EPSILON)] | None = None
    delta: Annotated[float, AfterValidator(_delta)] | None = None
    relative_noise: Annotated[float, _positive("relative_noise", _SAY_RELATIVE)] | None = None
    post: Literal["none", "nearest", "posterior"] = "none"
    subject: Annotated[str, AfterValidator(_subject)]
    budget_epsilon: Annotated[float | Literal["unlimited"], BeforeValidator(_budget)]
    first_token_text: Annotated[str, AfterValidator(_first_token)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mechanism == "relative":
            self._check_relative()
            return self
        if self.relative_noise is not None:
            refuse(f'mechanism "{self.mechanism}" takes no noise.relative_noise; write sigma or epsilon')
        if self.budget_epsilon == UNLIMITED:
            refuse(
                f'noise.budget_epsilon = "{UNLIMITED}" is for mechanism "relative" alone, which has no price; write a '
                "number"
            )
        if self.mechanism == "clipped":
            self._check_clipped()
        self._check_price()
        return self

    def _check_price(self) -> None:
        if self.adjacency is None:
            refuse(
                "noise.adjacency is missing; write adjacency = K, K at least the tokens of the longest secret times "
                'how often it occurs, or adjacency = "prompt"'
            )
        if (self.sigma is None) == (self.epsilon is None):
            refuse("[noise] says in both or neither way how much noise; write sigma, or epsilon and delta")
        if self.epsilon is not None and self.delta is None:
            refuse(f"noise.epsilon means nothing without a delta; write delta = {DEFAULT_DELTA:g} or less beside it")
        if self.epsilon is not None and self.budget < self.epsilon:
            refuse("noise.budget_epsilon is below epsilon, so that not one prompt could be sent; write it or more")

    def _check_clipped(self) -> None:
        if self.adjacency != "prompt":
            refuse(
                'mechanism "clipped" promises nothing about a number of tokens, for one token changes every later row '
                'of every later layer; write adjacency = "prompt", or mechanism = "embedding"'
            )
        if self.sigma is not None or self.epsilon is None:
            refuse('mechanism "clipped" spreads its noise over the cache\'s slabs; write epsilon and delta, not sigma')
        self._check_no_post()

    def _check_relative(self) -> None:
        """Refuse every word that would look like a promise, and a budget, which no run could be within."""
        if self.relative_noise is None:
            refuse(f'mechanism "relative" needs noise.relative_noise; {_SAY_RELATIVE}')
        if (self.adjacency, self.sigma, self.epsilon, self.delta) != (None, None, None, None):
            refuse(
                'mechanism "relative" is empirical only and promises nothing; leave adjacency, sigma, epsilon and '
                "delta out"
            )
        if self.budget_epsilon != UNLIMITED:
            refuse(
                'mechanism "relative" costs infinitely much, so that a budget refuses every run; write budget_epsilon '
                f'= "{UNLIMITED}" to say that none applies, or another mechanism'
            )
        self._check_no_post()

    def _check_no_post(self) -> None:
        if self.post != "none":
            refuse(
                f'noise.post works on embeddings, which mechanism "{self.mechanism}" leaves as they are; leave it out'
            )

    @property
    def stated_delta(self) -> float:
        """Return the delta at which epsilon is stated."""
        return DEFAULT_DELTA if self.delta is None else self.delta

    @property
    def budget(self) -> float:
        """Return the budget as a number: infinite where none applies."""
        return self.budget_epsilon if isinstance(self.budget_epsilon, float) else math.inf

    @property
    def adjacency_tokens(self) -> int | None:
        """Return how many tokens a neighbour may have replaced; None for all of them."""
        return self.adjacency if isinstance(self.adjacency, int) else None


def adjacency_words(tokens: int | None) -> str:
    """Say an adjacency in words."""
    if tokens is None:
        return "replace the whole private text"
    return f"replace {tokens} token{'s' if tokens > 1 else ''}"


class Sampling(Section):
    """How the cloud chooses tokens, said here because whatever the caller says could depend on private text."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    # TOML gives lists; a tuple keeps the frozen policy hashable.
    stop: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= self.max_new_tokens <= _MAX_NEW_TOKENS:
            refuse(f"sampling.max_new_tokens is outside 1 to {_MAX_NEW_TOKENS}; write a number of tokens in that range")
        if not 0 <= self.temperature <= _MAX_TEMPERATURE or not 0 < self.top_p <= 1:
            refuse("sampling.temperature or top_p is out of range; write temperature = 0.0 and top_p = 1.0 for greedy")
        if not 0 <= self.top_k < 2**31 or not 0 <= self.seed < 2**63:
            refuse(
                "sampling.top_k or seed is negative or too large; write top_k = 0 to keep all, and any seed from 0 on"
            )
        if len(self.stop) > _MAX_STOPS or not all(1 <= len(text) <= _MAX_STOP_LETTERS for text in self.stop):
            refuse(
                f"sampling.stop has more than {_MAX_STOPS} texts, or an empty or overlong one; write few and short ones"
            )
        return self
