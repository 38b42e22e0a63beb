"""The privacy ledger: records of the audit log to what a subject has spent, and the next record; device side, pure.

`charge` is what `AuditLog.append_if` runs under its lock: it reads every record so far and returns the one that is
appended, durably, before anything is released. Numbers stand in the log as text that reads back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from splitinfer.errors import CryptoParameterError, UnsupportedEventError
from splitinfer.noise.accounting import Limit, Mechanism, NoiseEvent, Spending, admit
from splitinfer.noise.gaussian import composed, epsilon_of

__all__ = ["RECORD_TYPE", "Charge", "charge", "events_of", "spending"]

RECORD_TYPE = "noise"
_FORM = 1
_MECHANISMS: Mapping[str, Mechanism] = {word: word for word in get_args(Mechanism)}


@dataclass(frozen=True, slots=True)
class Charge:
    """A release about to happen: whose budget pays, what happens, and the limit."""

    subject: str
    event: NoiseEvent
    limit: Limit


def charge(
    records: Iterable[Mapping[str, object]], wanted: Charge, *, fields: Mapping[str, object]
) -> dict[str, object]:
    """Return the record to append, `fields` included; raises as `admit` does, and then nothing is released.

    A key is looked for among all subjects, for the source of randomness is one.
    """
    noised = [record for record in records if record.get("type") == RECORD_TYPE]
    if any(record.get("key_sha256") == wanted.event.key_sha256 for record in noised):
        raise CryptoParameterError("the key of this noise was used before; the source of randomness repeats itself")
    total = admit(events_of(noised, subject=wanted.subject), wanted.event, wanted.limit)
    return {
        **fields,
        "type": RECORD_TYPE,
        "form": _FORM,
        "subject": wanted.subject,
        "mechanism": wanted.event.mechanism,
        "mu_one_token": repr(wanted.event.mu_one_token),
        "mu_whole_prompt": repr(wanted.event.mu_whole_prompt),
        "key_sha256": wanted.event.key_sha256,
        "adjacency_tokens": wanted.limit.adjacency.tokens,
        "delta": repr(wanted.limit.delta),
        "epsilon_spent": repr(total.epsilon),
        "epsilon_limit": repr(wanted.limit.epsilon),
    }


def events_of(records: Iterable[Mapping[str, object]], *, subject: str) -> Iterator[NoiseEvent]:
    """Yield the events of one subject; raises UnsupportedEventError for a record that this version cannot price."""
    for record in records:
        if record.get("type") == RECORD_TYPE and record.get("subject") == subject:
            yield _event(record)


def spending(records: Iterable[Mapping[str, object]], *, subject: str, limit: Limit) -> Spending:
    """Return what a subject has spent, between the limit's neighbours and at its delta."""
    events = list(events_of(records, subject=subject))
    mu = composed(event.mu(limit.adjacency) for event in events)
    return Spending(len(events), mu, epsilon_of(mu, limit.delta))


def _event(record: Mapping[str, object]) -> NoiseEvent:
    mechanism = _MECHANISMS.get(str(record.get("mechanism")))
    one, whole, key = (record.get(name) for name in ("mu_one_token", "mu_whole_prompt", "key_sha256"))
    texts = isinstance(one, str) and isinstance(whole, str) and isinstance(key, str)
    if record.get("form") != _FORM or mechanism is None or not texts:
        raise UnsupportedEventError("the audit log holds a privacy event that this version cannot price")
    try:
        return NoiseEvent(mechanism, float(str(one)), float(str(whole)), str(key))
    except ValueError:
        raise UnsupportedEventError("the audit log holds a privacy event whose price is no number") from None
