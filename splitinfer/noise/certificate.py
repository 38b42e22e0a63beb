"""The leakage certificate of one noised release: what was promised, in numbers and in a sentence; on the device, pure.

Bounds are on the chance that a token is recovered, from what an attacker's guess would be worth without the release:
Phi(Phi^-1(prior) + mu of one token). They hold for every attacker. The shipped attacker's rate is what one was measured
to do, and bounds nobody else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from splitinfer import schedule
from splitinfer.noise.accounting import Adjacency, NoiseEvent, empirical_event, slab_event
from splitinfer.noise.empirical import LABEL
from splitinfer.noise.gaussian import epsilon_of, mu_of, recovery_bound
from trust_models.noise import MEANINGLESS_ABOVE_EPSILON, Noise

__all__ = [
    "MEANINGLESS",
    "MEANINGLESS_ABOVE_EPSILON",
    "PRIORS",
    "Certificate",
    "Measured",
    "SlabNoise",
    "certify",
    "promise_of",
]

MEANINGLESS = f"formally meaningless, {LABEL}"
PRIORS = (0.1, 0.5)
SIGMA_RULE = "sigma_j^2 = (c_j / sqrt(a_j)) (sum over i of c_i sqrt(a_i)) 4 n / mu^2, a_j = w_j d_j"
"""How the noise of a clipped cache is spread over slabs of dimension d_j, clip c_j and weight w_j, for n rows."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation found for a policy and a model.

    `prior` is how often a language model alone guesses a private token, `recovery` the share of private tokens that the
    attacker that ships with this program recovered.
    """

    prior: float
    recovery: float


@dataclass(frozen=True, slots=True)
class SlabNoise:
    """The noise on one slab of a clipped cache: rows are cut to `clip_norm`, which bounds the sensitivity."""

    slab: str
    clip_norm: float
    l2_sensitivity: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one release promises. Fields that do not apply are None: an empirical release has no epsilon.

    `l2_sensitivity` and `sigma` are those of noised embeddings, between neighbours. A clipped cache has a sigma for
    every one of its `slabs`, and its `l2_sensitivity` is that of all of them together. `sensitivity_is_exact` tells
    what neighbours can reach, an enumerated distance or two ends of a clip, from a proven bound. `measured_prior` is a
    language model's own chance to guess a token.
    """

    mechanism: str
    post: str
    adjacency: Adjacency
    mu: float | None
    mu_one_token: float | None
    epsilon: float | None
    delta: float | None
    l2_sensitivity: float | None = None
    sensitivity_is_exact: bool | None = None
    sigma: float | None = None
    measured_prior: float | None = None
    attacker_recovery: float | None = None
    answer_is_seen: bool = True
    slabs: tuple[SlabNoise, ...] = ()

    @property
    def is_meaningless(self) -> bool:
        """Tell whether the numbers promise nothing: no epsilon, or one above the threshold."""
        return self.epsilon is None or not self.epsilon <= MEANINGLESS_ABOVE_EPSILON

    def recovery_bounds(self) -> dict[str, float]:
        """Return the bound on the chance that a token is recovered, by the prior that it starts from."""
        if self.mu_one_token is None:
            return {}
        measured = () if self.measured_prior is None else (self.measured_prior,)
        return {f"{prior:g}": recovery_bound(prior, self.mu_one_token) for prior in (*measured, *PRIORS)}

    def to_json(self) -> dict[str, object]:
        """Return plain values for `run --json`."""
        return {
            "mechanism": self.mechanism,
            "post_processing": self.post,
            "adjacency": None if self.mechanism == "empirical" else str(self.adjacency),
            "l2_sensitivity": self.l2_sensitivity,
            "sensitivity_is_exact": self.sensitivity_is_exact,
            "sigma": self.sigma,
            "sigma_rule": SIGMA_RULE if self.slabs else None,
            "slabs": [asdict(slab) for slab in self.slabs],
            "mu": _finite(self.mu),
            "epsilon": _finite(self.epsilon),
            "delta": self.delta,
            "recovery_bound_by_prior": self.recovery_bounds(),
            "measured_prior": self.measured_prior,
            "attacker_recovery": self.attacker_recovery,
            "answer_is_seen": self.answer_is_seen,
            "verdict": self.verdict,
            "sentence": self.sentence(),
        }

    def record(self) -> dict[str, object]:
        """Return the fields for the log, numbers as text; of slabs, which can be thousands, the range and a digest."""
        plain = self.to_json()
        del plain["sentence"]
        plain["slabs"] = _of_slabs(self.slabs)
        plain["recovery_bound_by_prior"] = {prior: repr(bound) for prior, bound in self.recovery_bounds().items()}
        return {name: repr(value) if isinstance(value, float) else value for name, value in plain.items()}

    @property
    def verdict(self) -> str:
        """Return "formal", or in so many words that the numbers promise nothing."""
        if self.epsilon is None:
            return LABEL
        return MEANINGLESS if self.is_meaningless else "formal"

    def sentence(self) -> str:
        """Say what is promised, for a reader who knows no mathematics."""
        parts = [self._promise(), *self._chances(), *self._attacker()]
        if self.answer_is_seen:
            parts.append("The recipient reads the generated answer, which can repeat private text, as it is.")
        return " ".join(parts)

    def _promise(self) -> str:
        if self.epsilon is None or self.delta is None:
            return (
                "Noise was added in proportion to what it hides. This is empirical only: nothing is proven about what "
                "an observer can learn."
            )
        words = (
            f"Between two private texts of the same length ({self.adjacency}), whatever an observer concludes from "
            f"this release was at most {_times(self.epsilon)} as likely with one as with the other, but for a chance "
            f"of {self.delta:g} (epsilon {self.epsilon:.4g}, delta {self.delta:g})."
        )
        return f"{words} At that size the promise is {MEANINGLESS}." if self.is_meaningless else words

    def _chances(self) -> list[str]:
        bounds = self.recovery_bounds()
        said = [f"at most {100 * bound:.3g} % after {100 * float(prior):.3g} %" for prior, bound in bounds.items()]
        if not said:
            return []
        return [
            f"The chance that a given private token is guessed right rises to {', '.join(said)} without the release."
        ]

    def _attacker(self) -> list[str]:
        if self.attacker_recovery is None:
            return []
        rate = 100 * self.attacker_recovery
        return [
            f"The attacker that ships with this program recovered {rate:.3g} % of the private tokens in its evaluation."
        ]


