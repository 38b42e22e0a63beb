"""What a run gives back: the answer, what left the device for it, and how long it took; on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from splitinfer.egress.gate import Permit
from splitinfer.noise.certificate import Certificate
from splitinfer.sealing.receipt import Receipt
from splitinfer.selector import Choice

__all__ = ["Answer", "EgressSummary"]


@dataclass(frozen=True, slots=True)
class EgressSummary:
    """What moved, counted by the gate in body bytes, and to whom."""

    protection: str = "none"
    recipient_identity_sha256: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    calls: tuple[Mapping[str, object], ...] = ()

    @classmethod
    def of(cls, permit: Permit) -> EgressSummary:
        """Summarise a permit."""
        return cls(
            protection=permit.intent.protection,
            recipient_identity_sha256=permit.intent.recipient_identity_sha256,
            bytes_sent=permit.bytes_sent,
            bytes_received=permit.bytes_received,
            calls=tuple(call.record() for call in permit.calls),
        )

    def plus(self, other: EgressSummary) -> EgressSummary:
        """Add what moved under a later permit of the same run, and to the same recipient."""
        return replace(
            other,
            bytes_sent=self.bytes_sent + other.bytes_sent,
            bytes_received=self.bytes_received + other.bytes_received,
            calls=self.calls + other.calls,
        )

    def __str__(self) -> str:
        """Say it in one line."""
        if not self.calls:
            return "nothing left the device"
        to = self.recipient_identity_sha256[:16]
        moved = f"{self.bytes_sent:,} bytes up, {self.bytes_received:,} bytes down"
        return f"{moved}, {self.protection}, {len(self.calls)} calls to identity {to}…"


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer. Times are seconds from the request in an open session; load time is not in them.

    `exact` tells whether both sides had equal numerics and the codec is bit-exact, so that the tokens are those of
    mode `local`. `receipt` is the recipient's signed receipt, checked against the log, or None where nothing left.
    `base_tokens` of the prompt came from earlier turns of the session: nothing of them was sent, received or, in mode
    `local`, computed again; the others are `new_tokens`.
    `choice` is what codec "auto" chose and what it expected, None under a policy that names a codec.
    `is_reused` tells that the public text's cache came from the device's store, so that nothing left in this run.
    `certificate` says what a noised release promised, None where nothing was noised.
    """

    mode: str
    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str
    prompt_tokens: int
    public_tokens: int
    prefilled_by_cloud_tokens: int
    decoded_on: str
    egress: EgressSummary
    receipt: Receipt | None
    exact: bool
    is_fallback: bool
    ttft_seconds: float
    tpot_seconds: float
    policy_digest: str
    audit_size: int
    audit_root: str
    is_reused: bool = False
    base_tokens: int = 0
    choice: Choice | None = None
    note: str | None = None
    certificate: Certificate | None = None

    @property
    def private_tokens(self) -> int:
        """Count the prompt's tokens that are not public, template literals included."""
        return self.prompt_tokens - self.public_tokens

    @property
    def new_tokens(self) -> int:
        """Count the prompt's tokens that this turn added."""
        return self.prompt_tokens - self.base_tokens

    def to_json(self) -> dict[str, object]:
        """Return plain values for `run --json`."""
        return {
            "mode": self.mode,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "public_tokens": self.public_tokens,
            "private_tokens": self.private_tokens,
            "base_tokens": self.base_tokens,
            "new_tokens": self.new_tokens,
            "prefilled_by_cloud_tokens": self.prefilled_by_cloud_tokens,
            "decoded_on": self.decoded_on,
            "bytes_sent": self.egress.bytes_sent,
            "bytes_received": self.egress.bytes_received,
            "protection": self.egress.protection,
            "calls": [dict(call) for call in self.egress.calls],
            "ttft_seconds": round(self.ttft_seconds, 6),
            "tpot_seconds": round(self.tpot_seconds, 6),
            "policy_digest": self.policy_digest,
            "exact": self.exact,
            "is_fallback": self.is_fallback,
            "is_reused": self.is_reused,
            "choice": self.choice.to_json() if self.choice else None,
            "receipt": self.receipt.model_dump(mode="json") if self.receipt else None,
            "audit_size": self.audit_size,
            "audit_root": self.audit_root,
            "note": self.note,
            "certificate": self.certificate.to_json() if self.certificate else None,
        }
