"""Tables and numbers as documents show them: parts of a committed report -> Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.quoting.reports import Report

__all__ = ["FIGURES", "TABLES", "answers", "bars", "model_of", "of_policy", "rate", "strongest"]

FIGURES = ("token_recovery", "exact_prompt", "personal_data")


def model_of(report: Report) -> str:
    """Say which model was measured."""
    return f"model `{report['weights_sha256'][:16]}`"


def rate(found: Any) -> str:
    """Show a share with its interval; a dash where nothing was tried."""
    if not found or not found["trials"]:
        return "-"
    return f"{100 * found['share']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def of_policy(policy: Report, figure: str) -> str:
    """Show one figure of a policy that belongs to no seat; raises KeyError or TypeError where it has none."""
    if figure == "answers":
        return rate(policy["utility"]["answers"])
    if figure == "kl":
        return f"{policy['utility']['kl_nats']:.2e}"
    if figure == "active":
        return f"{rate(policy['active']['accepted'])} of {policy['active']['accepted']['trials']}"
    if figure == "store":
        return f"{rate(policy['store']['found'])} of {policy['store']['found']['trials']}"
    return f"{_area(policy['tenants']['isolated'])}, {_area(policy['tenants']['shared'])} without the secret"


def strongest(policy: Report, seat: str, attack: str, figure: str) -> Any:
    """Return an attack's row at a seat; `worst` is the one that has most of the figure, `chance` the prior."""
    rows = [row for row in policy["leakage"] if row["seat"] == seat]
    if attack == "worst":
        return max((row for row in rows if row["attack"] != "prior"), key=lambda row: row[figure]["share"], default={})
    wanted = "prior" if attack == "chance" else attack
    return next((row for row in rows if row["attack"] == wanted), {})


def _leakage(policies: Sequence[Any]) -> list[str]:
    lines = ["| policy | seat | strongest attack | private tokens | chance | whole prompt | personal data |"]
    lines.append("|---|---|---|---|---|---|---|")
    for policy in policies:
        for seat in dict.fromkeys(row["seat"] for row in policy["leakage"]):
            worst = {figure: strongest(policy, seat, "worst", figure) for figure in FIGURES}
            shares = [rate(row.get(figure)) for figure, row in worst.items()]
            shares.insert(1, rate(strongest(policy, seat, "chance", "token_recovery").get("token_recovery")))
            attack = worst["token_recovery"].get("attack", "none that could be played")
            lines.append(f"| `{policy['policy']}` | {' | '.join((seat, attack, *shares))} |")
    return lines


def _costs(policies: Sequence[Any]) -> list[str]:
    lines = ["| policy | codec | right answers | KL, nats | same next token | bytes up | bytes down |"]
    lines.append("|---|---|---|---|---|---|---|")
    for policy in policies:
        utility, cost = policy["utility"], policy["cost"]
        lines.append(
            f"| `{policy['policy']}` | `{policy['codec']}` | {rate(utility['answers'])} | {utility['kl_nats']:.2e} | "
            f"{100 * utility['top1_agreement']:.1f} % | {cost['bytes_up']:,.0f} | {cost['bytes_down']:,.0f} |"
        )
    return lines


def _promises(policies: Sequence[Any]) -> list[str]:
    lines = ["| policy | mechanism | sigma | epsilon at delta | audit: mu at least, of the claim | strongest attack |"]
    lines.append("|---|---|---|---|---|---|")
    for policy in policies:
        if policy["noise"] is None:
            continue
        promised, audited = policy["noise"]["certificate"], policy["noise"]["audit"]
        sigma = "each slab's own" if promised["sigma"] is None else f"{promised['sigma']:.3g}"
        worst = strongest(policy, "recipient", "worst", "token_recovery").get("token_recovery")
        lines.append(
            f"| `{policy['policy']}` | {promised['mechanism']} | {sigma} | {_epsilon(promised)} | "
            f"{_audited(audited)} | {rate(worst)} |"
        )
    return lines


TABLES: Mapping[str, Callable[[Sequence[Any]], list[str]]] = {
    "leakage": _leakage,
    "costs": _costs,
    "promises": _promises,
}
"""Tables over all policies of an evaluation."""


def bars(found: Sequence[Report]) -> list[str]:
    """Return the bars of the attacks with their marks."""
    verdicts = {True: "reached", False: "missed", None: "not judged"}
    return ["| bar | measured | mark | |", "|---|---|---|---|"] + [
        f"| {bar['name']} | {bar['figure']} | {bar['mark']} | {verdicts[bar['is_reached']]} |" for bar in found
    ]


def answers(levels: Sequence[Report]) -> list[str]:
    """Return right answers by strength of noise and post-processing."""
    lines = ["| sigma | epsilon for 1 token at delta 1e-5 | none | nearest | posterior | own row is the nearest |"]
    lines.append("|---|---|---|---|---|---|")
    return lines + [
        f"| {row['sigma']:g} | {row['epsilon']:,.4g} | {row['none']} | {row['nearest']} | {row['posterior']} | "
        f"{100 * row['own_row_share']:.1f} % |"
        for row in levels
    ]


def _audited(audited: Any) -> str:
    if audited is None:
        return "-"
    lower = audited["lower_mu"] if isinstance(audited["lower_mu"], str) else f"{audited['lower_mu']:.2f}"
    return f"{lower} of {audited['claimed_mu']:.2f}"


def _epsilon(promised: Report) -> str:
    if promised["delta"] is None:
        return str(promised["verdict"])
    epsilon = "infinite" if promised["epsilon"] is None else f"{promised['epsilon']:.4g}"
    return f"{epsilon} at {promised['delta']:g} ({promised['adjacency']})"


def _area(timed: Report) -> str:
    return f"AUC {timed['auc']:.2f} [{timed['low']:.2f}, {timed['high']:.2f}]"
