"""What an evaluation plays: names, counts and a seed. Evaluation; no IO."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.posterior import Beam
from splitinfer.evaluation.capture import Seat
from splitinfer.evaluation.playbook import ATTACKS

__all__ = ["LOOKALIKES", "QUICK", "Settings"]

LOOKALIKES = 100


@dataclass(frozen=True, slots=True)
class Settings:
    """What to play: attacks and seats by name, how many prompts, how long the answers, and the seed of it all.

    `layer_prompts` are attacked a layer at a time as well. `tenant_texts` public texts, each of `tenant_tokens` tokens
    or more, are sent by two tenants, where a policy lets the cloud keep what it prefilled; 0 leaves that out. A
    promise of noise is audited with so many releases. An active attacker tries each manipulation `active_attempts`
    times, once in sessions of rounds; 0 leaves out that seat and the reader of the disk. Raises UsageError for counts
    that mean nothing.
    """

    attacks: tuple[str, ...] = tuple(ATTACKS)
    seats: tuple[Seat, ...] = tuple(Seat)
    prompts: int = 8
    seed: int = 0
    max_new_tokens: int = 24
    lookalikes: int = LOOKALIKES
    beam: Beam = field(default_factory=Beam)
    layer_prompts: int = 1
    tenant_texts: int = 40
    tenant_tokens: int = 512
    audit_releases: int = 10_000
    active_attempts: int = 3

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.prompts < 1:
            raise UsageError("an evaluation needs at least one prompt")
        if self.active_attempts < 0:
            raise UsageError("an active attacker tries each manipulation 0 times or more")
        if self.seed < 0:
            raise UsageError("the seed of an evaluation is 0 or more; the attacker's own texts have the others")


QUICK = Settings(prompts=2, lookalikes=25, tenant_texts=12, tenant_tokens=256, audit_releases=2_000, active_attempts=1)
"""A small evaluation, which says that all runs and little about how much leaks."""
