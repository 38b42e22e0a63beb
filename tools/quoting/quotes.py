"""What a quote shows: `REPORT/PATH` and the committed report -> a number with its interval, or a whole table.

    evaluation/setting                                    which model, how many prompts
    evaluation/leakage, /costs, /promises                 tables over all policies
    evaluation/POLICY/SEAT/ATTACK/FIGURE                  a share; ATTACK `worst` is the highest, `chance` the prior
    evaluation/POLICY/SEAT/confirmation                   the true value first of its look-alikes
    evaluation/POLICY/answers, /kl                        utility
    evaluation/POLICY/tenants, /active, /store            another tenant's clock, who tampers, who reads the store
    attacks/setting, attacks/bars, attacks/bar/NAME       the bars with their marks
    noise/setting, noise/answers                          right answers by strength of noise

A name is checked whether or not its report was measured; one that was not shows as that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tools.quoting.reports import REPORTS, QuoteError, Report, load_committed
from tools.quoting.tables import FIGURES, TABLES, answers, bars, model_of, of_policy, rate, strongest

__all__ = ["NOT_MEASURED", "shown"]

NOT_MEASURED = "not measured yet"
_SEATS = ("network", "recipient")
_FIGURE = re.compile(rf"[^/]+/(?:{'|'.join(_SEATS)})/(?:[a-z-]+/(?:{'|'.join(FIGURES)})|confirmation)")
_OF_POLICY = re.compile(r"[^/]+/(?:answers|kl|tenants|active|store)")


def shown(quote: str, folder: Path) -> str:
    """Return the text that stands for a quote; raises QuoteError for a name that quotes nothing."""
    name, _, path = quote.partition("/")
    report = load_committed(name, folder)
    is_table = _is_table(name, path)
    if report is None:
        command = f"`{REPORTS[name].command}`, then `python tools/quote_reports.py`, writes it here"
        return f"\n\n*{NOT_MEASURED.capitalize()}: {command}.*\n\n" if is_table else NOT_MEASURED
    text = _rendered(name, path, report)
    return f"\n\n{text}\n\n" if is_table else text


def _is_table(name: str, path: str) -> bool:
    """Tell a table from a number; raises QuoteError for a path of no known form."""
    if name.startswith("evaluation"):
        forms = _FIGURE.fullmatch(path) or _OF_POLICY.fullmatch(path)
        tables: Sequence[str] = tuple(TABLES)
    else:
        forms = re.fullmatch(r"bar/.+", path) if name == "attacks" else None
        tables = ("bars",) if name == "attacks" else ("answers",)
    if path not in tables and path != "setting" and not forms:
        raise QuoteError(f"{name}/{path} quotes nothing; tools/quoting/quotes.py lists what can be quoted")
    return path in tables


def _rendered(name: str, path: str, report: Report) -> str:
    try:
        if name == "attacks":
            return _of_attacks(path, report)
        return _of_noise(path, report) if name == "noise" else _of_evaluation(path, report)
    except (KeyError, IndexError, TypeError):
        raise QuoteError(f"the committed report has nothing to show for {name}/{path}") from None


def _of_evaluation(path: str, report: Report) -> str:
    if path == "setting":
        return f"{model_of(report)}, {report['prompts']} prompts a policy, seed {report['seed']}"
    if path in TABLES:
        return "\n".join(TABLES[path](report["policies"]))
    name, *figure = path.split("/")
    policy = next((policy for policy in report["policies"] if policy["policy"] == name), {})
    if len(figure) == 1:
        return of_policy(policy, figure[0])
    if figure[1] == "confirmation":
        return rate(policy["confirmation"][figure[0]])
    return rate(strongest(policy, *figure)[figure[2]])


def _of_attacks(path: str, report: Report) -> str:
    if path == "setting":
        return model_of(report)
    if path == "bars":
        return "\n".join(bars(report["bars"]))
    wanted = path.removeprefix("bar/")
    found = [str(bar["figure"]) for bar in report["bars"] if bar["name"] == wanted]
    return found[0]


def _of_noise(path: str, report: Report) -> str:
    if path == "answers":
        return "\n".join(answers(report["levels"]))
    return (
        f"{model_of(report)}, {report['prompts']} held-out prompts, largest distance {report['distance']:.1f}, "
        f"{report['right']} right without noise"
    )
