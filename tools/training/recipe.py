"""The recipe: how long, at what rates, on which rows, and which heads are shown where to look."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from tools.training.network import Probe, Shape
from tools.training.rows import Aim, Stage

__all__ = ["Recipe"]

_ROW_TOKENS = (64, 128, 256, 512, 1024, 2048)
_REPEATS_STEPS = 200  # rows of repeats fade out until then
_STRANGE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Phase:
    """What holds from a step on: tokens a process and step, shares of the row sizes, and what is asked of the rows.

    With `rests_apart`, heads that should find something count as much as those that should rest, however few.
    """

    start: int
    tokens: int
    shares: tuple[float, ...]
    strange: float = _STRANGE_SHARE
    strange_nouns: float = 0.0
    alike: float = 0.0
    has_gaps: bool = True
    binds_ends: bool = True
    whole_answers: float = 0.8
    rests_apart: bool = True


# Short rows first, until choosing and copying are there; then longer ones, which teach to choose among many. Answers
# are cut short at first, because choosing is harder than copying on; later the copying has to become exact.
_FIRST = {"whole_answers": 0.4, "rests_apart": False, "binds_ends": False}
_PHASES = (
    _Phase(0, 1024, (0.2, 0.6, 0.2, 0, 0, 0), strange=0.0, has_gaps=False, **_FIRST),
    _Phase(200, 1024, (0.1, 0.4, 0.5, 0, 0, 0), has_gaps=False, **_FIRST),
    _Phase(400, 2048, (0.05, 0.2, 0.4, 0.35, 0, 0), has_gaps=False, **_FIRST),
    _Phase(500, 2048, (0.05, 0.2, 0.4, 0.35, 0, 0), **_FIRST),
    _Phase(800, 2048, (0.05, 0.15, 0.3, 0.4, 0.1, 0), **_FIRST),
    _Phase(1100, 2048, (0.05, 0.15, 0.3, 0.4, 0.1, 0), rests_apart=False),
    _Phase(1200, 2048, (0.05, 0.15, 0.25, 0.3, 0.2, 0.05), rests_apart=False),
    _Phase(1400, 2048, (0.03, 0.12, 0.2, 0.3, 0.25, 0.1)),
    _Phase(1800, 2048, (0.02, 0.1, 0.15, 0.25, 0.28, 0.2)),
    _Phase(2300, 2048, (0.06, 0.22, 0.18, 0.22, 0.18, 0.14)),
    _Phase(4000, 2048, (0.06, 0.26, 0.24, 0.24, 0.13, 0.07), strange=0.7, strange_nouns=0.7, alike=0.5),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the weights depend on.

    The result is `kept_share` of the weights before the second hill and the rest of those after it.
    """

    steps: int = 5000
    seed: int = 0
    processes: int = 2
    matrix_rate: float = 0.01
    vector_rate: float = 4e-3
    warm_up: int = 100
    decay_steps: int = 1400
    second_steps: int = 1000
    second_rate: float = 0.5
    kept_share: float = 0.2
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

    @property
    def hill_start(self) -> int:
        """The step at which the first descent has ended and the second hill begins."""
        return self.steps - self.second_steps

    @property
    def plateau_end(self) -> int:
        """The step at which the first descent begins; until then a run does not depend on how many steps it has."""
        return self.hill_start - self.decay_steps

    def rate(self, step: int) -> float:
        """Return the share of the peak rates at a step.

        A linear warm-up, a plateau, a linear descent to nothing; then a lower hill, for what is learnt last.
        """
        left = self.hill_start - step
        if left > 0:
            return min(1.0, (step + 1) / self.warm_up, left / self.decay_steps)
        return self.second_rate * min((1 - left) / self.warm_up, (self.steps - step) / self.second_steps)

    def look(self, step: int) -> float:
        """Return the weight of the attention loss at a step; in a descent it falls to a tenth."""
        left = self.hill_start - step
        share = left / self.decay_steps if left > 0 else (self.steps - step) / self.second_steps
        return self.look_weight * min(1.0, max(0.1, share))

    def rests_apart(self, step: int) -> bool:
        """Tell whether the attention loss weighs finding and resting alike at a step."""
        return self._phase(step).rests_apart

    def stage(self, step: int) -> Stage:
        """Return how the rows of a step are drawn; the same for every process."""
        phase = self._phase(step)
        row_tokens = random.Random(f"{self.seed}/{step}").choices(_ROW_TOKENS, phase.shares)[0]
        return Stage(
            row_tokens,
            phase.tokens // row_tokens,
            repeats=0.2 * max(0.0, 1 - step / _REPEATS_STEPS),
            has_gaps=phase.has_gaps,
            whole_answers=phase.whole_answers,
            strange=phase.strange,
            strange_nouns=phase.strange_nouns,
            alike=phase.alike,
            binds_ends=phase.binds_ends,
        )

    @staticmethod
    def _phase(step: int) -> _Phase:
        return next(phase for phase in reversed(_PHASES) if step >= phase.start)
