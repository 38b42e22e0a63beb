"""How many bytes a session sends at most, known before it begins: parameters, plans, tokens -> bytes; on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.homomorphic.linear_plan import LinearShape, plan_linear
from splitinfer.homomorphic.parameters import Parameters
from splitinfer.homomorphic.planning import AttentionPlan
from splitinfer.homomorphic.seal import ciphertext_limit, keys_limit
from splitinfer.rounds import Operation

__all__ = ["Growth", "bytes_up_bound"]

# Heads, lengths, tags of one record and its parts, for as many parts as a record of ciphertexts can have.
_RECORD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Growth:
    """Tokens of a run: public ones whose cache lies at the cloud in the clear, private ones, and as many new ones.

    Private ones are encrypted, in whole tiles where public ones lie there: what is left over begins the tail then, so
    that a short question after a public text makes no tile of its own.
    """

    public_tokens: int
    private_tokens: int
    new_tokens: int

    def kept_tokens(self, plan: AttentionPlan) -> int:
        """Return how many of the prompt's last tokens stay on the device until a tile is full."""
        return self.private_tokens % plan.tile_tokens if self.public_tokens else 0

    def prompt_tiles(self, plan: AttentionPlan) -> int:
        """Return how many tiles the prompt fills."""
        return plan.tiles(self.public_tokens) + plan.tiles(self.private_tokens - self.kept_tokens(plan))

    def all_tiles(self, plan: AttentionPlan) -> int:
        """Return how many tiles there are at most when the answer is done."""
        return self.prompt_tiles(plan) + plan.tiles(self.kept_tokens(plan) + self.new_tokens)


def bytes_up_bound(
    parameters: Parameters,
    plan: AttentionPlan,
    linears: Mapping[tuple[int, Operation], LinearShape],
    growth: Growth,
    *,
    steps: int,
) -> int:
    """Return the most bytes that a session of so many steps sends, sealed; a seeded ciphertext is half of one."""
    ciphertext = ciphertext_limit(parameters) // 2 + 4096
    layers, tiles = plan.shape.layers, growth.all_tiles(plan)
    plans = [plan_linear(shape, slots=parameters.slots) for shape in linears.values()]
    rotations = len({*plan.steps, *(step for one in plans for step in one.steps)})
    keys = keys_limit(parameters, rotations) + keys_limit(parameters, 1)
    upload = layers * tiles * (2 * plan.cache_blocks * plan.dims * ciphertext + _RECORD_BYTES)
    attention = layers * (plan.queries * (1 + tiles) * ciphertext + 2 * _RECORD_BYTES)
    linear = sum(one.chunks * ciphertext + _RECORD_BYTES for one in plans)
    return keys + upload + steps * (attention + linear) + 2 * _RECORD_BYTES
