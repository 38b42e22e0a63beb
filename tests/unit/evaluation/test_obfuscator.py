from __future__ import annotations

from collections import Counter

import pytest
import torch

from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.chosen_plaintext import match_columns, probe_tokens, recover_secrets
from splitinfer.evaluation.targets.obfuscator import BLOCK_ROWS, MatrixObfuscator
from splitinfer.evaluation.targets.permutation import HeadPermutation, permute_states

VOCABULARY, DIM = 500, 32


def dictionary() -> torch.Tensor:
    return torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(1))


def obfuscator(seed: int) -> MatrixObfuscator:
    return MatrixObfuscator.make(dim=DIM, threshold=float(dictionary().norm(dim=1).max()), seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_secrets_that_are_reused_give_the_victims_tokens_away(seed: int) -> None:
    table, target = dictionary(), obfuscator(seed)
    secrets = recover_secrets(target.protect(table[7].expand(probe_tokens(), -1)), table[7])
    victim = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(seed))
    found = 0
    for place, block in enumerate(target.protect(table[victim])):
        true = Counter(victim[place * BLOCK_ROWS : (place + 1) * BLOCK_ROWS].tolist())
        found += sum((true & Counter(secrets.open(block, table))).values())
    assert found >= 0.99 * len(victim)


def test_other_secrets_open_nothing() -> None:
    table, target = dictionary(), obfuscator(1)
    secrets = recover_secrets(target.protect(table[7].expand(probe_tokens(), -1)), table[7])
    victim = torch.arange(BLOCK_ROWS)
    (block,) = obfuscator(2).protect(table[victim])
    assert sum((Counter(victim.tolist()) & Counter(secrets.open(block, table))).values()) <= 4


def test_the_obfuscation_keeps_what_attention_needs() -> None:
    """The rotation commutes with rotary positions and S is orthogonal: the block's energy without beacon stays."""
    target, rows = obfuscator(3), dictionary()[:BLOCK_ROWS].double()
    rotation = target.rotation
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(DIM, dtype=torch.float64))
    turned = (rows @ rotation).norm(dim=1)
    torch.testing.assert_close(turned, rows.norm(dim=1))


def test_too_few_blocks_are_refused() -> None:
    table, target = dictionary(), obfuscator(1)
    with pytest.raises(UsageError, match="different blocks"):
        recover_secrets(target.protect(table[7].expand(BLOCK_ROWS, -1)), table[7])


def test_a_heads_fixed_permutation_is_found_from_chosen_text() -> None:
    rows = torch.randn(2, 40, DIM, generator=torch.Generator().manual_seed(2))
    target = HeadPermutation.make(heads=2, dim=DIM, seed=4)
    for head, protected in enumerate(target.protect(rows)):
        assert match_columns(protected, rows[head]).tolist() == target.orders[head].tolist()


def test_permuted_states_hold_the_same_numbers() -> None:
    states = torch.randn(6, 5)
    shuffled, order = permute_states(states, rows=True, columns=True, seed=0)
    assert sorted(shuffled.flatten().tolist()) == sorted(states.flatten().tolist())
    straight, _ = permute_states(states, rows=True, columns=False, seed=0)
    assert torch.equal(straight, states[order])