def certify(
    event: NoiseEvent,
    adjacency: Adjacency,
    *,
    delta: float | None,
    post: str = "none",
    l2_sensitivity: float | None = None,
    sensitivity_is_exact: bool | None = None,
    sigma: float | None = None,
    slabs: Sequence[SlabNoise] = (),
    measured: Measured | None = None,
    answer_is_seen: bool = True,
) -> Certificate:
    """Return the certificate of an event; one without a finite price gets no epsilon, however delta is chosen."""
    mu = event.mu(adjacency)
    is_formal = math.isfinite(mu) and delta is not None
    return Certificate(
        mechanism=event.mechanism,
        post=post,
        adjacency=adjacency,
        mu=mu if is_formal else None,
        mu_one_token=event.mu(Adjacency(1)) if is_formal else None,
        epsilon=epsilon_of(mu, delta) if is_formal and delta is not None else None,
        delta=delta if is_formal else None,
        l2_sensitivity=l2_sensitivity,
        sensitivity_is_exact=sensitivity_is_exact,
        sigma=sigma,
        measured_prior=measured.prior if measured else None,
        attacker_recovery=measured.recovery if measured else None,
        answer_is_seen=answer_is_seen,
        slabs=tuple(slabs),
    )


def promise_of(noise: Noise, *, answer_is_seen: bool) -> Certificate | None:
    """Return what every run under a policy promises at least, where that follows from the policy alone.

    None where the policy states sigma: then it depends on the model.
    """
    if noise.mechanism == "relative":
        return certify(empirical_event(""), Adjacency(None), delta=None, answer_is_seen=answer_is_seen)
    if noise.epsilon is None:
        return None
    adjacency, mu = Adjacency(noise.adjacency_tokens), mu_of(noise.epsilon, noise.stated_delta)
    # Noise for all tokens is made for a size class of theirs, which is never smaller than the least one.
    replaced = schedule.pad_tokens(1) if adjacency.tokens is None else adjacency.tokens
    one = mu / math.sqrt(replaced)
    event = NoiseEvent("embedding", one, max(mu, one), key_sha256="")
    if noise.mechanism == "clipped":
        event = slab_event(mu, key_sha256="")
    return certify(event, adjacency, delta=noise.stated_delta, post=noise.post, answer_is_seen=answer_is_seen)


def _of_slabs(slabs: Sequence[SlabNoise]) -> dict[str, object]:
    if not slabs:
        return {}
    sigmas = [slab.sigma for slab in slabs]
    text = "\n".join(f"{slab.slab} {slab.clip_norm!r} {slab.l2_sensitivity!r} {slab.sigma!r}" for slab in slabs)
    return {
        "count": len(slabs),
        "sigma_least": repr(min(sigmas)),
        "sigma_most": repr(max(sigmas)),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _times(epsilon: float) -> str:
    if epsilon < 7:
        return f"{math.exp(epsilon):.3g} times"
    return f"10^{epsilon / math.log(10):.4g} times"
