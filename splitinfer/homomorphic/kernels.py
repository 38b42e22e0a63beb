"""The three products of the cloud: scores, outputs, linear layers; ciphertexts in, ciphertexts out.

Each is a baby-step giant-step sum over diagonals. A Share restricts a product to some of the giant steps, so that
several processes can share one; the sums that they return are added. Giant steps rotate what was rescaled already,
which takes half the time. Nothing here sums over slots: the device does that after decryption, where it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from splitinfer.homomorphic.arithmetic import Arithmetic, Operand
from splitinfer.homomorphic.linear_plan import LinearPlan
from splitinfer.homomorphic.planning import AttentionPlan
from splitinfer.homomorphic.seal import Ciphertext

__all__ = ["Share", "linear", "outputs", "scores"]

Share = tuple[int, int]
"""Index and number of the processes that share a product; (0, 1) is all of it."""

Tile = Sequence[Sequence[Operand]]
"""One tile's diagonals, [blocks][dims]."""


def _giants(count: int, share: Share) -> range:
    return range(share[0], count, share[1])


def scores(
    arithmetic: Arithmetic, plan: AttentionPlan, query: Sequence[Ciphertext], tiles: Sequence[Tile], share: Share
) -> list[Ciphertext | None]:
    """Return one sum for every tile and query, queries within tiles."""
    babies = plan.key_babies
    steps = [plan.rows * step for step in range(babies)]
    turned = [arithmetic.rotated(ciphertext, steps) for ciphertext in query]

    def one(tile: Tile, index: int) -> Ciphertext | None:
        diagonals = tile[index // plan.query_groups]
        giants = (
            _turned(arithmetic, turned[index], diagonals[giant * babies :][:babies], plan.rows * giant * babies)
            for giant in _giants(plan.dims // babies, share)
        )
        return arithmetic.sum(giants)

    return [one(tile, index) for tile in tiles for index in range(plan.queries)]


def outputs(
    arithmetic: Arithmetic,
    plan: AttentionPlan,
    probabilities: Sequence[Ciphertext],
    tiles: Sequence[Tile],
    share: Share,
) -> list[Ciphertext | None]:
    """Return one sum over all tiles for every query; `probabilities` has the queries of tile 0, of tile 1, ..."""
    babies = plan.value_babies
    steps = [-plan.rows * step for step in range(babies)]
    turned = [arithmetic.rotated(ciphertext, steps) for ciphertext in probabilities]

    def one(index: int) -> Ciphertext | None:
        rotated = [ciphertext for at in range(len(tiles)) for ciphertext in turned[at * plan.queries + index]]

        def diagonals(giant: int) -> Iterator[Operand]:
            for tile in tiles:
                yield from tile[index // plan.query_groups][giant * babies :][:babies]

        giants = (
            _turned(arithmetic, rotated, list(diagonals(giant)), -plan.rows * giant * babies)
            for giant in _giants(plan.dims // babies, share)
        )
        return arithmetic.sum(giants)

    return [one(index) for index in range(plan.queries)]


def linear(
    arithmetic: Arithmetic,
    plan: LinearPlan,
    inputs: Sequence[Ciphertext],
    diagonals: Sequence[Sequence[Sequence[Operand]]],
    share: Share,
) -> list[Ciphertext | None]:
    """Return one sum for every output table; `diagonals` is [inputs][tables][diagonals]."""
    babies, steps = plan.babies, [plan.groups * step for step in range(plan.babies)]
    turned = [arithmetic.rotated(ciphertext, steps) for ciphertext in inputs]
    rotated = [ciphertext for one in turned for ciphertext in one]

    def table(index: int) -> Ciphertext | None:
        giants = (
            _turned(
                arithmetic,
                rotated,
                [operand for one in diagonals for operand in one[index][giant * babies :][:babies]],
                plan.groups * giant * babies,
            )
            for giant in _giants(plan.diagonals // babies, share)
        )
        return arithmetic.sum(giants)

    return [table(index) for index in range(plan.tables)]


def _turned(
    arithmetic: Arithmetic, ciphertexts: Sequence[Ciphertext], operands: Sequence[Operand], step: int
) -> Ciphertext | None:
    total = arithmetic.products(ciphertexts, operands)
    return None if total is None else arithmetic.rotate(total, step)
