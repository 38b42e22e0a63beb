"""The report: figures a policy, as JSON, as a table and as Markdown; ceilings that a pipeline can gate on. No IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from splitinfer.errors import UsageError
from splitinfer.evaluation.intervals import Rate

__all__ = [
    "CEILINGS",
    "FORMAT",
    "AttackFigures",
    "CostFigures",
    "PolicyFigures",
    "Report",
    "UtilityFigures",
    "exceeded",
    "parse_ceiling",
]

FORMAT = "splitinfer-evaluation/1"
CEILINGS = ("token_recovery", "exact_prompt", "personal_data", "confirmation")


@dataclass(frozen=True, slots=True)
class AttackFigures:
    """What one attack from one seat recovered of the private parts of `prompts` prompts; times are of the attack."""

    seat: str
    attack: str
    tokens: Rate
    exact: Rate
    personal_data: Rate
    rouge_l: float
    seconds: float
    prompts: int

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
class PolicyFigures:
    """One policy: leakage by seat and attack, utility, cost. `confirmation` is the share first of 100, by seat."""

    name: str
    mode: str
    codec: str
    policy_sha256: str
    attacks: tuple[AttackFigures, ...]
    confirmation: Mapping[str, Rate]
    utility: UtilityFigures
    cost: CostFigures

    def worst(self, figure: str) -> float:
        """Return the highest share of one of `CEILINGS` over all seats and attacks; 0 where nothing was played."""
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
            "policy_sha256": self.policy_sha256,
            "leakage": [row.to_json() for row in self.attacks],
            "confirmation": {seat: rate.to_json() for seat, rate in self.confirmation.items()},
            "utility": {
                "answers": self.utility.answers.to_json(),
                "kl_nats": round(self.utility.kl_nats, 6),
                "top1_agreement": round(self.utility.top1_agreement, 6),
            },
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

    def lines(self) -> list[str]:
        """Return the report as text for a terminal, a block a policy."""
        return [line for policy in self.policies for line in (*_block(policy), "")]

    def markdown(self) -> str:
        """Return the report as Markdown tables."""
        head = [
            "# What each policy gives away",
            "",
            f"Model {self.weights_sha256[:16]}… of {self.parameters:,} parameters, {self.prompts} prompts, seed "
            f"{self.seed}. Shares with 95 % Clopper-Pearson intervals.",
            "",
        ]
        return "\n".join([*head, *_leakage_table(self.policies), "", *_cost_table(self.policies), ""])


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


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _block(policy: PolicyFigures) -> list[str]:
    cost, utility = policy.cost, policy.utility
    lines = [f"{policy.name} (mode {policy.mode}, codec {policy.codec})"]
    rows = [("seat", "attack", "private tokens", "whole prompt", "personal data", "ROUGE-L", "s")]
    rows += [
        (
            row.seat,
            row.attack,
            _percent(row.tokens),
            _percent(row.exact),
            _percent(row.personal_data),
            f"{row.rouge_l:.3f}",
            f"{row.seconds:.2f}",
        )
        for row in policy.attacks
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {'  '.join(cells).rstrip()}")
    for seat, rate in policy.confirmation.items():
        lines.append(f"  {seat}: the true value first of 100 look-alikes in {_percent(rate)}; chance is 1 %")
    lines.append(
        f"  utility: right answers {_percent(utility.answers)}, KL {utility.kl_nats:.2e} nats, "
        f"same next token {100 * utility.top1_agreement:.1f} %"
    )
    lines.append(
        f"  cost: {cost.bytes_up:,} bytes up, {cost.bytes_down:,} down, TTFT {cost.ttft_seconds:.3f} s, "
        f"{cost.seconds_per_token:.3f} s a token, device CPU {cost.device_cpu_seconds:.3f} s"
    )
    return lines


def _leakage_table(policies: Sequence[PolicyFigures]) -> list[str]:
    lines = ["| policy | seat | attack | private tokens | whole prompt | personal data |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{policy.name}` | {row.seat} | {row.attack} | {_percent(row.tokens)} | {_percent(row.exact)} | "
        f"{_percent(row.personal_data)} |"
        for policy in policies
        for row in policy.attacks
    ]
    return lines


def _cost_table(policies: Sequence[PolicyFigures]) -> list[str]:
    lines = [
        "| policy | right answers | KL, nats | same next token | bytes up | bytes down | TTFT | s/token | device CPU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{policy.name}` | {_percent(policy.utility.answers)} | {policy.utility.kl_nats:.2e} | "
        f"{100 * policy.utility.top1_agreement:.1f} % | {policy.cost.bytes_up:,} | {policy.cost.bytes_down:,} | "
        f"{policy.cost.ttft_seconds:.3f} s | {policy.cost.seconds_per_token:.3f} | "
        f"{policy.cost.device_cpu_seconds:.3f} s |"
        for policy in policies
    ]
    return lines
