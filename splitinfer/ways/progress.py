"""What becomes known while a run goes: tokens, times, exactness, what left -> its `Answer`; on the device."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from splitinfer.answer import EgressSummary
from splitinfer.cache.growing import GrowingCache
from splitinfer.carrier import Carrier
from splitinfer.conversation import Origin
from splitinfer.noise.certificate import Certificate
from splitinfer.partial import Part
from splitinfer.selector import Choice
from trust_models.modes import TrustMode

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """What became known during a run, for its answer."""

    mode: TrustMode
    started: float
    token_ids: list[int] = field(default_factory=list, repr=False)
    text: list[str] = field(default_factory=list, repr=False)
    finish_reason: str = ""
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    is_exact: bool = True
    is_fallback: bool = False
    is_reused: bool = False
    base_tokens: int = 0
    prefilled_by_cloud_tokens: int = 0
    origin: Origin | None = None
    notes: list[str] = field(default_factory=list)
    egress: EgressSummary = field(default_factory=EgressSummary)
    carrier: Carrier | None = None
    growing: GrowingCache | None = field(default=None, repr=False)
    generation: int = 0
    part: Part | None = None
    choice: Choice | None = None
    certificate: Certificate | None = None

    def saw_token(self, token_id: int) -> None:
        """Note a token of the answer, and when it came."""
        self.token_ids.append(token_id)
        self.last_token_at = time.perf_counter()
        self.first_token_at = self.first_token_at or self.last_token_at
