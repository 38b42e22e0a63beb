"""When rows may leave before their prefill is over: SlabSpec -> how much work must be done first; both sides, pure.

What the wire shows may depend on the padded count alone. So rows leave early only where every prompt of the size class
has them, and only at a point of the work that is the same for all: not when they are stored, which the ends of the
prefill steps decide, and with them the lengths of the prompt's segments.

Work is counted in token-layers: a token through one of the L cache layers. A step of at most `lag_tokens` tokens that
holds token `stop - 1` has stored it in layer l at the latest when `stop` tokens are through all layers and `lag_tokens`
more through those before l. That latest point is when rows up to `stop` of layer l leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from splitinfer.handoff import CacheLayout
from splitinfer.schedule import RANGE_TOKENS, SlabSpec, certain_tokens, slabs

__all__ = ["EarlyRows"]


@dataclass(frozen=True, slots=True)
class EarlyRows:
    """The rule for one prefill. `lag_tokens` is its longest step, rounded up to whole token ranges.

    `certain_tokens` of the `padded_tokens` are in every prompt of the size class; rows before `base_tokens` do not
    leave at all, and the size class is that of the tokens behind them.
    """

    layout: CacheLayout
    padded_tokens: int
    certain_tokens: int
    lag_tokens: int
    base_tokens: int = 0

    @classmethod
    def of(
        cls, layout: CacheLayout, *, padded_tokens: int, steps: Sequence[tuple[int, int]], base_tokens: int = 0
    ) -> Self:
        """Make the rule for a prefill in these steps; raises LayoutMismatchError where the padding is no size class."""
        longest = max((stop - start for start, stop in steps), default=1)
        lag = -(-longest // RANGE_TOKENS) * RANGE_TOKENS
        certain = base_tokens + certain_tokens(padded_tokens - base_tokens)
        return cls(layout, padded_tokens, certain, lag, base_tokens)

    @property
    def held_tokens(self) -> int:
        """Return how many tokens of work can lie between the last rows that leave early and the end."""
        return self.padded_tokens - self.certain_tokens + self.lag_tokens

    @property
    def begin_work(self) -> int:
        """Return the work before which nothing leaves."""
        return (self.base_tokens + self.lag_tokens) * len(self.layout.layers)

    @property
    def leaves_early(self) -> bool:
        """Tell whether any slab leaves before the end; the first one leaves before all others."""
        first = next(slabs(self.layout, self.padded_tokens, self.base_tokens), None)
        return first is not None and self.work_needed(first) is not None

    def work_needed(self, spec: SlabSpec) -> int | None:
        """Return the token-layers after which a slab leaves, or None where it waits until all is over."""
        layer, layers = self.layout.layers[spec.layer], len(self.layout.layers)
        rows = next(tensor.rows for tensor in layer.tensors if tensor.name == spec.part)
        if rows not in ("tokens", "entries"):
            return None
        tokens = spec.stop * layer.stride if rows == "entries" else spec.stop
        if tokens > self.certain_tokens:
            return None
        # Complete only when the step is: entries are compressed, and an index is kept, after the layer's `update`.
        lag_layers = layers if rows == "entries" or layer.kind == "indexed" else spec.layer
        needed = tokens * layers + self.lag_tokens * lag_layers
        return needed if needed < self.padded_tokens * layers else None
