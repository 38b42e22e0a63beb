"""The report: figures a policy, and as JSON; ceilings that a pipeline can gate on. Evaluation; no IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.prefix_timing import TimingResult
from splitinfer.evaluation.audit.fresh import Audited
from splitinfer.evaluation.intervals import Rate

if TYPE_CHECKING:
    from splitinfer.evaluation.active import ActiveFigures
    from splitinfer.evaluation.store_reader import StoreFigures

__all__ = [
    "CEILINGS",
    "FORMAT",
    "AttackFigures",
    "CostFigures",
    "NoiseFigures",
    "PolicyFigures",
    "Report",
    "TenantFigures",
    "UtilityFigures",
    "exceeded",
    "parse_ceiling",
]

FORMAT = "splitinfer-evaluation/1"
CEILINGS = (
    "token_recovery",
    "exact_prompt",
    "personal_data",
    "confirmation",
    "prefix_timing",
    "noise_audit",
    "active",
    "store",
)


@dataclass(frozen=True, slots=True)
class AttackFigures:
    """What one attack from one seat recovered of the private parts of `prompts` prompts; times are of the attack.

    `tenths` are the shares of tokens in each tenth of the private positions; none for a text without positions.
    """

    seat: str
    attack: str
    tokens: Rate
    exact: Rate
    personal_data: Rate
    rouge_l: float
    seconds: float
    prompts: int
    tenths: tuple[Rate, ...] = ()

    @classmethod
    def sum(cls, rows: Sequence[AttackFigures]) -> AttackFigures:
        """Add up the rows of one seat and attack; ROUGE-L and seconds become means."""
        none = Rate(0, 0)
        return cls(
            rows[0].seat,
            rows[0].attack,
            sum((row.tokens for row in rows), none),
            sum((row.exact for row in rows), none),
            sum((row.personal_data for row in rows), none),
            sum(row.rouge_l for row in rows) / len(rows),
            sum(row.seconds for row in rows) / len(rows),
            len(rows),
            tuple(sum(tenth, none) for tenth in zip(*(row.tenths for row in rows), strict=True)),
        )

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "seat": self.seat,
            "attack": self.attack,
            "token_recovery": self.tokens.to_json(),
            "exact_prompt": self.exact.to_json(),
            "personal_data": self.personal_data.to_json(),
            "rouge_l": round(self.rouge_l, 4),
            "seconds": round(self.seconds, 3),
            "by_tenth": [round(rate.share, 6) for rate in self.tenths],
        }


@dataclass(frozen=True, slots=True)
class UtilityFigures:
    """Quality kept: right answers, divergence from the exact run in nats a token, share of equal next tokens."""

    answers: Rate
    kl_nats: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class CostFigures:
    """Means over the prompts."""

    bytes_up: int
    bytes_down: int
    ttft_seconds: float
    seconds_per_token: float
    device_cpu_seconds: float


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """What a tenant's clock says of another one's public texts: on the cloud as it is, and on one without secrets."""

    isolated: TimingResult
    shared: TimingResult

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {"isolated": self.isolated.to_json(), "shared": self.shared.to_json()}


@dataclass(frozen=True, slots=True)
class NoiseFigures:
    """What a noised policy promises, as the certificate of its first release says it, and what an audit found.

    The audit asks whether the noise is as strong as promised; it says nothing about who recovers what, and is None
    where nothing is promised. `residual` is the worst of the caches that were inverted to their inputs, None where none
    was: above 1e-3 the attacker did not have all that a better one would have.
    """

    certificate: Mapping[str, object]
    audited: Audited | None
    residual: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "certificate": dict(self.certificate),
            "audit": self.audited and self.audited.to_json(),
            "residual": self.residual,
        }


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """One policy: leakage by seat and attack, utility, cost. `confirmation` is the share first of `lookalikes`.

    `seen` says for each seat what it saw of the first prompt, `layers` what each layer of a cache gives away alone.
    `tenants` is None where the cloud keeps nothing that another tenant could find, `noise` where nothing is noised,
    `active` where nothing crosses. `chosen` counts what codec "auto" chose.
    """

    name: str
    mode: str
    codec: str
    policy_sha256: str
    attacks: tuple[AttackFigures, ...]
    confirmation: Mapping[str, Rate]
    utility: UtilityFigures
    cost: CostFigures
    seen: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[int, Rate] = field(default_factory=dict)
    tenants: TenantFigures | None = None
    noise: NoiseFigures | None = None
    lookalikes: int = 100
    chosen: Mapping[str, int] = field(default_factory=dict)
    active: ActiveFigures | None = None
    store: StoreFigures | None = None

    def worst(self, figure: str) -> float:
        """Return the highest value of one of `CEILINGS` over all seats and attacks; chance where nothing was played."""
        if figure == "noise_audit":
            return float(self.noise is not None and self.noise.audited is not None and self.noise.audited.is_refuted)
        if figure == "active":
            return 0.0 if self.active is None else self.active.accepted.share
        if figure == "store":
            return 0.0 if self.store is None else self.store.found.share
        if figure == "prefix_timing":
            return 0.5 if self.tenants is None else self.tenants.isolated.auc
        if figure == "confirmation":
            return max((rate.share for rate in self.confirmation.values()), default=0.0)
        rates = {"token_recovery": "tokens", "exact_prompt": "exact", "personal_data": "personal_data"}
        return max((float(getattr(row, rates[figure]).share) for row in self.attacks), default=0.0)

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "policy": self.name,
            "mode": self.mode,
            "codec": self.codec,
            "codec_chosen": dict(self.chosen),
            "policy_sha256": self.policy_sha256,
            "seen": dict(self.seen),
            "leakage": [row.to_json() for row in self.attacks],
            "lookalikes": self.lookalikes,
            "confirmation": {seat: rate.to_json() for seat, rate in self.confirmation.items()},
            "utility": {
                "answers": self.utility.answers.to_json(),
                "kl_nats": round(self.utility.kl_nats, 6),
                "top1_agreement": round(self.utility.top1_agreement, 6),
            },
            "by_layer": {str(layer): rate.to_json() for layer, rate in self.layers.items()},
            "tenants": None if self.tenants is None else self.tenants.to_json(),
            "noise": None if self.noise is None else self.noise.to_json(),
            "active": None if self.active is None else self.active.to_json(),
            "store": None if self.store is None else self.store.to_json(),
            "cost": {name: round(value, 6) for name, value in asdict(self.cost).items()},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All policies of one evaluation, on one model."""

    weights_sha256: str
    parameters: int
    prompts: int
    seed: int
    policies: tuple[PolicyFigures, ...]

    def to_json(self) -> dict[str, object]:
        """Return what a committed report holds."""
        return {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "parameters": self.parameters,
            "prompts": self.prompts,
            "seed": self.seed,
            "policies": [policy.to_json() for policy in self.policies],
        }


def parse_ceiling(text: str) -> tuple[str, float]:
    """Return (figure, ceiling) of "figure=0.01"; raises UsageError."""
    name, _, value = text.partition("=")
    try:
        ceiling = float(value)
    except ValueError:
        ceiling = -1.0
    if name not in CEILINGS or not 0 <= ceiling <= 1:
        raise UsageError(f"--fail-above takes FIGURE=SHARE with a share from 0 to 1, a figure of {', '.join(CEILINGS)}")
    return name, ceiling


def exceeded(report: Report, ceilings: Sequence[tuple[str, float]]) -> list[str]:
    """Return a sentence for every policy and ceiling that it exceeds."""
    return [
        f"{policy.name}: {name} is {policy.worst(name):.4f}, above {ceiling:g}"
        for policy in report.policies
        for name, ceiling in ceilings
        if policy.worst(name) > ceiling
    ]
