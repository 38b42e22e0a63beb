"""The recipe: how long, at what rates, on which rows, and which heads are shown where to look."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from tools.training.network import Probe, Shape
from tools.training.rows import Aim, Stage

__all__ = ["Recipe"]

_ROW_TOKENS = (64, 128, 256, 512, 1024, 2048)
# (from this step on, tokens a process, shares of the row sizes above): short rows first, until choosing and copying
# are there; then longer ones, which teach to choose among many.
_SHARES = (
    (0, 1024, (0.2, 0.6, 0.2, 0, 0, 0)),
    (200, 1024, (0.1, 0.4, 0.5, 0, 0, 0)),
    (400, 2048, (0.05, 0.2, 0.4, 0.35, 0, 0)),
    (800, 2048, (0.05, 0.15, 0.3, 0.4, 0.1, 0)),
    (1200, 2048, (0.05, 0.15, 0.25, 0.3, 0.2, 0.05)),
    (1700, 2048, (0.05, 0.15, 0.2, 0.25, 0.2, 0.15)),
)
_REPEATS_STEPS = 200  # rows of repeats fade out until then
_GAPS_FROM = 500
_STRANGE_FROM, _STRANGE_SHARE = 200, 0.5


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the weights depend on."""

    steps: int = 6000
    seed: int = 0
    processes: int = 2
    matrix_rate: float = 0.01
    vector_rate: float = 4e-3
    warm_up: int = 100
    decay_steps: int = 1000
    look_weight: float = 0.5
    shape: Shape = field(default_factory=Shape)

    def probes(self) -> Mapping[Aim, tuple[Probe, ...]]:
        """Return for each aim the heads that are trained to look there."""
        second = self.shape.group
        return {
            "owner": (Probe(2, 0),),
            "noun": (Probe(2, second),),
            "link": (Probe(2, 1),),
            "via": (Probe(3, 0),),
            "first": (Probe(4, 0), Probe(4, second)),
            "next": (Probe(5, 0), Probe(5, second)),
        }

    def rate(self, step: int) -> float:
        """Return the share of the peak rates at a step: a linear warm-up, a plateau, a linear descent to nothing.

        Until the descent a run does not depend on how many steps it will have.
        """
        return min(1.0, (step + 1) / self.warm_up, (self.steps - step) / self.decay_steps)

    def look(self, step: int) -> float:
        """Return the weight of the attention loss at a step; in the descent it falls to a tenth."""
        return self.look_weight * min(1.0, max(0.1, (self.steps - step) / self.decay_steps))

    def stage(self, step: int) -> Stage:
        """Return how the rows of a step are drawn; the same for every process."""
        tokens, shares = next((tokens, shares) for start, tokens, shares in reversed(_SHARES) if step >= start)
        row_tokens = random.Random(f"{self.seed}/{step}").choices(_ROW_TOKENS, shares)[0]
        repeats = 0.2 * max(0.0, 1 - step / _REPEATS_STEPS)
        return Stage(
            row_tokens,
            tokens // row_tokens,
            repeats,
            has_gaps=step >= _GAPS_FROM,
            whole_answers=0.4,
            strange=_STRANGE_SHARE if step >= _STRANGE_FROM else 0.0,
        )
