"""Rules of bit packing: nothing is lost, and the byte rule is the documented one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.codec.packing import BITS, code_count, pack, packed_bytes, unpack


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BITS), st.integers(0, 300), st.integers(0, 2**31))
def test_codes_survive_packing(bits: int, elements: int, seed: int) -> None:
    count = code_count(elements, bits)
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = torch.full((packed_bytes(elements, bits),), 255, dtype=torch.uint8)
    pack(codes, packed, bits=bits)
    back = torch.full((count,), 255, dtype=torch.uint8)
    unpack(packed, back, bits=bits)
    assert torch.equal(back, codes)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BITS), st.integers(0, 300), st.integers(0, 2**31))
def test_any_bytes_are_codes_and_pack_to_themselves(bits: int, elements: int, seed: int) -> None:
    size = packed_bytes(elements, bits)
    packed = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    codes = torch.empty(code_count(elements, bits), dtype=torch.uint8)
    unpack(packed, codes, bits=bits)
    assert not codes.numel() or int(codes.max()) < 2**bits
    again = torch.empty_like(packed)
    pack(codes, again, bits=bits)
    assert torch.equal(again, packed)


def test_four_bits_are_halves() -> None:
    packed = torch.empty(2, dtype=torch.uint8)
    pack(torch.tensor([1, 2, 3, 4], dtype=torch.uint8), packed, bits=4)
    assert packed.tolist() == [0x31, 0x42]


def test_five_bits_are_halves_and_the_upper_bits_of_eighths() -> None:
    packed = torch.empty(5, dtype=torch.uint8)
    pack(torch.tensor([1, 18, 3, 20, 5, 6, 23, 8], dtype=torch.uint8), packed, bits=5)
    assert packed.tolist() == [0x51, 0x62, 0x73, 0x84, 0b01001010]


def test_six_bits_are_quarters_with_the_last_spread_over_the_others() -> None:
    packed = torch.empty(3, dtype=torch.uint8)
    pack(torch.tensor([1, 2, 3, 0b111001], dtype=torch.uint8), packed, bits=6)
    assert packed.tolist() == [1 | 0b01 << 6, 2 | 0b10 << 6, 3 | 0b11 << 6]


@pytest.mark.parametrize(
    ("elements", "sizes"), [(0, (0, 0, 0, 0)), (1, (1, 5, 3, 1)), (5, (3, 5, 6, 5)), (8, (4, 5, 6, 8))]
)
def test_a_last_unit_is_filled_up(elements: int, sizes: tuple[int, int, int, int]) -> None:
    assert tuple(packed_bytes(elements, bits) for bits in BITS) == sizes
