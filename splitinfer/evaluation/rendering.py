"""The report for readers: Report -> lines for a terminal, Markdown. Evaluation; no IO."""

from __future__ import annotations

from collections.abc import Sequence

from splitinfer.evaluation.attacks.prefix_timing import TimingResult
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.report import NoiseFigures, PolicyFigures, Report

__all__ = ["markdown", "text_lines"]


def text_lines(report: Report) -> list[str]:
    """Return the report as text for a terminal, a block a policy."""
    return [line for policy in report.policies for line in (*_block(policy), "")]


def markdown(report: Report) -> str:
    """Return the report as Markdown tables."""
    head = [
        "# What each policy gives away",
        "",
        f"Model {report.weights_sha256[:16]}… of {report.parameters:,} parameters, {report.prompts} prompts, seed "
        f"{report.seed}. Shares with 95 % Clopper-Pearson intervals.",
        "",
    ]
    seen = [
        f"- `{policy.name}`: the {seat} sees {what}."
        for policy in report.policies
        for seat, what in policy.seen.items()
    ]
    tables = [*_leakage_table(report.policies), "", *_cost_table(report.policies), ""]
    return "\n".join([*head, *seen, "", *tables, *_notes(report.policies)])


def _percent(rate: Rate) -> str:
    if not rate.trials:
        return "-"
    low, high = rate.interval
    return f"{100 * rate.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _block(policy: PolicyFigures) -> list[str]:
    cost, utility = policy.cost, policy.utility
    lines = [f"{policy.name} (mode {policy.mode}, codec {policy.codec})"]
    lines += [f"  {seat} sees {what}" for seat, what in policy.seen.items()]
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
    lines += _confirmed(policy)
    lines += _layers_and_tenants(policy)
    lines.append(
        f"  utility: right answers {_percent(utility.answers)}, KL {utility.kl_nats:.2e} nats, "
        f"same next token {100 * utility.top1_agreement:.1f} %"
    )
    lines.append(
        f"  cost: {cost.bytes_up:,} bytes up, {cost.bytes_down:,} down, TTFT {cost.ttft_seconds:.3f} s, "
        f"{cost.seconds_per_token:.3f} s a token, device CPU {cost.device_cpu_seconds:.3f} s"
    )
    return lines


def _layers_and_tenants(policy: PolicyFigures) -> list[str]:
    lines = [] if policy.noise is None else [_noise(policy.noise)]
    if policy.chosen:
        chosen = ", ".join(f"{name} {count} times" for name, count in policy.chosen.items())
        lines.append(f"  codec auto chose {chosen}")
    if policy.active is not None:
        accepted, codes = policy.active.accepted, policy.active.refusals
        said = ", ".join(f"{code} {count}" for code, count in codes.items())
        lines.append(
            f"  an active attacker: {accepted.successes} of {accepted.trials} manipulations accepted, "
            f"{_percent(accepted)}; the device refused with {said or 'nothing'}"
        )
    if policy.store is not None:
        store = policy.store
        lines.append(
            f"  a reader of the disk sees {store.files} files of {store.size_bytes:,} bytes in the store, and finds "
            f"{store.found.successes} of {store.found.trials} probes of texts, tokens and rows in any file"
        )
    if policy.layers:
        shares = ", ".join(f"{layer}: {100 * rate.share:.1f} %" for layer, rate in policy.layers.items())
        lines.append(f"  private tokens from one layer of the cache alone: {shares}")
    if policy.tenants is not None:
        isolated, shared = (_area(timed) for timed in (policy.tenants.isolated, policy.tenants.shared))
        lines.append(
            f"  another tenant's clock: AUC {isolated}, chance is 0.5; {shared} if the cloud kept one cache for all"
        )
    return lines


def _noise(noise: NoiseFigures) -> str:
    """Say promise and audit in one line; epsilon is None where it is beyond all numbers."""
    promised, audited = noise.certificate, noise.audited
    if audited is None:
        return f"  promised: nothing; this noise is {promised['verdict']}"
    epsilon = "infinite" if promised["epsilon"] is None else f"{promised['epsilon']:.4g}"
    residual = "" if noise.residual is None else f"; caches inverted to a residual of {noise.residual:.0e}"
    verdict = "REFUTED" if audited.is_refuted else "not refuted"
    return (
        f"  promised: epsilon {epsilon} at delta {promised['delta']:g} ({promised['adjacency']}), "
        f"{promised['verdict']}; audited with {audited.releases:,} releases: mu is at least {audited.lower_mu:.2f} of "
        f"{audited.claimed_mu:.2f} claimed for the audited pair, {verdict}{residual}"
    )


def _notes(policies: Sequence[PolicyFigures]) -> list[str]:
    """Return what has no place in the tables, as a list; empty where there is nothing."""
    lines = [
        f"- `{policy.name}`:{line.removeprefix(' ')}."
        for policy in policies
        for line in _confirmed(policy) + _layers_and_tenants(policy)
    ]
    return [*lines, ""] if lines else []


def _confirmed(policy: PolicyFigures) -> list[str]:
    return [
        f"  {seat}: the true value first of its look-alikes in {_percent(rate)}; chance is 1 in {policy.lookalikes}"
        for seat, rate in policy.confirmation.items()
    ]


def _area(timed: TimingResult) -> str:
    low, high = timed.interval
    return f"{timed.auc:.2f} [{low:.2f}, {high:.2f}]"


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
